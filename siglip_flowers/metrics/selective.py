"""What a classifier gains when it may leave out the images it is least sure of."""

import numpy as np
from numpy.typing import ArrayLike

from siglip_flowers.metrics.functions import FloatArray


def risk_coverage(confidences: ArrayLike, correct: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return coverage and risk, each (N,), as the most confident 1, 2, ... N images are kept.

    Coverage is the share of images kept, risk the share of errors among them. Images of one
    confidence cannot be told apart, so each of them stands for the mean of its group: the curve
    does not depend on the order of ties.

    confidences: (N,) finite; correct: (N,) bool.

    Raises:
        ValueError: Other shapes, types or values, or no image.

    Source: El-Yaniv and Wiener 2010, "On the foundations of noise-free selective classification".
    """
    confidence, right = np.asarray(confidences, dtype=np.float64), np.asarray(correct)
    if confidence.ndim != 1 or confidence.shape != right.shape or confidence.size == 0:
        raise ValueError(
            f"expected a confidence and a truth value for each image, got shapes "
            f"{confidence.shape} and {right.shape}"
        )
    if right.dtype != np.bool_ or not np.isfinite(confidence).all():
        raise ValueError("correct must be boolean and confidences finite")
    levels, group, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, weights=~right, minlength=levels.size) / sizes
    kept = np.arange(1, confidence.size + 1)
    risk = np.cumsum(np.repeat(wrong, sizes)) / kept
    return kept / confidence.size, risk


def area_under_risk_coverage(confidences: ArrayLike, correct: ArrayLike) -> float:
    """Mean risk over all coverages (AURC), in [0, 1]; 0 where nothing is wrong.

    Arguments and errors are those of :func:`risk_coverage`.

    Source: Geifman, Uziel and El-Yaniv 2019, "Bias-reduced uncertainty estimation for deep neural
    classifiers".
    """
    return float(risk_coverage(confidences, correct)[1].mean())


def best_area_under_risk_coverage(correct: ArrayLike) -> float:
    """Return the AURC of a confidence that puts every error last: the least there is."""
    right = np.asarray(correct)
    return area_under_risk_coverage(right.astype(np.float64), right)


def coverage_at_risk(confidences: ArrayLike, correct: ArrayLike, risk: float) -> float:
    """Return the largest share of images that can be kept with at most this share of errors.

    Images of one confidence are kept together. 0 where even the surest ones err more often.
    """
    confidence = np.asarray(confidences, dtype=np.float64)
    coverage, risks = risk_coverage(confidence, correct)
    ordered = np.sort(confidence)[::-1]
    ends = np.append(ordered[1:] != ordered[:-1], True)
    allowed = np.flatnonzero(ends & (risks <= risk))
    return float(coverage[allowed[-1]]) if allowed.size else 0.0
