"""Everything that one pass over a split tells about a classifier."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from siglip_flowers.evaluation.predict import SplitResult
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
    are_in_top_k,
    confusion_matrix,
    sigmoid_losses,
    softmax_losses,
)
from siglip_flowers.metrics.statistics import wilson_interval
from siglip_flowers.report.confusions import find_pairs, order_classes, score_classes
from siglip_flowers.report.contents import (
    CalibrationFigures,
    Figure,
    ReportContents,
    Selective,
)
from siglip_flowers.report.duplicates import OtherSplit, find_duplicates
from siglip_flowers.report.features import map_features, measure_neighbors
from siglip_flowers.report.images import SplitImages, encode_thumbnail
from siglip_flowers.report.labels import find_label_suspects

GALLERY = 24
TOP_K = 5
RISK = 0.05


def analyze(
    result: SplitResult,
    images: SplitImages,
    others: Mapping[str, OtherSplit],
    *,
    title: str,
    model: str,
    description: str,
    command: str,
    environment: Mapping[str, Any],
    class_names: Sequence[str],
    activation: str,
    temperature: float | None,
) -> ReportContents:
    """Work out a report from one pass over a split of N images.

    Args:
        result: What the classifier made of the split.
        images: The split's images.
        others: The other splits, among which near-duplicates are looked for.
        title: Of the report.
        model: What was evaluated.
        description: The data and split protocol.
        command: What makes this report again.
        environment: Versions and device.
        class_names: The C names.
        activation: ``softmax`` or ``sigmoid``.
        temperature: What the logits are divided by for calibrated probabilities; None without.

    Raises:
        RunError: Logits that are not finite.
    """
    seconds: dict[str, float] = {}
    labels, logits = result.labels, result.logits
    # The slowest part leaves the interpreter free: the others go on meanwhile.
    background = ThreadPoolExecutor(1)
    placing = background.submit(map_features, result.features, labels)
    background.shutdown(wait=False)
    predicted = logits.argmax(axis=1)
    probabilities = to_probabilities(logits, activation)
    confidence = probabilities.max(axis=1)
    correct = predicted == labels
    losses = (softmax_losses if activation == "softmax" else sigmoid_losses)(logits, labels)
    with _measure(seconds, "intervals"):
        headline = _measure_headline(result, predicted, losses, len(class_names))
    with _measure(seconds, "calibration"):
        calibration = _calibrate(logits, labels, activation, 1.0)
        calibrated = temperature and _calibrate(logits, labels, activation, temperature)
    with _measure(seconds, "errors"):
        confusion = confusion_matrix(labels, predicted, len(class_names))
        pairs = find_pairs(labels, predicted, confidence, len(class_names))
        wrong, right = np.flatnonzero(~correct), np.flatnonzero(correct)
        mistakes = wrong[np.argsort(-confidence[wrong], kind="stable")][:GALLERY].tolist()
        hits = right[np.argsort(confidence[right], kind="stable")][:GALLERY].tolist()
    with _measure(seconds, "label errors"):
        suspects = find_label_suspects(labels, probabilities)
    with _measure(seconds, "near-duplicates"):
        duplicates = find_duplicates(result, images, others)
    with _measure(seconds, "nearest neighbors"):
        neighbors = measure_neighbors(result.features, labels, len(class_names))
    with _measure(seconds, "waiting for the feature map"):
        feature_map = placing.result()
    shown = {
        *mistakes,
        *hits,
        *feature_map.rows.tolist(),
        *(row for pair in pairs for row in pair.rows),
        *(suspect.row for suspect in suspects),
        *(duplicate.row for duplicate in duplicates),
    }
    with _measure(seconds, "thumbnails"):
        rows = sorted(shown)
        thumbnails = dict(zip(rows, map(encode_thumbnail, images.read(rows)), strict=True))
    return ReportContents(
        title=title,
        model=model,
        split=result.split,
        description=description,
        command=command,
        environment=dict(environment),
        class_names=list(class_names),
        ids=result.ids,
        labels=labels,
        predicted=predicted,
        confidence=confidence,
        headline=headline,
        calibration=calibration,
        calibrated=calibrated or None,
        confusion=confusion,
        class_order=order_classes(confusion),
        per_class=score_classes(labels, predicted, len(class_names)),
        confused_pairs=pairs,
        mistakes=mistakes,
        uncertain_hits=hits,
        label_suspects=suspects,
        near_duplicates=duplicates,
        selective=_select(confidence, correct),
        knn_accuracy=neighbors,
        feature_map=feature_map,
        thumbnails=thumbnails,
        seconds=seconds,
    )


@contextmanager
def _measure(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _measure_headline(
    result: SplitResult, predicted: np.ndarray, losses: FloatArray, num_classes: int
) -> dict[str, Figure]:
    """Put an interval to every figure of the evaluation: Wilson's to accuracy."""
    hits = are_in_top_k(result.labels, result.logits, min(TOP_K, num_classes))
    ends = bootstrap_headline(result.labels, predicted, num_classes, hits=hits, losses=losses)
    right = int((predicted == result.labels).sum())
    ends["accuracy"] = wilson_interval(right, len(predicted))
    return {
        name: Figure(value, *ends[name]) for name, value in result.metrics.items() if name in ends
    }


def _calibrate(
    logits: np.ndarray, labels: np.ndarray, activation: str, temperature: float
) -> CalibrationFigures:
    probabilities = to_probabilities(logits, activation, temperature)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    losses = (softmax_losses if activation == "softmax" else sigmoid_losses)(
        logits / temperature, labels
    )
    return CalibrationFigures(
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
