"""The analysis of one pass over a split."""

import importlib.util
import logging
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from siglip_flowers.evaluation.extension import Evaluation
from siglip_flowers.evaluation.predict import SplitResult
from siglip_flowers.evaluation.tables import HEADLINE, list_metrics
from siglip_flowers.metrics.bootstrap import bootstrap_headline
from siglip_flowers.metrics.calibration import (
    area_under_risk_coverage,
    best_area_under_risk_coverage,
    brier_score,
    coverage_at_risk,
    expected_calibration_error,
    reliability_bins,
    risk_coverage,
    to_probabilities,
)
from siglip_flowers.metrics.functions import (
    FloatArray,
    IntArray,
    are_in_top_k,
    confusion_matrix,
    precision_recall_f1,
    sigmoid_losses,
    softmax_losses,
)
from siglip_flowers.metrics.statistics import wilson_interval
from siglip_flowers.report.contents import (
    Calibration,
    ClassGroup,
    ClassRow,
    ConfusedPair,
    Estimate,
    LabelSuspect,
    Report,
    Selective,
)
from siglip_flowers.report.duplicates import SplitRows, find_duplicates
from siglip_flowers.report.features import map_features, measure_neighbors
from siglip_flowers.report.images import encode_thumbnail

GALLERY = SUSPECTS = 24
PAIRS, IMAGES_PER_PAIR = 15, 4
TOP_K = 5
RISK = 0.05
# Training images of a class: fewer than the first are rare, more than the second are frequent.
# Source: Liu et al. 2019, "Large-scale long-tailed recognition in an open world".
RARE, FREQUENT = 20, 100


def analyze(
    evaluation: Evaluation, splits: Mapping[str, SplitRows], temperature: float | None
) -> Report:
    """Analyze one pass over a split of N images with C classes.

    Args:
        evaluation: With the result of the pass.
        splits: All splits, to look for near-duplicates in.
        temperature: What the logits are divided by for calibrated probabilities; None without.

    Raises:
        RunError: Logits that are not finite.
    """
    result = evaluation.result
    assert result is not None
    labels, logits, classes = result.labels, result.logits, len(evaluation.model.class_names)
    activation = evaluation.model.config.activation
    # The slowest part releases the interpreter, so the others run meanwhile.
    background = ThreadPoolExecutor(1)
    placing = background.submit(map_features, result.features, labels)
    background.shutdown(wait=False)
    predicted = logits.argmax(axis=1)
    probabilities = to_probabilities(logits, activation)
    confidence = probabilities.max(axis=1)
    correct = predicted == labels
    headline = _measure_headline(result, classes, activation)
    calibrated = None if temperature is None else _calibrate(result, activation, temperature)
    confusion = confusion_matrix(labels, predicted, classes)
    pairs = find_pairs(labels, predicted, confidence, classes)
    wrong, right = np.flatnonzero(~correct), np.flatnonzero(correct)
    mistakes = wrong[np.argsort(-confidence[wrong], kind="stable")][:GALLERY].tolist()
    hits = right[np.argsort(confidence[right], kind="stable")][:GALLERY].tolist()
    suspects = find_label_suspects(labels, probabilities)
    duplicates = find_duplicates(result.split, splits)
    trained = np.bincount(splits["train"].labels, minlength=classes)
    per_class = score_classes(labels, predicted, trained)
    feature_map = placing.result()
    shown = {
        *mistakes,
        *hits,
        *feature_map.rows.tolist(),
        *(row for pair in pairs for row in pair.rows),
        *(suspect.row for suspect in suspects),
        *(duplicate.row for duplicate in duplicates),
    }
    images = splits[result.split].images.read(sorted(shown))
    return Report(
        evaluation=evaluation,
        predicted=predicted,
        confidence=confidence,
        headline=headline,
        calibration=_calibrate(result, activation, 1.0),
        calibrated=calibrated,
        confusion=confusion,
        class_order=order_classes(confusion),
        per_class=per_class,
        groups=group_classes(per_class),
        confused_pairs=pairs,
        mistakes=mistakes,
        uncertain_hits=hits,
        label_suspects=suspects,
        near_duplicates=duplicates,
        selective=_select(confidence, correct),
        knn_accuracy=measure_neighbors(result.features, labels, classes),
        feature_map=feature_map,
        thumbnails=dict(zip(sorted(shown), map(encode_thumbnail, images), strict=True)),
    )


def order_classes(counts: IntArray) -> np.ndarray:
    """Return the C classes in an order that puts confused classes side by side.

    The distance of two classes is smaller the more of their images are confused; the order is that
    of the leaves of an average-linkage tree, turned so that neighbors are as close as possible.

    counts: (C, C), true classes in rows.

    Source: Bar-Joseph, Gifford and Jaakkola 2001, "Fast optimal leaf ordering".
    """
    classes = len(counts)
    if classes < 3:
        return np.arange(classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    distances = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), "average", optimal_ordering=True)
    return leaves_list(tree).astype(np.int64)


