"""Where the images come from, and how training images are augmented."""

from dataclasses import dataclass

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.fields import (
    check_choice,
    check_not_negative,
    check_positive,
    check_range,
    option,
)

DATA_SOURCES = ("oxford", "hub", "folder", "procedural")
SPLIT_PROTOCOLS = ("swapped", "official")


@dataclass
class DataArguments:
    """Data: where the images come from and how they are split."""

    data_source: str | None = option(
        None,
        "oxford, hub, folder or procedural. By default it follows from the other options: hub with "
        "--dataset_name; oxford if --data_dir has the original files; folder with any other "
        "--data_dir; else oxford, downloaded.",
    )
    data_dir: str | None = option(
        None,
        "Your images: one folder per class, or train/, validation/ and test/ with one folder per "
        "class each. The first are split with --split_seed. A directory with 102flowers.tgz (or "
        "the unpacked jpg/), imagelabels.mat and setid.mat is the original Flowers102.",
        common=True,
        path=True,
    )
    oxford_url: str = option(
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
        "Where the three original files are downloaded from (a mirror, for example).",
    )
    dataset_name: str | None = option(
        None, "A dataset on the Hugging Face Hub, or a local one.", common=True, path=True
    )
    dataset_config_name: str | None = option(None, "The configuration of --dataset_name.")
    image_column_name: str = option("image", "The image column of --dataset_name.")
    label_column_name: str = option("label", "The label column of --dataset_name.")
    train_split_name: str = option("train", "The split of --dataset_name to train on.")
    validation_split_name: str = option(
        "validation",
        "The split of --dataset_name to validate on. If it does not exist, has no labels, or is "
        "none, it is cut from the training split (--validation_fraction, stratified, by "
        "--split_seed).",
    )
    test_split_name: str = option(
        "test", "The split of --dataset_name to test on. See --validation_split_name."
    )
    validation_fraction: float = option(
        0.15, "Share of the images that a missing validation (or test) split gets."
    )
    split_protocol: str = option(
        "swapped",
        "Splits of Flowers102: swapped or official. swapped: 6149 train / 1020 validation / 1020 "
        "test, with the original train and test ids exchanged; official: 1020 / 1020 / 6149.",
        common=True,
    )
    split_seed: int = option(
        0, "Seed of every random choice of images: missing splits, --shots, --max_*_samples."
    )
    shots_seed: int | None = option(
        None,
        "Seed of --shots and --max_train_samples alone, which leaves the evaluated images as they "
        "are; default: --split_seed.",
    )
    shots: int | None = option(None, "Train on this many images per class only.", common=True)
    max_train_samples: int | None = option(
        None, "Train on at most this many images, drawn at random."
    )
    max_eval_samples: int | None = option(
        None, "Evaluate on at most this many images of each split, drawn at random.", common=True
    )
    procedural_images_per_class: int = option(
        60, "Procedural images per class, over all three splits (3:1:1)."
    )
    procedural_image_size: int = option(64, "Side of a procedural image, in pixels.")
    procedural_seed: int = option(0, "Seed of the procedural images.")
    skip_corrupt_images: bool = option(
        False, "Skip and count unreadable images instead of stopping.", common=True
    )
    allow_duplicates: bool = option(False, "Accept images that are in more than one split.")
    image_workers: int | None = option(
        None, "Threads that check and decode images; default: one per core."
    )
    pixel_cache: bool = option(
        True,
        "Decode every image once and keep its pixels on disk. false decodes it again in every "
        "epoch, and finds a damaged one only then.",
    )
    cache_dir: str | None = option(
        None,
        "Where decoded pixels and features are kept; default: $SIGLIP_FLOWERS_CACHE, or a folder "
        "in the cache of datasets. It may be deleted at any time.",
        path="output",
    )

    def __post_init__(self) -> None:
        check_choice("data_source", self.data_source, DATA_SOURCES)
        check_choice("split_protocol", self.split_protocol, SPLIT_PROTOCOLS)
        for name in ("shots", "max_train_samples", "max_eval_samples", "image_workers"):
            check_positive(name, getattr(self, name))
        for name in ("split_seed", "shots_seed", "procedural_seed"):
            check_not_negative(name, getattr(self, name))
        if not 0.0 < self.validation_fraction < 0.5:
            raise InputError(
                f"--validation_fraction is {self.validation_fraction}; it must be between 0 and "
                "0.5, since a missing test split takes the same share."
            )
        if self.procedural_images_per_class < 5:
            raise InputError(
                f"--procedural_images_per_class is {self.procedural_images_per_class}; it must be "
                "at least 5, so that every split has an image of every class."
            )
        if self.procedural_image_size < 16:
            raise InputError(
                f"--procedural_image_size is {self.procedural_image_size}; it must be at least 16."
            )


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
