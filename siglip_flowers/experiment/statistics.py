"""Measures of a training curve, and the decision rule: what a difference shows of the claim."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import isotonic_regression

from siglip_flowers.metrics.statistics import (
    SIGNIFICANCE,
    PairedDifference,
    describe_p,
    mean_interval,
    paired_bootstrap,
    sign_flip_p,
)

MINIMUM_POINTS = 4
# The claim: test accuracy rises by this much, and the validation loss falls more steadily.
CLAIMED_GAIN = 0.015
# The power that an experiment should have.
POWER = 0.9
REPETITIONS = 200
# Variances of the images' difficulty in the simulation, relative to the noise of a single run: what
# both arms share, and what each has of its own. Runs of one arm agree on most images.
SHARED_DIFFICULTY, OWN_DIFFICULTY = 3.5, 0.5
SHOWN, LESS, OPPOSITE = "shown", "less than claimed", "the opposite shown"
RULED_OUT, NO_DIFFERENCE = "claim ruled out", "no difference shown"
NOT_MEASURABLE = "not measurable"
RULE = (
    "A difference in accuracy is shown if the paired bootstrap over seeds and test images has a "
    "p-value below 0.05, and both its 95% interval and the paired t interval over seeds exclude 0. "
    "The interval given spans both, since with few seeds the bootstrap alone is too narrow. A "
    "difference in steadiness is shown if the exact sign-flip test over seeds has a p-value below "
    "0.05. The smallest possible p-values are 2e-4 for accuracy and 2/2^seeds for steadiness."
)


def steadiness(losses: Sequence[float] | NDArray[np.float64]) -> float:
    """Measure how far a validation-loss curve strays from its trend, in nats; smaller is steadier.

    The trend is the least-squares valley: of all curves that fall (or stay), then rise (or stay),
    with the turn anywhere, the one nearest to the losses. The value is the root mean square of
    what is left, sqrt(sum (y - trend)^2 / E).

    losses: (E,) finite, in the order of training, one per evaluation.

    Why a valley, rather than second differences or a smoother: a loss that drops fast and
    smoothly is steady, yet is strongly curved, and either of those would charge it for the
    curvature and needs a window width that could be tuned to suit. Only going back counts here.
    Over-fitting bends the curve up once; that is the rise of the loss and is not counted again.

    Unchanged by a constant added to the losses, by reversing them and by uneven spacing of the
    evaluations (only the order enters). 0 for a straight line and for any curve that only falls,
    only rises, or falls and then rises. A wobble too small to turn a falling curve back is not
    seen, so that an arm still falling steeply looks steadier than one on its floor. The trend
    follows a part of the noise (white noise of deviation 1 on a flat floor reads 0.34, 0.60, 0.75
    at 5, 10, 20 points): compare curves with the same number of evaluations. Fewer than 4 points
    cannot be measured: nan.

    Source: Frisén 1986, "Unimodal regression"; Stout 2008 for the split into two isotonic fits.
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.size < MINIMUM_POINTS:
        return float("nan")
    span = float(np.ptp(values))
    if span == 0:
        return 0.0
    # Fitted on 0..1, so that rounding is relative to the curve and not to its distance from 0.
    scaled = (values - values.min()) / span
    return span * float(np.sqrt(np.mean((scaled - fit_valley(scaled)) ** 2)))


