"""How training images are augmented."""

from dataclasses import dataclass

from siglip_flowers.config.checks import check_range
from siglip_flowers.config.fields import option


@dataclass
class AugmentationArguments:
    """Augmentation: how training images are changed; evaluation images never are."""

    augment: bool = option(
        True, "Augment training images. false trains on them as they are.", common=True
    )
    train_resize_scale: float = option(
        1.15,
        "Images are decoded to this multiple of the model's size before a training crop is cut, so "
        "that a crop keeps its detail; use 1 if the images are no larger than that.",
    )
    crop_min_scale: float = option(
        0.5, "Smallest share of an image's area that a random crop keeps."
    )
    horizontal_flip: float = option(0.5, "Probability of mirroring an image left to right.")
    color_jitter: float = option(
        0.2, "Largest relative change of brightness, contrast and saturation.", common=True
    )
    mixup_alpha: float = option(
        0.0, "Beta parameter of mixup (Zhang et al. 2018); 0 is off.", common=True
    )
    cutmix_alpha: float = option(
        0.0, "Beta parameter of CutMix (Yun et al. 2019); 0 is off.", common=True
    )

    def __post_init__(self) -> None:
        check_range("horizontal_flip", self.horizontal_flip, 0.0, 1.0)
        check_range("color_jitter", self.color_jitter, 0.0, 0.99)
        check_range("crop_min_scale", self.crop_min_scale, 0.01, 1.0)
        check_range("train_resize_scale", self.train_resize_scale, 1.0, 4.0)
        for name in ("mixup_alpha", "cutmix_alpha"):
            check_range(name, getattr(self, name), 0.0, 100.0)
