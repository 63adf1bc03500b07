"""The options of ``eval.py`` that measure accuracy on changed images."""

from dataclasses import dataclass

from siglip_flowers.config.fields import check_fields, option
from siglip_flowers.config.rules import Rule


@dataclass
class RobustnessArguments:
    """Which changed images to evaluate as well."""

    robustness: bool = option(
        False,
        "Also measure accuracy on changed images: noise, blur, fog, snow, JPEG and others at five "
        "strengths, rotation, scale and resolution. Takes 75 more passes; --max_eval_samples makes "
        "it shorter.",
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
