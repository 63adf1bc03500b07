"""Options of ``siglip-flowers threshold``, which fits the out-of-distribution threshold."""

from dataclasses import dataclass, field

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.checks import check_positive


@dataclass
class ThresholdArguments:
    """The model, and the share of images of known classes that reach the threshold."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "A model directory (results/my-run/model, or the run's directory); default: "
            "the newest model under results/."
        },
    )
    accepted: float = field(
        default=0.95, metadata={"help": "Share of the validation images that reach the threshold."}
    )
    ood_dir: str | None = field(
        default=None,
        metadata={
            "help": "A folder with images of none of the known classes; also print how well the "
            "threshold separates them from the validation images. They are not used for the fit."
        },
    )
    per_device_eval_batch_size: int = field(
        default=128, metadata={"help": "Images per device and step."}
    )

    def __post_init__(self) -> None:
        if not 0 < self.accepted <= 1:
            raise InputError(f"--accepted is {self.accepted}; it must lie above 0 and at most 1.")
        check_positive("per_device_eval_batch_size", self.per_device_eval_batch_size)
