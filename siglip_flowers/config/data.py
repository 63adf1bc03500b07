"""Where the images come from, and how training images are augmented."""

from dataclasses import dataclass, field
from pathlib import Path

from siglip_flowers.config.fields import Options, between, common, not_negative, option, positive

DATA_SOURCES = ("oxford", "hub", "folder", "table", "procedural")
SPLIT_PROTOCOLS = ("swapped", "official")


@dataclass
class DataArguments(Options):
    """Data: where the images come from and how they are split."""

    data_source: str | None = option(
        None,
        "oxford, hub, folder, table or procedural. By default it follows from the other options: "
        "hub with --dataset_name; oxford if --data_dir has the original files; table if it is or "
        "has a table; folder with any other --data_dir; else oxford, downloaded.",
        DATA_SOURCES,
    )
    data_dir: str | None = common(
        None,
        "Your images: one folder per class, train/, validation/ and test/ with one folder per "
        "class each, or a table (CSV, TSV, Parquet, JSON lines) with columns of paths and labels. "
        "Missing splits are drawn by --split_seed. A directory with 102flowers.tgz (or the "
        "unpacked jpg/), imagelabels.mat and setid.mat is the original Flowers102.",
        path=True,
    )
    oxford_url: str = option(
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
        "Where the three original files are downloaded from (a mirror, for example).",
    )
    dataset_name: str | None = common(None, "A dataset on the Hub, or a local one.", path=True)
    dataset_config_name: str | None = option(None, "The configuration of --dataset_name.")
    image_column_name: str | None = option(
        None,
        "The image column of --dataset_name or a table; default: image, path, file_name, filename, "
        "bytes, or the only column of images.",
    )
    label_column_name: str | None = option(
        None,
        "The label column of --dataset_name or a table; default: label, class, target, or the only "
        "column of class labels.",
    )
    train_split_name: str = option("train", "The split of --dataset_name to train on.")
    validation_split_name: str = option(
        "validation",
        "The split to validate on. If it is missing, unlabeled or none, it is cut from the "
        "training split (--validation_fraction, stratified, by --split_seed).",
    )
    test_split_name: str = option("test", "The split to test on; see --validation_split_name.")
    validation_fraction: float = option(
        0.15, "Share of a missing validation or test split.", between(0.001, 0.499)
    )
    split_protocol: str = common(
        "swapped",
        "Splits of Flowers102: swapped or official. swapped: 6149 train / 1020 validation / 1020 "
        "test, with the original train and test ids exchanged; official: 1020 / 1020 / 6149.",
        SPLIT_PROTOCOLS,
    )
    split_seed: int = option(
        0,
        "Seed of what is drawn: missing splits, --shots, --max_*_samples, --train_eval_samples.",
        not_negative,
    )
    shots_seed: int | None = option(
        None, "Seed of --shots and --max_train_samples alone; default: --split_seed.", not_negative
    )
    shots: int | None = common(None, "Train on this many images per class only.", positive)
    max_train_samples: int | None = option(
        None, "Train on at most this many images, drawn at random.", positive
    )
    max_eval_samples: int | None = common(
        None, "Evaluate on at most this many images of each split, drawn at random.", positive
    )
    procedural_images_per_class: int = option(
        60, "Images per class in all three splits (3:1:1).", between(5, 100_000)
    )
    procedural_image_size: int = option(
        64, "Side of a procedural image, in pixels.", between(16, 4096)
    )
    procedural_seed: int = option(0, "Seed of the procedural images.", not_negative)
    skip_corrupt_images: bool = common(False, "Skip and count unreadable images; default: stop.")
    allow_duplicates: bool = option(False, "Accept images that are in more than one split.")
    image_workers: int | None = option(None, "Decoding threads; default: one per core.", positive)
    pixel_cache: bool = option(
        True,
        "Keep decoded pixels on disk. false decodes every image again in every epoch, and finds a "
        "damaged one only then.",
    )
    cache_dir: str | None = option(
        None,
        "Where decoded pixels and features are kept; default: $SIGLIP_FLOWERS_CACHE, or a folder "
        "in the cache of datasets. It may be deleted at any time.",
        path="output",
    )
    # Not an option: the finished run whose data these are.
    trained_run: Path | None = field(default=None, init=False)


@dataclass
class CacheArguments(Options):
    """Cache: which decoded pixels and features are removed."""

    cache_dir: str | None = option(
        None,
        "The cache; default: $SIGLIP_FLOWERS_CACHE, or a folder in the cache of datasets.",
        path=True,
    )
    remove: list[str] | None = option(None, "Names of entries to remove.")
    remove_unused: float | None = option(
        None, "Remove the entries that no command used for this many days.", not_negative
    )


@dataclass
class AugmentationArguments(Options):
    """Augmentation: how training images are changed; evaluation images never are."""

    augment: bool = common(True, "Augment training images. false trains on them as they are.")
    train_resize_scale: float = option(
        1.15,
        "Training images are decoded at this multiple of the size, so that crops keep detail.",
        between(1, 4),
    )
    train_image_size: int | None = option(
        None,
        "Side of augmented images in pixels; default: the model's. A smaller one is faster, and "
        "shows objects at the size that they have in evaluation, because crops enlarge them.",
        positive,
    )
    crop_min_scale: float = option(
        0.5, "Smallest share of an image's area that a random crop keeps.", between(0.01, 1)
    )
    horizontal_flip: float = option(0.5, "Probability of mirroring left to right.", between(0, 1))
    color_jitter: float = common(
        0.2, "Largest relative change of brightness, contrast and saturation.", between(0, 0.99)
    )
    mixup_alpha: float = common(0.0, "Mixup: blend images by Beta(X, X); 0: off.", between(0, 100))
    cutmix_alpha: float = common(0.0, "CutMix: paste boxes by Beta(X, X); 0: off.", between(0, 100))
