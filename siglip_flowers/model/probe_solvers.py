"""Fit linear heads on features without gradient steps: logistic regression and ridge."""

import warnings
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.special
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_sample_weight

# Weight (C, D) and bias (C,).
LinearHead = tuple[np.ndarray, np.ndarray]
# Inverse strengths of the L2 penalty that a logistic regression chooses from.
PROBE_STRENGTHS = (0.01, 0.1, 1.0, 10.0)
PROBE_ITERATIONS = 300
# Strengths of ridge's penalty, as multiples of the mean variance of the features' directions.
RIDGE_STRENGTHS = tuple(float(value) for value in np.logspace(-6, 1, 15))
# Scales of the logits that calibration tries, as powers of e.
LOG_SCALES = (-3.0, 8.0)


def fit_logistic_heads(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    strengths: Sequence[float],
    class_weight: str | None = None,
) -> list[LinearHead]:
    """Fit a multinomial logistic regression by L-BFGS for each strength.

    Features are standardised for the fit, which is then folded into weight and bias.

    Args:
        features: (N, D) float32.
        labels: (N,) int64; every class needs a row.
        num_classes: C.
        strengths: Inverse strengths of the L2 penalty.
        class_weight: ``balanced`` weighs classes by inverse frequency.
    """
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
    scaled = (features - mean) / std
    heads = []
    for strength in strengths:
        probe = LogisticRegression(C=strength, max_iter=PROBE_ITERATIONS, class_weight=class_weight)
        with warnings.catch_warnings():
            # A weak penalty needs more steps than it is worth; validation judges what came out.
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(scaled, labels)
        weight, bias = probe.coef_, probe.intercept_
        # scikit-learn keeps a single row for two classes: the logit of the second one.
        if len(weight) == 1:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        assert len(weight) == num_classes
        weight = weight / std
        heads.append((weight, bias - weight @ mean))
    return heads


def fit_ridge_heads(
    views: Sequence[np.ndarray],
    labels: np.ndarray,
    num_classes: int,
    strengths: Sequence[float],
    class_weight: str | None = None,
) -> tuple[list[LinearHead], list[float]]:
    """Fit least squares to one-hot targets with an L2 penalty, for all strengths at once.

    One eigendecomposition of the features' covariance serves every strength. The predicted class
    is that of scikit-learn's ``RidgeClassifier`` with the ``alpha`` returned; the intercept is not
    penalised.

    Args:
        views: One or several arrays (N, D), each a variation of the same rows; all count alike.
        labels: (N,) int64.
        num_classes: C.
        strengths: Penalties as multiples of the mean eigenvalue of the scatter matrix.
        class_weight: ``balanced`` weighs classes by inverse frequency.

    Returns:
        A head and its ``alpha`` for each strength.

    Source: Hoerl and Kennard 1970, "Ridge regression".
    """
    weights = compute_sample_weight(class_weight, labels)
    targets = np.eye(num_classes)[labels]
    total = weights.sum() * len(views)
    mean = sum(weights @ view.astype(np.float64) for view in views) / total
    target_mean = weights @ targets / weights.sum()
    width = views[0].shape[1]
    scatter, cross = np.zeros((width, width)), np.zeros((width, num_classes))
    for view in views:
        centered = view.astype(np.float64) - mean
        weighted = centered * weights[:, None]
        scatter += weighted.T @ centered
        cross += weighted.T @ (targets - target_mean)
    values, vectors = np.linalg.eigh(scatter)
    values = np.maximum(values, 0.0)
    rotated = vectors.T @ cross
    heads, alphas = [], []
    for strength in strengths:
        alpha = strength * float(values.mean())
        weight = (vectors @ (rotated / (values + alpha)[:, None])).T
        heads.append((weight, target_mean - weight @ mean))
        alphas.append(alpha)
    return heads, alphas


def scale_to_probabilities(
    head: LinearHead, features: np.ndarray, labels: np.ndarray
) -> LinearHead:
    """Multiply a head by the number that makes its softmax fit the labels best.

    Least squares predicts values near 0 and 1, of which a softmax makes hardly any difference.
    The predicted classes stay the same.

    Source: Guo et al. 2017, "On calibration of modern neural networks" (temperature scaling).
    """
    weight, bias = head
    scores = features.astype(np.float64) @ weight.T + bias
    own = scores[np.arange(len(labels)), labels]

    def measure_nll(log_scale: float) -> float:
        scale = np.exp(log_scale)
        return float(np.mean(scipy.special.logsumexp(scale * scores, axis=1) - scale * own))

    found = scipy.optimize.minimize_scalar(measure_nll, bounds=LOG_SCALES, method="bounded")
    scale = float(np.exp(found.x))
    return scale * weight, scale * bias
