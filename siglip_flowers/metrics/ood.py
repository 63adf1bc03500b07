"""How known an image looks to a classifier, and how well that tells flowers from other images.

All scores are higher for images of known classes.
"""

import numpy as np

# Computed from logits alone, by score_logits.
LOGIT_SCORES = ("max_probability", "max_logit", "energy")
ACCEPTED = 0.95
NEIGHBORS = 10
_BLOCK_ROWS = 256


def score_logits(logits: np.ndarray, score: str, activation: str = "softmax") -> np.ndarray:
    """Return how known each image looks: (N,) float64.

    Args:
        logits: (N, C).
        score: ``max_probability``; ``max_logit``; or ``energy``, the sum of the evidence for all
            classes: log-sum-exp of the logits under softmax, the sum of their softplus under
            sigmoid.
        activation: ``softmax`` or ``sigmoid``: the model's.

    Raises:
        ValueError: Another score.

    Source: Hendrycks and Gimpel 2017, "A baseline for detecting misclassified and
    out-of-distribution examples"; Hendrycks et al. 2022, "Scaling out-of-distribution detection
    for real-world settings" (maximum logit); Liu et al. 2020, "Energy-based out-of-distribution
    detection", equation 4; Wang et al. 2021, "Can multi-label classification networks know what
    they don't know?", equation 5.
    """
    if score not in LOGIT_SCORES:
        raise ValueError(f"score is {score!r}; choose one of {', '.join(LOGIT_SCORES)}.")
    logits = np.asarray(logits, dtype=np.float64)
    highest = logits.max(axis=1)
    if score == "max_logit":
        return highest
    sigmoid = activation == "sigmoid"
    if score == "energy" and sigmoid:
        return np.logaddexp(0, logits).sum(axis=1)
    if sigmoid:
        return np.exp(-np.logaddexp(0, -highest))
    energy = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return energy if score == "energy" else np.exp(highest - energy)


def average_classes(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean feature of every class that has images: (C, D) float32.

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
    cosine for the distance.
    """
    return (_normalize(features) @ _normalize(class_means).T).max(axis=1)


def score_neighbors(
    features: np.ndarray, queries: np.ndarray, neighbors: int = NEIGHBORS
) -> np.ndarray:
    """Return minus the distance of each query to its k-th nearest training image: (M,) float64.

    Distances are those of features divided by their length.

    Args:
        features: Of the training images, (N, D).
        queries: (M, D).
        neighbors: k, at most N.

    Source: Sun et al. 2022, "Out-of-distribution detection with deep nearest neighbors".
    """
    known, asked = _normalize(features), _normalize(queries)
    k = min(neighbors, len(known))
    parts = []
    for start in range(0, len(asked), _BLOCK_ROWS):
        cosines = asked[start : start + _BLOCK_ROWS] @ known.T
        parts.append(np.partition(cosines, len(known) - k, axis=1)[:, len(known) - k])
    # |a - b|^2 = 2 - 2 cos(a, b); rounding may take it below 0.
    return -np.sqrt(np.maximum(2 - 2 * np.concatenate(parts), 0))


def _normalize(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    normalized: np.ndarray = features / np.linalg.norm(features, axis=1, keepdims=True)
    return normalized


def fit_threshold(known: np.ndarray, accepted: float = ACCEPTED) -> float:
    """Return the highest threshold that at least a share of known images reaches.

    Args:
        known: Scores of N images of known classes.
        accepted: The share, greater than 0 and at most 1.
    """
    ordered = np.sort(np.asarray(known, dtype=np.float64))[::-1]
    # Rounded first, since 0.95 * 20 is a hair above 19.
    count = int(np.ceil(np.round(accepted * len(ordered), 9)))
    return float(ordered[max(count, 1) - 1])


def area_under_roc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Return the probability that a known image scores above an unknown one, ties by half."""
    ordered = np.sort(unknown)
    below = np.searchsorted(ordered, known, side="left")
    not_above = np.searchsorted(ordered, known, side="right")
    return float((below + not_above).sum() / 2 / len(known) / len(unknown))


def measure_separation(
    known: np.ndarray, unknown: np.ndarray, accepted: float = ACCEPTED
) -> dict[str, float]:
    """Return AUROC, and the share of unknown images let pass where ``accepted`` known ones are.

    The second is called FPR95 at the usual share of 0.95.
    """
    threshold = fit_threshold(known, accepted)
    return {
        "auroc": area_under_roc(known, unknown),
        "accepted": accepted,
        "false_positive_rate": float(np.mean(np.asarray(unknown) >= threshold)),
        "n_known": len(known),
        "n_unknown": len(unknown),
    }
