"""Any data set of the Hugging Face Hub, or a local one, with an image and a label column."""

import logging
from pathlib import Path

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HfHubHTTPError

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.config import DataArguments
from siglip_flowers.data.names import order_names
from siglip_flowers.data.splits import SPLIT_NAMES

# The error base class of whichever HTTP client huggingface_hub is built on; that has changed twice.
CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
# Other names that data sets give to a split, tried where the option has its default.
SPLIT_ALIASES = {"validation": ("valid", "val", "dev"), "test": (), "train": ()}

logger = logging.getLogger(__name__)


def check_hub_arguments(arguments: DataArguments) -> None:
    """Check what can be checked without the network.

    Raises:
        InputError: a local path that does not exist, or one split named twice.
    """
    name = arguments.dataset_name
    assert name is not None, "the hub source has a dataset name"
    if name.startswith(("/", "./", "../", "~")) and not Path(name).exists():
        raise InputError(
            f"--dataset_name {name} does not exist; give an existing path or a Hub id (owner/name)."
        )
    chosen = [getattr(arguments, f"{split}_split_name") for split in SPLIT_NAMES]
    if len(set(chosen)) < len(chosen):
        raise InputError(
            f"--train_split_name, --validation_split_name and --test_split_name are "
            f"{', '.join(chosen)}; they must differ."
        )
    if arguments.image_column_name == arguments.label_column_name:
        raise InputError(
            f"--image_column_name and --label_column_name are both "
            f"{arguments.image_column_name!r}; they must differ."
        )


def _fetch(name: str, config_name: str | None) -> DatasetDict:
    """Load all splits of a data set, from disk where ``save_to_disk`` wrote it."""
    asked = f"data set {name!r}" + (f", configuration {config_name!r}" if config_name else "")
    offline = "pass --data_dir with local images, or use --data_source procedural"
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, config_name)
    except DatasetNotFoundError as error:
        raise RunError(
            f"The {asked} is not on the Hugging Face Hub, or needs a login; check the name or log "
            f"in, or {offline}."
        ) from error
    except (ConnectionError, TimeoutError, CLIENT_ERROR) as error:
        raise RunError(
            f"The Hugging Face Hub cannot be reached for the {asked} "
            f"({' '.join(str(error).split())}); offline, {offline}."
        ) from error
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise RunError(
            f"The {asked} cannot be loaded ({' '.join(str(error).split())[:300]}); check "
            f"--dataset_name and --dataset_config_name, or {offline}."
        ) from error
    if not isinstance(loaded, DatasetDict):
        raise InputError(f"The {asked} has no named splits; supply one with a training split.")
    return loaded


def _choose_splits(loaded: DatasetDict, arguments: DataArguments) -> dict[str, Dataset]:
    """Map the data set's split names to train, validation and test; only train must exist."""
    defaults = DataArguments()
    chosen: dict[str, Dataset] = {}
    for split in SPLIT_NAMES:
        option = f"{split}_split_name"
        name = getattr(arguments, option)
        is_default = name == getattr(defaults, option)
        candidates = [name, *(SPLIT_ALIASES[split] if is_default else ())]
        found = next((candidate for candidate in candidates if candidate in loaded), None)
        if found is not None:
            chosen[split] = loaded[found]
        elif split == "train" or not is_default:
            raise InputError(
                f"The data set {arguments.dataset_name!r} has no split {name!r}, only "
                f"{', '.join(loaded)}; choose one with --{option}."
            )
    return chosen


def _check_columns(dataset: Dataset, split: str, image: str, label: str) -> None:
    missing = [name for name in (image, label) if name not in dataset.column_names]
    if missing:
        raise InputError(
            f"The {split} split has no column {' and no column '.join(map(repr, missing))}: "
            f"expected {image}, {label}, found {', '.join(dataset.column_names)}; choose with "
            "--image_column_name and --label_column_name."
        )
    feature = dataset.features[image]
    fields = set(feature) if isinstance(feature, dict) else set()
    path_column = isinstance(feature, Value) and feature.dtype in ("string", "binary")
    if not (isinstance(feature, Image) or fields == {"bytes", "path"} or path_column):
        raise InputError(
            f"The column {image!r} of the {split} split holds {feature}, not images; choose "
            "another with --image_column_name."
        )


def _read_label_names(dataset: Dataset, split: str, column: str) -> tuple[list[str], np.ndarray]:
    """Return the names that a label column uses, and for each row an index into them."""
    feature = dataset.features[column]
    values = dataset.select_columns(column).with_format("arrow")[:][column].combine_chunks()
    unlabeled = values.null_count
    if isinstance(feature, ClassLabel):
        codes = values.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        names = list(feature.names)
        unlabeled = int(np.sum((codes < 0) | (codes >= len(names))))
    elif isinstance(feature, Value) and feature.dtype.startswith(
        ("int", "uint", "string", "large_s")
    ):
        encoded = values.dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        names = [str(name) for name in encoded.dictionary.to_pylist()]
    else:
        raise InputError(
            f"The column {column!r} of the {split} split holds {feature}, not class names or "
            "numbers; choose another with --label_column_name."
        )
    if unlabeled:
        raise InputError(
            f"{unlabeled} of {len(dataset)} rows of the {split} split have no label in the column "
            f"{column!r}; choose a labeled split with --{split}_split_name."
        )
    return names, codes


def load_hub(arguments: DataArguments) -> dict[str, Dataset]:
    """Load a data set by name and bring it to the columns image and label.

    Labels are matched by name (see ``order_names``). Whole-number labels have no names; their
    numbers become the class names.

    Returns:
        The train split and, where the data set has them, validation and test.

    Raises:
        InputError: split or column not found, or of the wrong kind.
        RunError: the Hub cannot be reached, or the data set cannot be loaded.
    """
    assert arguments.dataset_name is not None, "the hub source has a dataset name"
    loaded = _fetch(arguments.dataset_name, arguments.dataset_config_name)
    chosen = _choose_splits(loaded, arguments)
    image, label = arguments.image_column_name, arguments.label_column_name
    labels: dict[str, tuple[list[str], np.ndarray]] = {}
    for split, dataset in chosen.items():
        _check_columns(dataset, split, image, label)
        labels[split] = _read_label_names(dataset, split, label)
    class_names, numbers = order_names(name for names, _ in labels.values() for name in names)
    if all(name.isdecimal() for name in class_names):
        logger.warning(
            "The labels of %r are numbers without names; the numbers serve as class names.",
            arguments.dataset_name,
        )
    feature = ClassLabel(names=class_names)
    prepared: dict[str, Dataset] = {}
    for split, dataset in chosen.items():
        names, codes = labels[split]
        mapped = np.array([numbers[name] for name in names], dtype=np.int64)[codes]
        images = dataset.select_columns(image)
        if image != "image":
            images = images.rename_column(image, "image")
        # cast_column, unlike cast, does not write the images to the cache a second time.
        images = images.cast_column("image", Image())
        prepared[split] = images.add_column("label", mapped, feature=feature)
    return prepared
