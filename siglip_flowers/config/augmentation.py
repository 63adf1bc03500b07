"""How training images are varied."""

from dataclasses import dataclass, field

from siglip_flowers.config.checks import check_range


@dataclass
class AugmentationArguments:
    """How training images are varied; evaluation images never are."""

    augment: bool = field(
        default=True, metadata={"help": "Vary training images; false trains on them as they are."}
    )
    train_resize_scale: float = field(
        default=1.15,
        metadata={
            "help": "Images are decoded to this multiple of the model's size before a training "
            "crop is cut, so that a crop still holds detail; 1 where images are that small."
        },
    )
    crop_min_scale: float = field(
        default=0.5,
        metadata={"help": "Smallest share of an image's area that a random resized crop keeps."},
    )
    horizontal_flip: float = field(
        default=0.5, metadata={"help": "Probability of mirroring an image left to right."}
    )
    color_jitter: float = field(
        default=0.2,
        metadata={"help": "Brightness, contrast and saturation change by up to this share."},
    )
    random_erasing: float = field(
        default=0.0, metadata={"help": "Probability of blanking a random rectangle."}
    )
    mixup_alpha: float = field(
        default=0.0, metadata={"help": "Beta parameter of mixup (Zhang et al. 2018); 0 is off."}
    )
    cutmix_alpha: float = field(
        default=0.0, metadata={"help": "Beta parameter of CutMix (Yun et al. 2019); 0 is off."}
    )

    def __post_init__(self) -> None:
        for name in ("horizontal_flip", "random_erasing"):
            check_range(name, getattr(self, name), 0.0, 1.0)
        check_range("color_jitter", self.color_jitter, 0.0, 0.99)
        check_range("crop_min_scale", self.crop_min_scale, 0.01, 1.0)
        check_range("train_resize_scale", self.train_resize_scale, 1.0, 4.0)
        for name in ("mixup_alpha", "cutmix_alpha"):
            check_range(name, getattr(self, name), 0.0, 100.0)
