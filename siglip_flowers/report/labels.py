"""Images whose label is more likely wrong than the model: confident learning."""

import importlib.util
import logging
import warnings

import numpy as np

from siglip_flowers.metrics.functions import IntArray
from siglip_flowers.report.contents import LabelSuspect

SUSPECTS = 24
PACKAGE = "cleanlab"


def find_label_suspects(
    labels: IntArray, probabilities: np.ndarray, most: int = SUSPECTS
) -> list[LabelSuspect]:
    """Return the images whose label confident learning doubts, the most doubtful first.

    The model must not have been trained on them. Classes without an image in the split take no
    part, since nothing is known of their confidence. Without the package cleanlab, and with fewer
    than two classes, nothing is found.

    labels: (N,); probabilities: (N, C), of rows that need not sum to 1.

    Source: Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in
    dataset labels".
    """
    present = np.unique(labels)
    if len(present) < 2 or importlib.util.find_spec(PACKAGE) is None:
        return []
    # A second of imports.
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    logging.getLogger("cleanlab").setLevel(logging.ERROR)
    place = np.searchsorted(present, labels)
    kept = probabilities[:, present].astype(np.float64) + np.finfo(np.float64).tiny
    shares = kept / kept.sum(axis=1, keepdims=True)
    with warnings.catch_warnings():
        # Of classes with few images, which every small split has.
        warnings.simplefilter("ignore", UserWarning)
        rows = find_label_issues(
            place, shares, return_indices_ranked_by="self_confidence", n_jobs=1, verbose=False
        )
    quality = get_label_quality_scores(place, shares)
    return [
        LabelSuspect(int(row), int(probabilities[row].argmax()), float(quality[row]))
        for row in rows[:most]
    ]
