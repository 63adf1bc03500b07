"""Statistics over seeds and test images: intervals, paired tests, conclusions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

# Below this many discordant pairs the chi-square approximation is too coarse to be used.
EXACT_BELOW = 25
# Bounds the memory of a bootstrap: counts held at a time (int64, so 32 MB).
_COUNTS_AT_A_TIME = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean with its standard deviation and the two ends of its confidence interval."""

    mean: float
    std: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of A minus accuracy of B on the same images, as a fraction (0.01 is one point)."""

    difference: float
    low: float
    high: float
    p_value: float
    seed_differences: tuple[float, ...]
    seeds: int
    images: int
    resamples: int
    confidence: float


@dataclass(frozen=True)
class McNemarResult:
    """b: images only A gets right; c: images only B gets right; exact: binomial, not chi-square."""

    b: int
    c: int
    p_value: float
    exact: bool


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Compute mean, standard deviation (n - 1) and Student's t interval of one value per seed.

    values: (n,) finite. With one value std, low and high are nan: one seed shows no spread.

    Raises:
        ValueError: no value, a value that is not finite, or a confidence outside 0..1.
    """
    _check_confidence(confidence)
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"values must be a non-empty list of numbers, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"values must be finite, got {array.tolist()}")
    mean, n = float(array.mean()), array.size
    if n == 1:
        return Interval(mean, float("nan"), float("nan"), float("nan"), 1)
    std = float(array.std(ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * std / n**0.5
    return Interval(mean, std, mean - half, mean + half, n)


def paired_bootstrap(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Bootstrap the accuracy difference A - B, paired over test images and over seeds.

    correct_a, correct_b: (S, N) bool, row s of both from the same seed, column i the same image.
    Each resample draws S seeds and N images with replacement, independently of each other, and
    scores every drawn seed on every drawn image (crossed). The interval is the percentile one;
    p is two-sided, 2 min(P(d* <= 0), P(d* >= 0)) with one added to counts and resamples, hence
    never 0.

    Properties: noise of single (seed, image) cells is counted up to three times, so the interval
    is wide when the seeds differ by chance on single images. A spread between seeds that shifts
    whole runs is counted at only (S - 1)/S of its variance, so with few seeds the interval is too
    narrow when that spread dominates; report ``mean_interval(seed_differences)`` as well. With one
    seed no spread between seeds is counted at all.

    Raises:
        ValueError: shapes that differ or are not (S, N), values that are not booleans,
            no resample, or a confidence outside 0..1.

    Source: Owen 2007, "The pigeonhole bootstrap" (crossed random effects).
    """
    _check_confidence(confidence)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    right_a, right_b = _check_pair(correct_a, correct_b, dimensions=2)
    delta = right_a.astype(np.int8) - right_b.astype(np.int8)  # (S, N) in -1, 0, 1
    seeds, images = delta.shape

    # Images with the same column of differences are interchangeable, so drawing N images is
    # drawing how many come from each distinct column: a multinomial over at most 3^S columns.
    columns, counts = np.unique(delta, axis=1, return_counts=True)  # (S, K), (K,)
    per_column = columns.T.astype(np.float64)  # (K, S)
    generator = np.random.default_rng(seed)
    step = max(1, _COUNTS_AT_A_TIME // counts.size)
    totals = []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn_images = generator.multinomial(images, counts / images, size=size)  # (size, K)
        drawn_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        totals.append(((drawn_images @ per_column) * drawn_seeds).sum(axis=1))
    # Sums of integers held in float64, hence exact: a tie with zero is a tie.
    total = np.concatenate(totals)  # (resamples,)

    tail = (1 - confidence) / 2
    low, high = np.quantile(total / (seeds * images), [tail, 1 - tail])
    fewer = int(min(np.count_nonzero(total <= 0), np.count_nonzero(total >= 0)))
    return PairedDifference(
        difference=float(delta.mean()),
        low=float(low),
        high=float(high),
        p_value=min(1.0, 2 * (fewer + 1) / (resamples + 1)),
        seed_differences=tuple(delta.mean(axis=1).tolist()),
        seeds=seeds,
        images=images,
        resamples=resamples,
        confidence=confidence,
    )


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemarResult:
    """Test whether A and B, scored once on the same images, are right equally often.

    correct_a, correct_b: (N,) bool. Exact two-sided binomial test on the discordant images when
    they are fewer than ``EXACT_BELOW``, chi-square with continuity correction otherwise.

    Raises:
        ValueError: shapes that differ or are not (N,), or values that are not booleans.

    Source: McNemar 1947; continuity correction of Edwards 1948.
    """
    right_a, right_b = _check_pair(correct_a, correct_b, dimensions=1)
    b = int(np.count_nonzero(right_a & ~right_b))
    c = int(np.count_nonzero(~right_a & right_b))
    if b + c == 0:
        return McNemarResult(0, 0, 1.0, True)
    if b + c < EXACT_BELOW:
        return McNemarResult(b, c, float(stats.binomtest(b, b + c, 0.5).pvalue), True)
    statistic = max(abs(b - c) - 1, 0) ** 2 / (b + c)
    return McNemarResult(b, c, float(stats.chi2.sf(statistic, 1)), False)


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Correct p-values for being several, keeping the chance of any false claim at the level.

    p_values: (m,) in 0..1. Returns (m,) corrected p-values in the order given.

    Raises:
        ValueError: a value that is not a probability.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values must be a list of numbers in 0..1, got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    stepped = p[order] * np.arange(p.size, 0, -1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return corrected


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the Wilson score interval (low, high) of a proportion, both in 0..1.

    Raises:
        ValueError: n below 1, successes outside 0..n, or a confidence outside 0..1.

    Source: Wilson 1927, without continuity correction.
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..n with n >= 1, got {successes} of {n}")
    z = float(stats.norm.ppf((1 + confidence) / 2))
    proportion = successes / n
    denominator = 1 + z**2 / n
    center = (proportion + z**2 / (2 * n)) / denominator
    half = z / denominator * (proportion * (1 - proportion) / n + z**2 / (4 * n**2)) ** 0.5
    # At 0 and n of n the ends are 0 and 1 but for rounding.
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == n else center + half
    return low, high


def conclude(
    difference: PairedDifference,
    name_a: str,
    name_b: str,
    measure: str,
    corrected_p: float | None = None,
    significance: float = 0.05,
) -> str:
    """Return one sentence on what a paired difference shows, in percentage points.

    measure: "test accuracy"; corrected_p: the p-value after :func:`holm`, which then decides and
    is printed instead of the single one. A difference is claimed only if the interval excludes 0
    and p is below the significance.
    """
    p = difference.p_value if corrected_p is None else corrected_p
    shown = not difference.low <= 0 <= difference.high and p < significance
    sign = -1 if shown and difference.high < 0 else 1
    ends = sorted((sign * difference.low, sign * difference.high))
    size, low, high = _format_points((sign * difference.difference, *ends))
    shown_p = format_p(p, significance)
    equals = "" if shown_p.startswith("<") else "= "
    notes = [
        f"{difference.confidence * 100:g} % interval {low} to {high}",
        f"{'' if corrected_p is None else 'Holm-corrected '}p {equals}{shown_p}",
    ]
    if difference.seeds == 1:
        notes.append("one seed, so the spread between seeds is not counted")
    tail = f"({', '.join(notes)}) on {measure}."
    if not shown:
        return f"no difference shown: {name_a} minus {name_b} is {size} points {tail}"
    return f"{name_a} {'beats' if sign > 0 else 'falls short of'} {name_b} by {size} points {tail}"


def _format_points(fractions: Sequence[float]) -> list[str]:
    # One decimal, more only where a bound would otherwise print as the 0 it excludes.
    points = [100 * fraction for fraction in fractions]
    decimals = 1
    while decimals < 4 and any(value and not round(value, decimals) for value in points):
        decimals += 1
    return [f"{round(value, decimals) + 0.0:.{decimals}f}" for value in points]


def format_p(p: float, significance: float = 0.05) -> str:
    """Return ``0.012`` or ``< 0.001``; a p just below the significance does not print as equal."""
    if p < 0.001:
        return "< 0.001"
    decimals = 2 if p >= 0.1 else 3
    while p < significance <= round(p, decimals) and decimals < 8:
        decimals += 1
    return f"{p:.{decimals}f}"


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")


def _check_pair(
    correct_a: ArrayLike, correct_b: ArrayLike, dimensions: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    right_a, right_b = np.asarray(correct_a), np.asarray(correct_b)
    wanted = "(seeds, images)" if dimensions == 2 else "(images,)"
    if right_a.shape != right_b.shape:
        raise ValueError(
            f"correct_a and correct_b must have one shape {wanted}, "
            f"got {right_a.shape} and {right_b.shape}"
        )
    if right_a.ndim != dimensions or right_a.size == 0:
        raise ValueError(f"expected non-empty arrays of shape {wanted}, got {right_a.shape}")
    if right_a.dtype != np.bool_ or right_b.dtype != np.bool_:
        raise ValueError(
            f"expected boolean arrays (right or wrong), got {right_a.dtype} and {right_b.dtype}"
        )
    return right_a, right_b
