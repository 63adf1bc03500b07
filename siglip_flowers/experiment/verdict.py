"""The decision rule: what a difference in accuracy or in steadiness shows of the claim."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from siglip_flowers.metrics.statistics import (
    PairedDifference,
    format_p,
    mean_interval,
)

# The claim: test accuracy rises by this much, and the validation loss falls more steadily.
CLAIMED_GAIN = 0.015
SIGNIFICANCE = 0.05
SHOWN, LESS, OPPOSITE = "shown", "less than claimed", "the opposite shown"
RULED_OUT, NO_DIFFERENCE = "claim ruled out", "no difference shown"
NOT_MEASURABLE = "not measurable"
RULE = (
    "A difference in accuracy is shown if p of the paired bootstrap over seeds and test images is "
    "below 0.05 and its 95 % interval and the paired t interval over seeds, of which the outer "
    "ends are given, exclude 0: with few seeds the bootstrap alone is too easily convinced. A "
    "difference in steadiness is shown if p of the exact sign-flip test over seeds is below 0.05."
)


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


def assess_steadiness(siglip: Sequence[float], baseline: Sequence[float]) -> Finding:
    """Apply the rule to steadiness, one value per seed and arm; smaller is steadier.

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


def sign_flip_p(differences: Sequence[float] | np.ndarray) -> float:
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


def describe_finding(finding: Finding, what: str, factor: float, unit: str) -> str:
    """Return a sentence such as "Accuracy: +1.2 points (...): shown."."""
    if finding.verdict == NOT_MEASURABLE:
        return f"{what}: {NOT_MEASURABLE}."
    decimals = 1 if unit == "points" else 4
    size, low, high = (
        f"{factor * value:+.{decimals}f}"
        for value in (finding.difference, finding.low, finding.high)
    )
    p = format_p(finding.p_value, SIGNIFICANCE)
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    return f"{what}: {size} {unit} (95 % interval {low} to {high}, {p}): {finding.verdict}."


def describe_claim(accuracy: Finding, steadiness: Finding) -> str:
    """Return a sentence on the claim as a whole, which is shown only if both halves are."""
    shown = accuracy.verdict == steadiness.verdict == SHOWN
    return (
        "The claim, accuracy +1.5 points and a validation loss that falls more steadily, is "
        f"{'shown' if shown else 'not shown'}: accuracy, {accuracy.verdict}; steadiness, "
        f"{steadiness.verdict}."
    )
