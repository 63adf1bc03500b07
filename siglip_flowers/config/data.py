"""Where the images come from."""

from dataclasses import dataclass, field

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.checks import check_choice, check_positive

DATA_SOURCES = ("oxford", "hub", "folder", "procedural")
SPLIT_PROTOCOLS = ("swapped", "official")


@dataclass
class DataArguments:
    """Where the images come from and how they are split."""

    data_source: str | None = field(
        default=None,
        metadata={
            "help": "oxford, hub, folder or procedural. Left out, it follows from the other "
            "options: hub with --dataset_name; oxford where --data_dir holds the original files; "
            "folder with any other --data_dir; else oxford, downloaded."
        },
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "A directory with 102flowers.tgz (or the unpacked jpg/), imagelabels.mat and "
            "setid.mat; or an image folder: train/, validation/ and test/ with one folder a class, "
            "or one folder a class directly, to be cut into splits by --seed."
        },
    )
    oxford_url: str = field(
        default="https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
        metadata={"help": "Where the three original files are downloaded from (a mirror, say)."},
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A dataset on the Hugging Face Hub, or a local one."}
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "The configuration of --dataset_name."}
    )
    image_column_name: str = field(
        default="image", metadata={"help": "The image column of --dataset_name."}
    )
    label_column_name: str = field(
        default="label", metadata={"help": "The label column of --dataset_name."}
    )
    train_split_name: str = field(
        default="train", metadata={"help": "The split of --dataset_name to train on."}
    )
    validation_split_name: str = field(
        default="validation",
        metadata={
            "help": "The split of --dataset_name to validate on. If it does not exist, has no "
            "labels, or is none, it is cut from the training split (--validation_fraction, "
            "stratified, by --split_seed)."
        },
    )
    test_split_name: str = field(
        default="test",
        metadata={"help": "The split of --dataset_name to test on; see --validation_split_name."},
    )
    validation_fraction: float = field(
        default=0.15,
        metadata={"help": "Share of the rows that a missing validation (or test) split gets."},
    )
    split_protocol: str = field(
        default="swapped",
        metadata={
            "help": "swapped: 6149 train / 1020 validation / 1020 test, the original train and "
            "test ids exchanged; official: 1020 / 1020 / 6149. For the oxford source only."
        },
    )
    split_seed: int = field(
        default=0,
        metadata={"help": "Seed of every cut: missing splits, --shots, --max_*_samples."},
    )
    shots_seed: int | None = field(
        default=None,
        metadata={
            "help": "Seed of --shots and --max_train_samples alone, which leaves the evaluated "
            "images as they are; default: --split_seed."
        },
    )
    shots: int | None = field(
        default=None, metadata={"help": "Train on this many images a class only."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many images at most, drawn at random."}
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={"help": "Evaluate on this many images of each split at most, drawn at random."},
    )
    procedural_images_per_class: int = field(
        default=60,
        metadata={"help": "Procedural images a class, over all three splits (3:1:1)."},
    )
    procedural_image_size: int = field(
        default=64, metadata={"help": "Side of a procedural image, in pixels."}
    )
    procedural_seed: int = field(default=0, metadata={"help": "Seed of the procedural images."})
    skip_corrupt_images: bool = field(
        default=False,
        metadata={"help": "Drop and count unreadable images instead of stopping."},
    )
    allow_duplicates: bool = field(
        default=False,
        metadata={"help": "Accept images that stand in more than one split."},
    )
    image_workers: int | None = field(
        default=None,
        metadata={"help": "Threads that check and decode images; default: one a core."},
    )
    pixel_cache: bool = field(
        default=True,
        metadata={
            "help": "Decode every image once and keep its pixels on disk; false decodes it again "
            "in every epoch."
        },
    )
    cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Where decoded pixels and features are kept; default: $SIGLIP_FLOWERS_CACHE, "
            "or a folder in the cache of datasets. It may be deleted at any time."
        },
    )

    def __post_init__(self) -> None:
        check_choice("data_source", self.data_source, DATA_SOURCES)
        check_choice("split_protocol", self.split_protocol, SPLIT_PROTOCOLS)
        for name in ("shots", "max_train_samples", "max_eval_samples", "image_workers"):
            check_positive(name, getattr(self, name))
        if not 0.0 < self.validation_fraction < 0.5:
            raise InputError(
                f"--validation_fraction is {self.validation_fraction}; it must lie between 0 and "
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
        if self.data_source == "hub" and self.dataset_name is None:
            raise InputError("--data_source hub needs --dataset_name.")
        if self.data_source == "folder" and self.data_dir is None:
            raise InputError("--data_source folder needs --data_dir.")
        if self.dataset_name is not None and self.data_source not in (None, "hub"):
            raise InputError(
                f"--dataset_name goes with --data_source hub, not {self.data_source}; drop one."
            )
