"""The options of ``eval.py`` that measure accuracy on changed images."""

from dataclasses import dataclass

from siglip_flowers.config.fields import check_fields, option
from siglip_flowers.config.rules import Rule


@dataclass
class RobustnessArguments:
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

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def is_asked(self) -> bool:
        """Whether an option of the feature is set."""
        return self.robustness or self.tta != "none"


EXTENDS = {"eval": RobustnessArguments}
RULES: tuple[Rule, ...] = ()
