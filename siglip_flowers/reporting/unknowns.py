"""How well scores tell a split's pictures from pictures that are no flowers."""

import numpy as np

from siglip_flowers.data.not_flowers import draw_not_flowers
from siglip_flowers.evaluation.open_set import (
    PICTURES_PER_KIND,
    REPORT_SEED,
    classify_folder,
    classify_pictures,
)
from siglip_flowers.evaluation.predict import SplitResult
from siglip_flowers.inference.open_set import CLASS_MEAN, OpenSet
from siglip_flowers.metrics.open_set import LOGIT_SCORES, measure_separation, score_neighbours
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.reporting.contents import GIVEN, UnknownRow

ALL = "all drawings"
NEIGHBOURS = "neighbours"


def measure_unknowns(
    model: SiglipClassifier,
    processor: object,
    result: SplitResult,
    train_features: np.ndarray | None,
    fitted: OpenSet | None,
    folder: str | None = None,
    dtype: str = "float32",
) -> list[UnknownRow]:
    """Return AUROC and FPR95 of every score against all drawings, a folder and kinds of drawings.

    Args:
        model: The classifier.
        processor: Its image processor.
        result: What it made of the split.
        train_features: Of training pictures (M, D), for the score by neighbours; None without it.
        fitted: What lies beside the model, for the score by class means; None without it.
        folder: With pictures that show none of the classes; None without it.
        dtype: What ``result`` and ``train_features`` were computed in.
    """
    drawn = draw_not_flowers(PICTURES_PER_KIND, REPORT_SEED)
    features, logits = classify_pictures(
        model, processor, [picture for kind in drawn.values() for picture in kind], dtype
    )
    kinds = np.repeat(list(drawn), PICTURES_PER_KIND)
    sources = (ALL, *drawn)
    if folder is not None:
        given = classify_folder(model, processor, folder, dtype)
        features, logits = np.concatenate([features, given[0]]), np.concatenate([logits, given[1]])
        kinds = np.concatenate([kinds, np.repeat(GIVEN, len(given[0]))])
        sources = (ALL, GIVEN, *drawn)
    activation = model.config.activation
    known, unknown = {}, {}
    for score in LOGIT_SCORES:
        measure = OpenSet(score, 0.0).score_pictures
        known[score] = measure(result.features, result.logits, activation)
        unknown[score] = measure(features, logits, activation)
    if fitted is not None and fitted.class_means is not None:
        measure = OpenSet(CLASS_MEAN, 0.0, class_means=fitted.class_means).score_pictures
        known[CLASS_MEAN] = measure(result.features, result.logits, activation)
        unknown[CLASS_MEAN] = measure(features, logits, activation)
    if train_features is not None:
        known[NEIGHBOURS] = score_neighbours(train_features, result.features)
        unknown[NEIGHBOURS] = score_neighbours(train_features, features)
    rows = []
    for source in sources:
        chosen = kinds != GIVEN if source == ALL else kinds == source
        for score, values in known.items():
            figures = measure_separation(values, unknown[score][chosen])
            rows.append(
                UnknownRow(
                    source=source,
                    score=score,
                    n=int(chosen.sum()),
                    auroc=figures["auroc"],
                    fpr95=figures["false_positive_rate"],
                )
            )
    return rows