def fit_valley(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit the least-squares curve that falls, then rises: (E,) to (E,)."""
    best, best_error = values, np.inf
    # A falling piece followed by a rising piece is a valley wherever the cut is and whichever
    # piece ends lower, so trying every cut finds the optimum.
    for cut in range(1, values.size + 1):
        pieces = [isotonic_regression(values[:cut], increasing=False).x]
        if cut < values.size:
            pieces.append(isotonic_regression(values[cut:], increasing=True).x)
        fitted = np.concatenate(pieces)
        error = float(np.sum((values - fitted) ** 2))
        if error < best_error:
            best, best_error = fitted, error
    return best


@dataclass(frozen=True)
class Finding:
    """A difference, SigLIP minus baseline, and what it shows of its half of the claim."""

    difference: float
    low: float
    high: float
    p_value: float
    verdict: str


def assess_accuracy(accuracy: PairedDifference, claimed: float = CLAIMED_GAIN) -> Finding:
    """Apply the rule to a difference in accuracy, both as fractions."""
    low, high, p = accuracy.low, accuracy.high, accuracy.p_value
    seeds = mean_interval(accuracy.seed_differences)
    # One seed shows no spread, and so no difference.
    low = min(low, seeds.low) if seeds.n > 1 else -np.inf
    high = max(high, seeds.high) if seeds.n > 1 else np.inf
    if p < SIGNIFICANCE and low > 0:
        verdict = LESS if high < claimed else SHOWN
    elif p < SIGNIFICANCE and high < 0:
        verdict = OPPOSITE
    else:
        verdict = RULED_OUT if high < claimed else NO_DIFFERENCE
    return Finding(accuracy.difference, low, high, p, verdict)


def assess_measure(siglip: Sequence[float], baseline: Sequence[float]) -> Finding:
    """Apply the rule to a measure that should be small, one value per seed and arm.

    A measure that is 0 in more than half of the runs of both arms, or nan, is not measurable.
    """
    differences = np.subtract(siglip, baseline)
    measured = np.isfinite(differences).all() and not all(
        np.mean(np.equal(values, 0)) > 0.5 for values in (siglip, baseline)
    )
    if not measured:
        nan = float("nan")
        return Finding(nan, nan, nan, nan, NOT_MEASURABLE)
    interval, p = mean_interval(differences.tolist()), sign_flip_p(differences)
    verdict = NO_DIFFERENCE
    if p < SIGNIFICANCE:
        verdict = SHOWN if interval.mean < 0 else OPPOSITE
    return Finding(interval.mean, interval.low, interval.high, p, verdict)


def simulate_power(
    spread: float,
    accuracy: float,
    seeds: int,
    images: int,
    spread_images: int | None = None,
    gain: float = CLAIMED_GAIN,
    repetitions: int | None = None,
    resamples: int = 499,
) -> tuple[float, float]:
    """Simulate experiments with a gain in accuracy that the rule decides on.

    An image has a difficulty, most of which both arms share, and a run an accuracy of its own,
    normal around its arm's. A run is right on an image if its level and fresh noise exceed the
    difficulty.

    Args:
        spread: Standard deviation of the measured accuracy between runs of one arm.
        accuracy: The baseline's accuracy.
        seeds: Runs of each arm.
        images: Test images.
        spread_images: Images that the spread was measured on; default: ``images``.
        gain: The true gain, a fraction.
        repetitions: Simulated experiments; default: ``REPETITIONS``.
        resamples: Of the bootstrap.

    Returns:
        The share of experiments in which the gain is shown, and the gain that 90% of them would
        show: the true one less the lower end that 10% of the intervals stay below.
    """
    generator = np.random.default_rng(0)
    scale = (1 + SHARED_DIFFICULTY + OWN_DIFFICULTY) ** 0.5

    def draw(variance: float, *shape: int) -> NDArray[np.float64]:
        return generator.normal(0.0, variance**0.5, shape)

    # What is measured includes the noise of single images.
    difficulty = draw(scale**2 - 1, 10_000)
    right = stats.norm.cdf(scale * stats.norm.ppf(accuracy) - difficulty)
    noise = float(np.mean(right * (1 - right))) / (spread_images or images)
    findings = []
    for _ in range(repetitions or REPETITIONS):
        shared = draw(SHARED_DIFFICULTY, images)
        arms = []
        for mean in (accuracy + gain, accuracy):
            accuracies = mean + draw(max(0.0, spread**2 - noise), seeds, 1)
            level = scale * stats.norm.ppf(np.clip(accuracies, 1e-6, 1 - 1e-6))
            difficulty = shared + draw(OWN_DIFFICULTY, images)
            arms.append(level + draw(1.0, seeds, images) > difficulty)
        difference = paired_bootstrap(arms[0], arms[1], resamples)
        findings.append(assess_accuracy(difference, claimed=-np.inf))
    lows = [finding.low for finding in findings]
    power = float(np.mean([finding.verdict == SHOWN for finding in findings]))
    return power, gain - float(np.quantile(lows, 1 - POWER))


def describe_finding(finding: Finding, what: str, factor: float, unit: str) -> str:
    """Return a sentence such as "Accuracy: +1.2 points (...): shown."."""
    if finding.verdict == NOT_MEASURABLE:
        return f"{what}: {NOT_MEASURABLE}."
    decimals = 1 if unit == "points" else 4
    size, low, high = (
        f"{factor * value:+.{decimals}f}"
        for value in (finding.difference, finding.low, finding.high)
    )
    p = describe_p(finding.p_value)
    return f"{what}: {size} {unit} (95% interval {low} to {high}, {p}): {finding.verdict}."


def describe_claim(accuracy: Finding, steadiness: Finding) -> str:
    """Return a sentence on the claim as a whole, which is shown only if both halves are."""
    shown = accuracy.verdict == steadiness.verdict == SHOWN
    return (
        f"The claim is {'shown' if shown else 'not shown'}. Accuracy: {accuracy.verdict}; "
        f"steadiness of the validation loss: {steadiness.verdict}."
    )
