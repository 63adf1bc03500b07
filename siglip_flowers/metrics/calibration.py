"""How far a classifier's probabilities can be trusted, and the temperature that corrects them."""

from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import expit, softmax

from siglip_flowers.metrics.classification import FloatArray, IntArray, activation_losses

BINS = 15
Binning = Literal["equal_width", "equal_mass"]
# Beyond these the metrics no longer change: all probabilities are equal, or 0 and 1.
TEMPERATURES = (0.01, 100.0)


def reliability_bins(
    confidences: ArrayLike, correct: ArrayLike, bins: int = BINS, binning: Binning = "equal_width"
) -> list[dict[str, Any]]:
    """Group images by confidence; bins without an image are left out.

    Each bin has ``low`` and ``high``, between which its confidences lie, the number of images
    ``n``, the mean ``confidence`` and the ``accuracy``.

    ``equal_width`` cuts [0, 1] into bins of one width, closed at their upper ends;
    ``equal_mass`` sorts the images and cuts them into bins of one size, plus or minus one image.
    Images of equal confidence are indistinguishable, so each of them counts with the accuracy of
    them all: the bins do not depend on the order of ties.

    confidences: (N,) in [0, 1]; correct: (N,) bool; N >= 1.
    """
    confidence = np.asarray(confidences, dtype=np.float64)
    right: FloatArray = np.asarray(correct, dtype=np.float64)
    if binning == "equal_width":
        edges = np.linspace(0, 1, bins + 1)
        places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
        groups = [np.flatnonzero(places == place) for place in range(bins)]
        ends = list(pairwise(edges))
    else:
        order = np.argsort(confidence, kind="stable")
        right = _average_ties(confidence, right)
        groups = np.array_split(order, bins)
        ends = [
            (confidence[group[0]], confidence[group[-1]]) if group.size else (0.0, 0.0)
            for group in groups
        ]
    return [
        {
            "low": float(low),
            "high": float(high),
            "n": group.size,
            "confidence": float(confidence[group].mean()),
            "accuracy": float(right[group].mean()),
        }
        for group, (low, high) in zip(groups, ends, strict=True)
        if group.size
    ]


def expected_calibration_error(
    confidences: ArrayLike, correct: ArrayLike, bins: int = BINS, binning: Binning = "equal_width"
) -> float:
    """Mean gap between confidence and accuracy over the bins, weighted by images; in [0, 1].

    Arguments are those of :func:`reliability_bins`.

    Source: Naeini et al. 2015; equal mass: Nixon et al. 2019, "Measuring calibration in deep
    learning".
    """
    rows = reliability_bins(confidences, correct, bins, binning)
    gaps = [row["n"] * abs(row["confidence"] - row["accuracy"]) for row in rows]
    return sum(gaps) / np.size(confidences)


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean over images of the squared distance to the true class's indicator, in [0, 2].

    probabilities: (N, C) float in [0, 1]; labels: (N,) integers in [0, C). Sigmoid
    probabilities, which need not sum to 1, may exceed 2 in sum.

    Source: Brier 1950.
    """
    values, true = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    own = values[np.arange(len(true)), true]
    # |p - e|^2 = |p|^2 - 2 p_true + 1, without building the indicators.
    return float(np.mean((values**2).sum(axis=1) - 2 * own + 1))


def to_probabilities(logits: ArrayLike, activation: str, temperature: float = 1.0) -> FloatArray:
    """Return softmax or sigmoid of the logits (N, C) over the temperature, float64."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    return softmax(scaled, axis=1) if activation == "softmax" else expit(scaled)


def fit_temperature(logits: ArrayLike, labels: ArrayLike, activation: str) -> float:
    """Return the temperature T that minimizes the loss of logits / T.

    The loss is the negative log likelihood for a softmax, the pairwise sigmoid loss for sigmoids.
    Accuracy does not change: the order of the classes stays.

    logits: (N, C); labels: (N,) integers. The result lies in ``TEMPERATURES``. It is 1 if the loss
    has no minimum: when every image is right, ever smaller temperatures fit ever better.

    Raises:
        RunError: Logits that are not finite.

    Source: Guo et al. 2017, "On calibration of modern neural networks", section 4.2.
    """
    values = np.asarray(logits, dtype=np.float64)
    found = minimize_scalar(
        lambda log_temperature: activation_losses(
            values / np.exp(log_temperature), labels, activation
        ).mean(),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    temperature = float(np.exp(found.x))
    has_no_minimum = found.fun < 1e-6 or temperature < 1.01 * TEMPERATURES[0]
    return 1.0 if has_no_minimum else temperature


def cross_fitted_nll(logits: FloatArray, labels: IntArray) -> float:
    """Compute the mean softmax NLL at a temperature fitted on the other half of the images.

    Takes the scale of the logits out of a comparison of losses. Images are split in two halves at
    random; each is scored with the temperature that was fitted on the other.

    logits: (N, C); labels: (N,), of two images or more.
    """
    halves = np.random.default_rng(0).permutation(len(labels)) % 2
    losses = np.empty(len(labels))
    for half in (0, 1):
        fitted, scored = halves != half, halves == half
        temperature = fit_temperature(logits[fitted], labels[fitted], "softmax")
        losses[scored] = activation_losses(logits[scored] / temperature, labels[scored], "softmax")
    return float(losses.mean())


def _average_ties(confidence: FloatArray, right: FloatArray) -> FloatArray:
    """Return the accuracy of all images that have the confidence of each image: (N,)."""
    _, group, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    accuracy: FloatArray = (np.bincount(group, weights=right) / sizes)[group]
    return accuracy


def risk_coverage(confidences: ArrayLike, correct: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return coverage and risk, each (N,), as the 1, 2, ... N most confident images are kept.

    Coverage is the share of images kept, risk the share of errors among them. Images of equal
    confidence count with the mean of their group: the curve does not depend on the order of ties.

    confidences: (N,) finite; correct: (N,) bool; N >= 1.

    Source: El-Yaniv and Wiener 2010, "On the foundations of noise-free selective classification".
    """
    confidence = np.asarray(confidences, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    wrong = 1 - _average_ties(confidence, right)[np.argsort(-confidence, kind="stable")]
    kept = np.arange(1, confidence.size + 1)
    return kept / confidence.size, np.cumsum(wrong) / kept


def area_under_risk_coverage(confidences: ArrayLike, correct: ArrayLike) -> float:
    """Mean risk over all coverages (AURC), in [0, 1]; 0 if nothing is wrong.

    Arguments are those of :func:`risk_coverage`.

    Source: Geifman, Uziel and El-Yaniv 2019, "Bias-reduced uncertainty estimation for deep neural
    classifiers".
    """
    return float(risk_coverage(confidences, correct)[1].mean())


def best_area_under_risk_coverage(correct: ArrayLike) -> float:
    """Return the AURC of a confidence that puts every error last: the lowest one."""
    right = np.asarray(correct)
    return area_under_risk_coverage(right.astype(np.float64), right)


def coverage_at_risk(confidences: ArrayLike, correct: ArrayLike, risk: float) -> float:
    """Return the largest share of images that can be kept with at most this share of errors.

    Images of equal confidence are kept together. 0 if even the most confident ones exceed it.
    """
    confidence = np.asarray(confidences, dtype=np.float64)
    coverage, risks = risk_coverage(confidence, correct)
    ordered = np.sort(confidence)[::-1]
    ends = np.append(ordered[1:] != ordered[:-1], True)
    # The mean risk of equal confidences is rounded.
    allowed = np.flatnonzero(ends & (risks <= risk + 1e-12))
    return float(coverage[allowed[-1]]) if allowed.size else 0.0
