"""Intervals of an evaluation's headline metrics: the studentized bootstrap, stratified by class."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from siglip_flowers.metrics.classification import FloatArray, IntArray
from siglip_flowers.metrics.statistics import wilson_interval

RESAMPLES = 10_000
# Of the ratios that a 95% interval leaves out on either side.
TAILS = (0.025, 0.975)
# With fewer errors than this, too many resamples have none.
FEW = 5
# Resamples that are drawn and scored together: their counts stay in the processor's cache.
_RESAMPLES_AT_A_TIME = 1_000
# Bounds memory: images of one class that are drawn at a time.
_DRAWS_AT_A_TIME = 8_000_000
# Ratios that are this close differ by rounding.
_NO_WIDTH = 1e-4


def bootstrap_headline(
    labels: ArrayLike,
    predictions: ArrayLike,
    num_classes: int,
    *,
    hits: ArrayLike | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, tuple[float, float]]:
    """Return the bootstrap-t interval (low, high) of each headline metric, at 95%.

    Each resample draws, with replacement, as many images of each class as there are, so that the
    class sizes of the split stay fixed. Its deviation from the estimate is divided by its own
    standard error, which the delta method gives; the quantiles of that ratio, times the standard
    error of the estimate, are the distances of the ends. Percentile intervals of macro precision
    and F1 cover too seldom: see ``benchmarks/interval_coverage.py``.

    Classes of a single image have no spread of their own. They share one stratum: in a resample
    each of them is right, or predicted as another class, as a random one of them was.

    Accuracy and top-5 accuracy have :func:`accuracy_interval`, Wilson's without any error or if
    nothing varies; macro and weighted figures have none then and are left out. If only a few images
    are right or wrong, theirs are widened too: to the distances of Wilson's ends from the accuracy,
    in proportion to the standard errors.

    Args:
        labels: True classes (N,), integers; N >= 1.
        predictions: Predicted classes (N,), integers.
        num_classes: C.
        hits: (N,) bool: the true class is among the five most probable. Adds ``top5_accuracy``.
        resamples: Number of resamples.

    Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", section 12.5; Davison
    and Hinkley 1997, "Bootstrap methods and their application", sections 3.2 and 5.2.
    """
    true, predicted = np.asarray(labels), np.asarray(predictions)
    problem = _Problem(true, predicted, num_classes)
    estimates, errors = problem.score(problem.observe())
    generator = np.random.default_rng(0)
    largest = max(stratum.rows.size for stratum in problem.strata)
    step = max(1, min(_RESAMPLES_AT_A_TIME, _DRAWS_AT_A_TIME // largest))
    parts = []
    for start in range(0, resamples, step):
        parts.append(problem.score(problem.draw(min(step, resamples - start), generator)))
    intervals, right = {}, int(np.count_nonzero(true == predicted))
    # Weighted recall is accuracy.
    of_accuracy = float(errors["recall_weighted"][0])
    for name, estimate in estimates.items():
        drawn = np.concatenate([values[name] for values, _ in parts])
        spread = np.concatenate([found[name] for _, found in parts])
        value, error = float(estimate[0]), float(errors[name][0])
        ends = _studentize(value, error, drawn, spread)
        if ends is not None:
            scale = error / of_accuracy if of_accuracy else 0.0
            intervals[name] = _widen(ends, value, scale, right, true.size)
    shares = {"accuracy": true == predicted}
    if hits is not None:
        shares["top5_accuracy"] = np.asarray(hits, dtype=np.bool_)
    for name, are_right in shares.items():
        counts = np.bincount(true[are_right], minlength=num_classes)
        intervals[name] = accuracy_interval(counts, problem.support, resamples)
    if "recall_weighted" in intervals:
        intervals["recall_weighted"] = intervals["accuracy"]
    return intervals


def accuracy_interval(
    right: ArrayLike, sizes: ArrayLike, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return the bootstrap-t interval (low, high) of an accuracy, stratified by class.

    As :func:`bootstrap_headline`, from counts alone: of the n images that a resample draws from a
    class, a binomial number is right. If only a few images are right or wrong, many resamples have
    no spread: then it is widened to Wilson's interval, which is alone if all are right or wrong.

    Args:
        right: Images of each class that are right (C,).
        sizes: Images of each class (C,); classes without images do not matter.
        resamples: Number of resamples.
    """
    hits, n = np.asarray(right, dtype=np.float64), np.asarray(sizes, dtype=np.int64)
    number, total, single = round(hits.sum()), int(n.sum()), n == 1
    wilson = wilson_interval(number, total)
    if number in (0, total):
        return wilson
    # Classes of a single image share a stratum.
    hits = np.append(hits[n > 1], hits[single].sum())
    n = np.append(n[n > 1], np.count_nonzero(single))
    hits, n = hits[n > 0], n[n > 0]
    drawn = np.random.default_rng(0).binomial(n, hits / n, size=(resamples, n.size))
    value, error = _measure_share(hits[None], n)
    found = _studentize(float(value[0]), float(error[0]), *_measure_share(drawn, n))
    return _widen(found, number / total, 1.0, number, total) if found else wilson


