"""Out-of-distribution (OOD) scores: how much an image looks like one of the known classes.

Every score is higher for images of known classes.
"""

import numpy as np
from scipy.special import expit, logsumexp, softmax

from siglip_flowers.metrics.neighbors import normalize_rows

# Computed from logits alone, by score_logits.
LOGIT_SCORES = ("max_probability", "max_logit", "energy")
ACCEPTED = 0.95


def score_logits(logits: np.ndarray, score: str, activation: str = "softmax") -> np.ndarray:
    """Return a score of each image: (N,) float64.

    Args:
        logits: (N, C).
        score: ``max_probability``; ``max_logit``; or ``energy``, the sum of the evidence for all
            classes: log-sum-exp of the logits under softmax, the sum of their softplus under
            sigmoid.
        activation: The model's, ``softmax`` or ``sigmoid``.

    Source: Hendrycks and Gimpel 2017, "A baseline for detecting misclassified and
    out-of-distribution examples"; Hendrycks et al. 2022, "Scaling out-of-distribution detection
    for real-world settings" (maximum logit); Liu et al. 2020, "Energy-based out-of-distribution
    detection", equation 4; Wang et al. 2021, "Can multi-label classification networks know what
    they don't know?", equation 5.
    """
    logits = np.asarray(logits, dtype=np.float64)
    sigmoid = activation == "sigmoid"
    if score == "max_logit":
        return logits.max(axis=1)
    if score == "energy":
        return np.logaddexp(0, logits).sum(axis=1) if sigmoid else logsumexp(logits, axis=1)
    return (expit(logits) if sigmoid else softmax(logits, axis=1)).max(axis=1)


def average_classes(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean features of every class that has images: (C, D) float32.

    Args:
        features: Of training images, (N, D).
        labels: Their classes (N,).
    """
    means = [features[labels == label].mean(axis=0) for label in np.unique(labels)]
    return np.stack(means).astype(np.float32)


def score_class_means(class_means: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return the cosine of each image's features to the nearest class mean: (N,) float64.

    Args:
        class_means: (C, D).
        features: (N, D).

    Source: the classifier of Mensink et al. 2013, "Distance-based image classification", with the
    cosine instead of the distance.
    """
    means = normalize_rows(np.asarray(class_means, dtype=np.float64))
    scores: np.ndarray = (normalize_rows(np.asarray(features, dtype=np.float64)) @ means.T).max(1)
    return scores


def fit_threshold(known: np.ndarray, accepted: float = ACCEPTED) -> float:
    """Return the highest threshold that at least a share of the known images reaches.

    Args:
        known: Scores of N images of known classes.
        accepted: The share, greater than 0 and at most 1.
    """
    ordered = np.sort(np.asarray(known, dtype=np.float64))[::-1]
    # Rounded first, since 0.95 * 20 is slightly above 19.
    count = int(np.ceil(np.round(accepted * len(ordered), 9)))
    return float(ordered[max(count, 1) - 1])


def measure_separation(
    known: np.ndarray, unknown: np.ndarray, accepted: float = ACCEPTED
) -> dict[str, float]:
    """Return the AUROC, and the false positive rate at a share of accepted known images.

    The AUROC is the probability that a known image scores above an unknown one; ties count half.
    The false positive rate is the share of unknown images that are accepted as well; at the usual
    share of 0.95 it is called FPR95.
    """
    # Takes a second, which a prediction with these scores does not need.
    from sklearn.metrics import roc_auc_score

    threshold = fit_threshold(known, accepted)
    truth = np.repeat([1, 0], [len(known), len(unknown)])
    return {
        "auroc": float(roc_auc_score(truth, np.concatenate([known, unknown]))),
        "accepted": accepted,
        "false_positive_rate": float(np.mean(np.asarray(unknown) >= threshold)),
        "n_known": len(known),
        "n_unknown": len(unknown),
    }