def find_pairs(
    labels: IntArray, predicted: IntArray, confidence: np.ndarray, num_classes: int
) -> list[ConfusedPair]:
    """Return the class pairs with the most confused images, the most confused pair first.

    Equal counts are ordered by the share of the true class. Each pair has its most confident
    images.
    """
    counts = confusion_matrix(labels, predicted, num_classes)
    support = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    found = [
        (int(count), float(count / support[label]), int(label), int(other))
        for (label, other), count in zip(np.argwhere(counts), counts[counts > 0], strict=True)
    ]
    found.sort(key=lambda pair: (-pair[0], -pair[1], pair[2], pair[3]))
    pairs = []
    for count, share, label, other in found[:PAIRS]:
        rows = np.flatnonzero((labels == label) & (predicted == other))
        surest = rows[np.argsort(-confidence[rows], kind="stable")][:IMAGES_PER_PAIR]
        pairs.append(ConfusedPair(label, other, count, share, surest.tolist()))
    return pairs


def score_classes(labels: IntArray, predicted: IntArray, trained: IntArray) -> list[ClassRow]:
    """Return one row per class, in label order; a class without images has recall 0 in [0, 1].

    trained: (C,) number of training images.
    """
    scores = precision_recall_f1(labels, predicted, len(trained), average=None)
    named = np.bincount(predicted, minlength=len(trained))
    hits = np.bincount(labels[labels == predicted], minlength=len(trained))
    rows = []
    for label, support in enumerate(scores.support.tolist()):
        ends = wilson_interval(int(hits[label]), support) if support else (0.0, 1.0)
        rows.append(
            ClassRow(
                label=label,
                support=support,
                trained=int(trained[label]),
                predicted=int(named[label]),
                precision=float(scores.precision[label]),
                recall=Estimate(float(scores.recall[label]), *ends),
                f1=float(scores.f1[label]),
            )
        )
    return rows


def group_classes(rows: list[ClassRow]) -> list[ClassGroup]:
    """Average rare, medium and frequent classes; nothing if all classes are of one kind."""
    groups = []
    for name, low, high in (
        (f"rare (fewer than {RARE} training images)", 0, RARE - 1),
        (f"medium ({RARE} to {FREQUENT})", RARE, FREQUENT),
        (f"frequent (more than {FREQUENT})", FREQUENT + 1, np.inf),
    ):
        found = [row for row in rows if row.support and low <= row.trained <= high]
        if found:
            support = sum(row.support for row in found)
            recall = float(np.mean([row.recall.value for row in found]))
            f1 = float(np.mean([row.f1 for row in found]))
            groups.append(ClassGroup(name, len(found), support, recall, f1))
    return groups if len(groups) > 1 else []


def find_label_suspects(labels: IntArray, probabilities: np.ndarray) -> list[LabelSuspect]:
    """Return the images whose label confident learning doubts, the most doubtful first.

    The model must not have been trained on them. Classes without an image in the split are left
    out. Nothing is found without the package cleanlab, or in fewer than two classes.

    labels: (N,); probabilities: (N, C), rows need not sum to 1.

    Source: Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in
    dataset labels".
    """
    present = np.unique(labels)
    if len(present) < 2 or importlib.util.find_spec("cleanlab") is None:
        return []
    # A second of imports.
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    logging.getLogger("cleanlab").setLevel(logging.ERROR)
    place = np.searchsorted(present, labels)
    kept = probabilities[:, present].astype(np.float64) + np.finfo(np.float64).tiny
    shares = kept / kept.sum(axis=1, keepdims=True)
    with warnings.catch_warnings():
        # About classes with few images, which every small split has.
        warnings.simplefilter("ignore", UserWarning)
        rows = find_label_issues(
            place, shares, return_indices_ranked_by="self_confidence", n_jobs=1, verbose=False
        )
    quality = get_label_quality_scores(place, shares)
    return [
        LabelSuspect(int(row), int(probabilities[row].argmax()), float(quality[row]))
        for row in rows[:SUSPECTS]
    ]


def _measure_losses(logits: Any, labels: IntArray, activation: str) -> FloatArray:
    return (softmax_losses if activation == "softmax" else sigmoid_losses)(logits, labels)


def _measure_headline(
    result: SplitResult, num_classes: int, activation: str
) -> dict[str, Estimate]:
    """Return the metrics of the evaluation with intervals, of no width if they have none."""
    labels, predicted = result.labels, result.logits.argmax(axis=1)
    ends = bootstrap_headline(
        labels,
        predicted,
        num_classes,
        hits=are_in_top_k(labels, result.logits, min(TOP_K, num_classes)),
        losses=_measure_losses(result.logits, labels, activation),
    )
    metrics = list_metrics(result)
    values = {name: metrics[name] for name in (*HEADLINE, "loss") if name in metrics}
    return {
        name: Estimate(value, *ends.get(name, (value, value))) for name, value in values.items()
    }


def _calibrate(result: SplitResult, activation: str, temperature: float) -> Calibration:
    labels = result.labels
    probabilities = to_probabilities(result.logits, activation, temperature)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    losses = _measure_losses(result.logits / temperature, labels, activation)
    return Calibration(
        temperature=temperature,
        ece_equal_width=expected_calibration_error(confidence, correct),
        ece_equal_mass=expected_calibration_error(confidence, correct, binning="equal_mass"),
        brier=brier_score(probabilities, labels),
        loss=float(losses.mean()),
        bins=reliability_bins(confidence, correct),
    )


def _select(confidence: np.ndarray, correct: np.ndarray) -> Selective:
    coverage, risk = risk_coverage(confidence, correct)
    return Selective(
        coverage=coverage,
        risk=risk,
        aurc=area_under_risk_coverage(confidence, correct),
        best_aurc=best_area_under_risk_coverage(correct),
        coverage_at_5_percent_risk=coverage_at_risk(confidence, correct, RISK),
    )
