"""The options of ``eval.py`` that measure accuracy on changed images."""

from dataclasses import dataclass

from siglip_flowers.config.fields import Options, option
from siglip_flowers.config.rules import Rule


@dataclass
class RobustnessArguments(Options):
    """Which changed images to evaluate as well."""

    robustness: bool = option(
        False,
        "Also measure accuracy on 15 kinds of changed images, each at five strengths: 75 passes.",
    )
    tta: str = option(
        "none",
        "Test-time augmentation: measure what averaging the probabilities of several views gains "
        "and costs. flip adds the mirrored image, multicrop also five crops.",
        ("none", "flip", "multicrop"),
    )


EXTENDS = {"eval": RobustnessArguments}
RULES: tuple[Rule, ...] = ()
