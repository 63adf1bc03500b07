"""Statistics over seeds and test images: intervals, paired tests, conclusions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

# The p-value below which a difference is claimed.
SIGNIFICANCE = 0.05
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


def mean_interval(values: Sequence[float]) -> Interval:
    """Compute mean, standard deviation (n - 1) and 95% t interval of one value per seed.

    values: (n,), n >= 1. With one value std, low and high are nan: one seed shows no spread. If a
    value is nan, all are.
    """
    array = np.asarray(values, dtype=np.float64)
    mean, n = float(array.mean()), array.size
    if n == 1:
        return Interval(mean, np.nan, np.nan, np.nan, 1)
    std = float(array.std(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * std / n**0.5
    return Interval(mean, std, mean - half, mean + half, n)


def paired_bootstrap(
    correct_a: ArrayLike, correct_b: ArrayLike, resamples: int = 10_000
) -> PairedDifference:
    """Bootstrap the accuracy difference A - B, paired over test images and over seeds.

    correct_a, correct_b: (S, N) bool, row s of both from the same seed, column i the same image.
    Each resample draws S seeds and N images with replacement, independently of each other, and
    scores every drawn seed on every drawn image (crossed). The interval is the 95% percentile one;
    p is two-sided, 2 min(P(d* <= 0), P(d* >= 0)) with one added to counts and resamples, hence
    never 0.

    Properties: noise of single (seed, image) cells is counted up to three times, so the interval
    is wide when the seeds differ by chance on single images. A spread between seeds that shifts
    whole runs is counted at only (S - 1)/S of its variance, so with few seeds the interval is too
    narrow when that spread dominates; report ``mean_interval(seed_differences)`` as well. With one
    seed no spread between seeds is counted at all.

    Source: Owen 2007, "The pigeonhole bootstrap" (crossed random effects).
    """
    right_a, right_b = np.asarray(correct_a), np.asarray(correct_b)
    assert right_a.shape == right_b.shape
    assert right_a.dtype == right_b.dtype == np.bool_
    delta = right_a.astype(np.int8) - right_b.astype(np.int8)  # (S, N) in -1, 0, 1
    return crossed_bootstrap(delta, resamples)


def crossed_bootstrap(delta: NDArray, resamples: int = 10_000) -> PairedDifference:
    """Bootstrap the mean of a contrast of runs over seeds and images, as the paired bootstrap.

    delta: (S, N) numbers, such as half the sum of two arms' correctness minus that of two others.
    """
    seeds, images = delta.shape
    # Images with the same column of differences are interchangeable, so drawing N images is
    # drawing how many come from each distinct column: a multinomial over at most 3^S columns.
    columns, counts = np.unique(delta, axis=1, return_counts=True)  # (S, K), (K,)
    per_column = columns.T.astype(np.float64)  # (K, S)
    generator = np.random.default_rng(0)
    step = max(1, _COUNTS_AT_A_TIME // counts.size)
    totals = []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn_images = generator.multinomial(images, counts / images, size=size)  # (size, K)
        drawn_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        totals.append(((drawn_images @ per_column) * drawn_seeds).sum(axis=1))
    # Sums of integers held in float64, hence exact: a tie with zero is a tie.
    total = np.concatenate(totals)  # (resamples,)
    low, high = np.quantile(total / (seeds * images), [0.025, 0.975])
    fewer = int(min(np.count_nonzero(total <= 0), np.count_nonzero(total >= 0)))
    return PairedDifference(
        difference=float(delta.mean()),
        low=float(low),
        high=float(high),
        p_value=min(1.0, 2 * (fewer + 1) / (resamples + 1)),
        seed_differences=tuple(delta.mean(axis=1).tolist()),
    )


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> dict[str, Any]:
    """Test whether A and B, scored once on the same images, are right equally often.

    correct_a, correct_b: (N,) bool. The exact two-sided binomial test on the discordant images:
    ``b`` that only A gets right, ``c`` that only B gets right, and ``p_value``.

    Source: McNemar 1947.
    """
    right_a, right_b = np.asarray(correct_a), np.asarray(correct_b)
    assert right_a.shape == right_b.shape
    assert right_a.dtype == right_b.dtype == np.bool_
    b = int(np.count_nonzero(right_a & ~right_b))
    c = int(np.count_nonzero(~right_a & right_b))
    p_value = float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0
    return {"b": b, "c": c, "p_value": p_value}


def sign_flip_p(differences: Sequence[float] | NDArray[np.float64]) -> float:
    """Compute the exact two-sided p of a mean of paired differences under flips of their signs.

    differences: (S,), at most 24 of them. The smallest possible value is 2 / 2^S.

    Source: Fisher 1935, "The Design of Experiments", section 21.
    """
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    total = abs(float(np.sum(differences)))
    # Sums in another order differ in their last digits.
    return float(np.mean(np.abs(sums) >= total - 1e-9 * np.sum(np.abs(differences))))


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Correct p-values for being several, keeping the chance of any false claim at the level.

    p_values: (m,) in 0..1. Returns (m,) corrected p-values in the order given.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = p[order] * np.arange(p.size, 0, -1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return corrected


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Compute the 95% Wilson score interval (low, high) of a proportion, both in 0..1.

    Source: Wilson 1927, without continuity correction.
    """
    ends = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(ends.low), float(ends.high)


def conclude(
    difference: PairedDifference, name_a: str, name_b: str, measure: str, corrected_p: float
) -> str:
    """Return one sentence on what a difference of two runs shows, in percentage points.

    measure: "test accuracy"; corrected_p: the p-value after :func:`holm`. A difference is claimed
    only if the interval excludes 0 and p is below ``SIGNIFICANCE``.
    """
    claim = f"no difference shown between {name_a} and {name_b}"
    if corrected_p < SIGNIFICANCE and not difference.low <= 0 <= difference.high:
        claim = f"{name_a} {'beats' if difference.low > 0 else 'falls short of'} {name_b}"
    ends = (difference.difference, difference.low, difference.high)
    size, low, high = (f"{100 * value:+.2f}" for value in ends)
    return (
        f"{claim}: {size} points (95% interval {low} to {high}, Holm-corrected "
        f"{describe_p(corrected_p)}, one seed, so the spread between seeds is not counted) on "
        f"{measure}."
    )


def describe_p(p: float) -> str:
    """Return ``p = 0.012`` or ``p < 0.001``."""
    return f"p {format_p(p)}" if p < 0.001 else f"p = {format_p(p)}"


def format_p(p: float) -> str:
    """Return ``0.012`` or ``< 0.001``; a p just below ``SIGNIFICANCE`` does not print as equal."""
    if p < 0.001:
        return "< 0.001"
    decimals = 2 if p >= 0.1 else 3
    while p < SIGNIFICANCE <= round(p, decimals) and decimals < 8:
        decimals += 1
    return f"{p:.{decimals}f}"
