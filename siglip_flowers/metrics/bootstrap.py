"""Intervals of an evaluation's headline metrics: the stratified bootstrap over images."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from siglip_flowers.metrics.functions import FloatArray, IntArray, confusion_matrix

RESAMPLES = 10_000
# Bounds memory: drawn indices held at a time (int32, so 32 MB).
_DRAWS_AT_A_TIME = 8_000_000


def bootstrap_headline(
    labels: ArrayLike,
    predictions: ArrayLike,
    num_classes: int,
    *,
    hits: ArrayLike | None = None,
    losses: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the percentile interval (low, high) of each headline metric.

    Each resample draws, with replacement, as many images of each class as there are, so that the
    class sizes of the split stay fixed. Images of one class that were given the same class are
    interchangeable: drawing them is drawing how many of each kind, one multinomial per class
    instead of one index per image.

    Args:
        labels: True classes (N,), integers.
        predictions: Predicted classes (N,), integers.
        num_classes: C.
        hits: (N,) bool: the true class is among the five most probable. Adds ``top5_accuracy``.
        losses: (N,) float: the loss of each image. Adds ``loss``.
        resamples: Number of resamples.
        confidence: Share of resamples inside an interval.
        seed: Of the drawing.

    Raises:
        ValueError: Arrays of other shapes or types, no image, no resample, or a confidence
            outside 0..1.

    Source: Efron 1979; Davison and Hinkley 1997, section 3.2 (stratified resampling).
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    true, predicted = np.asarray(labels), np.asarray(predictions)
    counts = confusion_matrix(true, predicted, num_classes)
    if true.size == 0:
        raise ValueError("An interval requires at least one image.")
    generator = np.random.default_rng(seed)
    samples = _resample_scores(counts, resamples, generator)
    if hits is not None:
        right = _check_values("hits", hits, true).astype(np.int64)
        samples["top5_accuracy"] = _resample_shares(true, right, num_classes, resamples, generator)
    if losses is not None:
        values = _check_values("losses", losses, true).astype(np.float64)
        samples["loss"] = _resample_means(true, values, resamples, generator)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    return {
        name: (float(low), float(high))
        for name, (low, high) in ((k, np.quantile(v, tails)) for k, v in samples.items())
    }


def _check_values(what: str, values: ArrayLike, true: NDArray[np.int64]) -> NDArray:
    array = np.asarray(values)
    if array.shape != true.shape:
        raise ValueError(f"{what} must have one value per image, {true.shape}, not {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} must be finite.")
    return array


def _resample_scores(
    counts: IntArray, resamples: int, generator: np.random.Generator
) -> dict[str, FloatArray]:
    """Draw confusion matrices with the given rows' sums and return each one's scores."""
    num_classes = len(counts)
    support = counts.sum(axis=1)
    hits = np.zeros((resamples, num_classes), dtype=np.int32)
    predicted = np.zeros((resamples, num_classes), dtype=np.int32)
    for label in np.flatnonzero(support):
        columns = np.flatnonzero(counts[label])
        shares = counts[label, columns] / support[label]
        drawn = generator.multinomial(support[label], shares, size=resamples)
        predicted[:, columns] += drawn.astype(np.int32)
        hits[:, label] = drawn[:, columns == label].sum(axis=1)
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    # As in precision_recall_f1: a class absent from labels and predictions was never at stake.
    at_stake = (support > 0) | (predicted > 0)
    scores = {"accuracy": hits.sum(axis=1) / support.sum()}
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        scores[f"{name}_macro"] = (values * at_stake).sum(axis=1) / at_stake.sum(axis=1)
        scores[f"{name}_weighted"] = values @ support / support.sum()
    return scores


def _resample_shares(
    true: IntArray,
    right: IntArray,
    num_classes: int,
    resamples: int,
    generator: np.random.Generator,
) -> FloatArray:
    """Draw, class by class, how many images are right; return the share of all of them."""
    support = np.bincount(true, minlength=num_classes)
    share = np.bincount(true, weights=right, minlength=num_classes) / np.maximum(support, 1)
    drawn = generator.binomial(support, share, size=(resamples, num_classes))
    return drawn.sum(axis=1) / true.size


def _resample_means(
    true: IntArray, values: FloatArray, resamples: int, generator: np.random.Generator
) -> FloatArray:
    total = np.zeros(resamples)
    for label in np.unique(true):
        own = values[true == label]
        for rows in _split_rows(resamples, own.size):
            drawn = generator.integers(
                own.size, size=(rows.stop - rows.start, own.size), dtype="i4"
            )
            total[rows] += own[drawn].sum(axis=1)
    return total / true.size


def _split_rows(resamples: int, width: int) -> Iterator[slice]:
    step = max(1, _DRAWS_AT_A_TIME // width)
    for start in range(0, resamples, step):
        yield slice(start, min(resamples, start + step))