def _widen(
    ends: tuple[float, float], value: float, scale: float, right: int, total: int
) -> tuple[float, float]:
    """Widen an interval if few images are right or wrong, when it is too narrow.

    It then reaches as far from the value as Wilson's interval from the accuracy, times a scale.
    """
    if min(right, total - right) >= FEW:
        return ends
    low, high = (value + scale * (end - right / total) for end in wilson_interval(right, total))
    return max(min(ends[0], low), 0.0), min(max(ends[1], high), 1.0)


def _measure_share(right: NDArray, sizes: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return the accuracy of samples with counts (R, S), and its standard error: (R,) each."""
    total = sizes.sum()
    variance = _stratum_variance(right, right, sizes).sum(axis=1)
    return right.sum(axis=1) / total, np.sqrt(variance) / total


def _studentize(
    value: float, error: float, drawn: FloatArray, spread: FloatArray
) -> tuple[float, float] | None:
    """Return the bootstrap-t interval of a figure in [0, 1], or None if nothing varies.

    Of two or three images all resamples with a spread can be equal.
    """
    # A resample without an error has no spread to measure its deviation by.
    kept = spread > 0
    if error == 0 or not kept.any():
        return None
    ratios = (drawn[kept] - value) / spread[kept]
    low, high = map(float, np.quantile(ratios, TAILS))
    if high - low < _NO_WIDTH:
        return None
    return max(value - high * error, 0.0), min(value - low * error, 1.0)


@dataclass(frozen=True)
class _Stratum:
    """Images that are drawn among themselves.

    Attributes:
        rows: Their numbers (n,).
        classes: Their true classes: one, or n different ones of a single image each.
        columns: The M classes that they are predicted as, and their true classes.
    """

    rows: IntArray
    classes: IntArray
    columns: IntArray


# Counts of R resamples in one stratum: images that are predicted as their class (number of classes,
# R), and images that are predicted as each of the stratum's columns (M, R).
_Sample = tuple[NDArray[np.float32], NDArray[np.float32]]


class _Problem:
    """The images of a split in strata, and the scores of resamples of them.

    Args:
        true: True classes (N,).
        predicted: Predicted classes (N,).
        num_classes: C.
    """

    def __init__(self, true: IntArray, predicted: IntArray, num_classes: int) -> None:
        self.predicted, self.total, self.num_classes = predicted, true.size, num_classes
        self.support = np.bincount(true, minlength=num_classes)
        single = np.flatnonzero(self.support[true] == 1)
        groups = [np.flatnonzero(true == label) for label in np.flatnonzero(self.support > 1)]
        pairs = [(rows, true[rows[:1]]) for rows in groups]
        pairs += [(single, true[single])] if single.size else []
        self.strata = [
            _Stratum(rows, classes, np.union1d(predicted[rows], classes)) for rows, classes in pairs
        ]

    def observe(self) -> list[_Sample]:
        """Return the counts of the images themselves, as of a single resample."""
        return [self._count(stratum, np.arange(stratum.rows.size)[None]) for stratum in self.strata]

    def draw(self, count: int, generator: np.random.Generator) -> list[_Sample]:
        """Return the counts of this many resamples."""
        samples = []
        for stratum in self.strata:
            size = stratum.rows.size
            # Random numbers of two bytes are drawn faster, and are enough for most classes.
            kind = np.uint16 if size <= 2**16 else np.int32
            drawn = generator.integers(size, size=(count, size), dtype=kind)
            samples.append(self._count(stratum, drawn))
        return samples

    def _count(self, stratum: _Stratum, drawn: NDArray) -> _Sample:
        """Count what was drawn: (R, n) positions in the stratum."""
        resamples, width = len(drawn), stratum.columns.size
        given = self.predicted[stratum.rows]
        own = np.searchsorted(stratum.columns, stratum.classes)
        places = np.searchsorted(stratum.columns, given).astype(np.int32)[drawn]
        if stratum.classes.size > 1:
            # Each class keeps its place; its answer is right, or wrong, as the drawn one is.
            places = np.where((given == stratum.classes)[drawn], own, places)
        offsets = np.arange(0, resamples * width, width, dtype=np.int32)[:, None]
        counts = np.bincount((places + offsets).ravel(), minlength=resamples * width)
        named = np.ascontiguousarray(counts.reshape(resamples, width).T, dtype=np.float32)
        hits = named[own] if own.size == 1 else (places == own).T.astype(np.float32)
        return hits, named

    def score(self, samples: list[_Sample]) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
        """Return every figure (R,) of resamples, and its standard error by the delta method.

        A figure is a sum over images; the share of an image of class k that is predicted as j is
        ``gain[k] * (k == j) - loss[j]`` in its derivative.
        """
        shape = (self.num_classes, samples[0][1].shape[1])
        hits, named = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for stratum, (own_hits, own_named) in zip(self.strata, samples, strict=True):
            hits[stratum.classes] += own_hits
            named[stratum.columns] += own_named
        support = self.support[:, None].astype(np.float32)
        precision = hits / np.maximum(named, 1)
        recall = hits / np.maximum(support, 1)
        f1 = 2 * hits / np.maximum(support + named, 1)
        # As in precision_recall_f1: a class absent from labels and predictions was never at stake.
        at_stake = (support > 0) | (named > 0)
        equal = (at_stake / at_stake.sum(axis=0)).astype(np.float32)
        by_size = np.broadcast_to(support / np.float32(self.total), shape)
        values, errors = {}, {}
        for suffix, weights in (("macro", equal), ("weighted", by_size)):
            per_named = weights / np.maximum(named, 1)
            per_both = weights / np.maximum(support + named, 1)
            for name, scores, gain, loss in (
                (f"precision_{suffix}", precision, per_named, per_named * precision),
                (f"recall_{suffix}", recall, weights / np.maximum(support, 1), None),
                (f"f1_{suffix}", f1, 2 * per_both, per_both * f1),
            ):
                values[name] = (weights * scores).sum(axis=0, dtype=np.float64)
                errors[name] = self._measure_error(samples, gain, loss)
        return values, errors

    def _measure_error(
        self, samples: list[_Sample], gain: NDArray, loss: NDArray | None
    ) -> FloatArray:
        variance = np.zeros(gain.shape[1])
        for stratum, (hits, named) in zip(self.strata, samples, strict=True):
            own = gain[stratum.classes]
            first = np.einsum("kr,kr->r", hits, own)
            if loss is None:
                second = np.einsum("kr,kr,kr->r", hits, own, own)
            else:
                lost = loss[stratum.columns]
                own_loss = loss[stratum.classes]
                spent = named * lost
                first = first - spent.sum(axis=0)
                second = np.einsum("kr,kr->r", hits, own * (own - 2 * own_loss))
                second = second + np.einsum("mr,mr->r", spent, lost)
            variance += _stratum_variance(first, second, stratum.rows.size)
        return np.sqrt(variance)


def _stratum_variance(first: NDArray, second: NDArray, size: int | IntArray) -> NDArray:
    """Return the variance of a sum over n images from the sums of values and of their squares."""
    spread = second.astype(np.float64) - first.astype(np.float64) ** 2 / size
    # Rounding may leave a little where all values are equal.
    floor = 1e-6 * second
    return np.where(spread > floor, spread, 0.0) * size / np.maximum(size - 1, 1)
