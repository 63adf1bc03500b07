"""The sentences that an experiment's statistics allow."""

from siglip_flowers.experiment.analysis import Comparison, Comparisons
from siglip_flowers.experiment.settings import ExperimentSettings
from siglip_flowers.metrics.statistics import Interval, conclude

CLAIMED_GAIN = 0.015
RULE = (
    "A difference is claimed only where three things agree: the 95 % bootstrap interval (over "
    "test images and seeds) excludes 0, the Holm-corrected p over all comparisons is below "
    "0.05, and the paired 95 % t interval over seeds excludes 0 as well, since with few seeds the "
    "bootstrap alone is too easily convinced. Everything else is 'no difference shown'."
)


def draw_conclusion(settings: ExperimentSettings, comparisons: Comparisons) -> list[str]:
    """Return a sentence a regime on the SigLIP arm, the verdict on the claim, and the rule."""
    arm = settings.siglip_arm
    sentences = []
    for regime, row in comparisons.items():
        sentence = conclude(
            row[arm].accuracy,
            arm,
            settings.baseline,
            "test accuracy",
            describe_regime(settings, regime),
            corrected_p=row[arm].corrected_p,
            over_seeds=row[arm].over_seeds,
        )
        sentences.append(f"{sentence[0].upper()}{sentence[1:]}")
    setting = describe_regime(settings, settings.claim_regime)
    return [*sentences, decide_claim(comparisons[settings.claim_regime][arm], setting), RULE]


def describe_regime(settings: ExperimentSettings, regime: str) -> str:
    """Describe where a regime's runs were trained."""
    options = {**settings.base, **settings.regimes[regime]}
    shots = options.get("shots")
    if shots is not None:
        return f"with {shots} training image{'' if shots == 1 else 's'} per class"
    if options.get("max_train_samples") is not None:
        return f"with {options['max_train_samples']} training images"
    return "on the whole training split"


def decide_claim(comparison: Comparison, setting: str) -> str:
    """Return whether "accuracy +1.5 points, validation loss falls more steadily" is shown."""
    gain, gain_words = _describe_gain(comparison)
    steadier, steady_words = _describe_steadiness(comparison.steadiness)
    verdict = {2: "is shown", 1: "is shown in part", 0: "is not shown"}[gain + steadier]
    return (
        "The original claim, accuracy +1.5 points and a validation loss that falls more steadily, "
        f"{verdict} {setting}: {gain_words}, and {steady_words}."
    )


def _describe_gain(comparison: Comparison) -> tuple[bool, str]:
    accuracy, seeds = comparison.accuracy, comparison.over_seeds
    if not comparison.shown:
        return False, "no difference in accuracy is shown"
    if accuracy.difference < 0:
        return False, f"accuracy falls by {-100 * accuracy.difference:.1f} points"
    gained = f"accuracy rises by {100 * accuracy.difference:.1f} points"
    # Both intervals count, as they do for the difference itself.
    if max(accuracy.high, seeds.high) < CLAIMED_GAIN:
        return False, f"{gained}, which is less than claimed"
    if min(accuracy.low, seeds.low) > CLAIMED_GAIN:
        return True, f"{gained}, which is more than claimed"
    return True, f"{gained}, with the claimed 1.5 inside the intervals"


def _describe_steadiness(difference: Interval) -> tuple[bool, str]:
    measured = f"{difference.mean:+.4f} nats, 95 % interval {difference.low:+.4f} to "
    measured += f"{difference.high:+.4f} over seeds"
    if difference.high < 0:
        return True, f"the validation loss is steadier ({measured})"
    if difference.low > 0:
        return False, f"the validation loss is less steady ({measured})"
    if difference.mean != difference.mean:
        return False, "the curves have too few evaluations to measure their steadiness"
    if difference.n == 1:
        return False, "one seed cannot show a difference in steadiness"
    return False, f"no difference in the steadiness of the validation loss is shown ({measured})"
