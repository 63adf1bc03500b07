"""How the threshold for images of no known class is fitted by ``siglip-flowers threshold``."""

from dataclasses import dataclass

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.checks import check_positive
from siglip_flowers.config.fields import option


@dataclass
class ThresholdArguments:
    """Threshold: which model gets one, and how many images of known classes pass it."""

    model: str | None = option(
        None,
        "A model directory or a run's directory; default: the newest model under results/.",
        common=True,
        path=True,
    )
    accepted: float = option(0.95, "Share of validation images that pass as known.", common=True)
    ood_dir: str | None = option(
        None,
        "A folder of images of none of the known classes, for a test. Prints how well the "
        "threshold separates them from the validation images; they are not used for the fit.",
        common=True,
        path=True,
    )
    per_device_eval_batch_size: int = option(128, "Images per device and step.", common=True)

    def __post_init__(self) -> None:
        if not 0 < self.accepted <= 1:
            raise InputError(
                f"--accepted is {self.accepted}; it must be greater than 0 and at most 1."
            )
        check_positive("per_device_eval_batch_size", self.per_device_eval_batch_size)
