"""How the threshold for images of no known class is fitted by ``siglip-flowers threshold``."""

from dataclasses import dataclass, field

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.checks import check_positive


@dataclass
class ThresholdArguments:
    """Which model gets a threshold, and how many images of known classes are to pass it."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "A model directory (results/my-run/model, or the run's directory); left out, "
            "the newest model under results/."
        },
    )
    accepted: float = field(
        default=0.95, metadata={"help": "Share of the validation images that pass as known."}
    )
    not_flowers: str | None = field(
        default=None,
        metadata={
            "help": "A folder with images of none of the known classes: how well the threshold "
            "tells the validation images from them is printed too. They take no part in the fit."
        },
    )
    per_device_eval_batch_size: int = field(
        default=128, metadata={"help": "Images per device and step."}
    )

    def __post_init__(self) -> None:
        if not 0 < self.accepted <= 1:
            raise InputError(f"--accepted is {self.accepted}; it must lie above 0 and at most 1.")
        check_positive("per_device_eval_batch_size", self.per_device_eval_batch_size)
