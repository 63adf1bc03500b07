"""The options of ``eval.py`` that measure accuracy on changed images."""

from dataclasses import dataclass, field

from siglip_flowers.config.fields import check_choice
from siglip_flowers.config.rules import Rule

TTA_KINDS = ("none", "flip", "multicrop")


@dataclass
class RobustnessArguments:
    """Which changed images to evaluate as well."""

    robustness: bool = field(
        default=False,
        metadata={
            "help": "Also measure accuracy on changed images: noise, blur, fog, snow, JPEG and "
            "others at five strengths, rotation, scale and resolution. Takes 75 more passes; "
            "--max_eval_samples makes it shorter."
        },
    )
    tta: str = field(
        default="none",
        metadata={
            "help": "Test-time augmentation: measure what averaging the probabilities of several "
            "views gains and costs. flip adds the mirrored image, multicrop also five crops."
        },
    )

    def __post_init__(self) -> None:
        check_choice("tta", self.tta, TTA_KINDS)

    @property
    def is_asked(self) -> bool:
        """Whether an option of the feature is set."""
        return self.robustness or self.tta != "none"


EXTENDS = {"eval": RobustnessArguments}
RULES: tuple[Rule, ...] = ()
