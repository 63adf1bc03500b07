"""Any data set of the Hugging Face Hub, or a local one, with an image and a label column."""

import logging
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HfHubHTTPError

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.paths import find_nearest, is_path, prepare_hub
from siglip_flowers.base.text import abbreviate
from siglip_flowers.config import DataArguments
from siglip_flowers.data.names import order_names
from siglip_flowers.data.splits import SPLIT_NAMES

# The error base class of huggingface_hub's HTTP client, which has changed twice.
CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
# Other names that data sets give to a split, tried if the option has its default.
SPLIT_ALIASES = {"validation": ("valid", "val", "dev")}
# Types of columns that are read besides Image and ClassLabel.
COLUMN_TYPES = {
    "image": r"(large_)?(string|binary)(_view)?",
    "label": r"(large_)?string(_view)?|u?int\d+|bool",
}
# A split of this name is not used, and cut from the training split instead.
NO_SPLIT = "none"

logger = logging.getLogger(__name__)


def check_hub_arguments(arguments: DataArguments) -> None:
    """Check what can be checked without the network.

    Raises:
        InputError: a local path that does not exist, or one split named twice.
    """
    name = arguments.dataset_name
    assert name is not None, "the hub source has a dataset name"
    if is_path(name) and not Path(name).exists():
        raise InputError(
            f"--dataset_name {name} does not exist; the nearest existing directory is "
            f"{find_nearest(Path(name))}. Give an existing path or a Hub id (owner/name)."
        )
    chosen = [getattr(arguments, f"{split}_split_name") for split in SPLIT_NAMES]
    used = [name for name in chosen if name != NO_SPLIT]
    if len(set(used)) < len(used):
        raise InputError(
            f"The split names are {', '.join(chosen)}, but must differ. The name {NO_SPLIT} cuts a "
            "split from the training split."
        )


def _fetch(name: str, config_name: str | None) -> DatasetDict:
    """Load all splits of a data set, from disk if ``save_to_disk`` wrote it."""
    asked = f"data set {name!r}" + (f", configuration {config_name!r}" if config_name else "")
    if not Path(name).exists():
        prepare_hub()
    try:
        saved = (Path(name) / "dataset_dict.json").is_file()
        loaded = (
            datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config_name)
        )
    except DatasetNotFoundError as error:
        raise RunError(
            f"The {asked} is not on the Hugging Face Hub, or needs a login. Check the name, or "
            "run 'hf auth login'."
        ) from error
    except (DatasetsError, OSError, ValueError, RuntimeError, CLIENT_ERROR) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RunError(
            f"The {asked} cannot be loaded ({reason}). Offline, pass --data_dir with local images, "
            "or use --data_source procedural."
        ) from error
    assert isinstance(loaded, DatasetDict), "named splits were not asked for one by one"
    return loaded


def _choose_splits(loaded: DatasetDict, arguments: DataArguments) -> dict[str, Dataset]:
    """Map the data set's split names to train, validation and test; only train must exist."""
    chosen: dict[str, Dataset] = {}
    for split in SPLIT_NAMES:
        name = getattr(arguments, f"{split}_split_name")
        is_default = name == split
        candidates = [name, *(SPLIT_ALIASES.get(split, ()) if is_default else ())]
        found = next((candidate for candidate in candidates if candidate in loaded), None)
        if found is not None:
            chosen[split] = loaded[found]
        elif split == "train" or not (is_default or name == NO_SPLIT):
            raise InputError(
                f"The data set {arguments.dataset_name!r} has no split {name!r}, only "
                f"{', '.join(loaded)}. Choose one with --{split}_split_name."
            )
    return chosen


def _find_column(dataset: Dataset, kind: str, name: str) -> Any:
    """Return the feature of the column of images or labels."""
    if name not in dataset.column_names:
        raise InputError(
            f"The {dataset.split} split has no column {name!r}, only "
            f"{', '.join(dataset.column_names)}. Choose one with --{kind}_column_name."
        )
    feature = dataset.features[name]
    usable = (
        isinstance(feature, Image if kind == "image" else ClassLabel)
        or (isinstance(feature, Value) and re.fullmatch(COLUMN_TYPES[kind], feature.dtype))
        or (kind == "image" and isinstance(feature, dict) and feature.keys() <= {"bytes", "path"})
    )
    if not usable:
        raise InputError(
            f"The column {name!r} of the {dataset.split} split holds {feature}, not {kind}s. "
            f"Choose another with --{kind}_column_name."
        )
    return feature


def _read_labels(dataset: Dataset, column: str) -> tuple[list[str], np.ndarray]:
    """Return the names of a label column, and for each row an index into them, or -1."""
    feature = _find_column(dataset, "label", column)
    values = dataset.select_columns(column).with_format("arrow")[:][column].combine_chunks()
    if isinstance(feature, ClassLabel):
        names = list(feature.names)
    else:
        encoded = values.dictionary_encode()
        values, names = encoded.indices, [str(name) for name in encoded.dictionary.to_pylist()]
    codes = values.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return names, np.where(codes < len(names), codes, -1)


def _label_splits(
    chosen: dict[str, Dataset], arguments: DataArguments
) -> dict[str, tuple[list[str], np.ndarray]]:
    """Read the labels of all splits; a held-out split without any is left out."""
    labels = {}
    for split, dataset in chosen.items():
        names, codes = _read_labels(dataset, arguments.label_column_name)
        unlabeled = int(np.sum(codes < 0))
        if unlabeled == len(dataset) and split != "train":
            logger.warning(
                "The %s split of %r has no labels and is left out; it is cut from the training "
                "split, or --%s_split_name names another.",
                split,
                arguments.dataset_name,
                split,
            )
        elif unlabeled:
            raise InputError(
                f"{unlabeled} of {len(dataset)} rows of the {split} split have no label in the "
                f"column {arguments.label_column_name!r}. Remove them, or choose another split "
                f"with --{split}_split_name."
            )
        else:
            labels[split] = names, codes
    return labels


def load_hub(arguments: DataArguments) -> dict[str, Dataset]:
    """Load a data set by name and bring it to the columns image and label.

    Labels are matched by name (see ``order_names``); names that no row uses are dropped.
    Whole-number labels have no names; their numbers become the class names.

    Returns:
        The train split and, if the data set has them with labels, validation and test.

    Raises:
        InputError: split or column not found, or of the wrong kind.
        RunError: the Hub cannot be reached, or the data set cannot be loaded.
    """
    assert arguments.dataset_name is not None, "the hub source has a dataset name"
    loaded = _fetch(arguments.dataset_name, arguments.dataset_config_name)
    chosen = _choose_splits(loaded, arguments)
    labels = _label_splits(chosen, arguments)
    used = {names[code] for names, codes in labels.values() for code in np.unique(codes)}
    unused = {name for names, _ in labels.values() for name in names} - used
    if unused:
        logger.warning("Classes without images are left out: %s.", abbreviate(sorted(unused)))
    class_names, numbers = order_names(used)
    if all(name.isdecimal() for name in class_names):
        logger.warning(
            "The labels of %r are numbers without names; the numbers serve as class names.",
            arguments.dataset_name,
        )
    prepared: dict[str, Dataset] = {}
    for split, (names, codes) in labels.items():
        mapped = np.array([numbers.get(name, -1) for name in names], dtype=np.int64)[codes]
        _find_column(chosen[split], "image", arguments.image_column_name)
        images = chosen[split].select_columns(arguments.image_column_name)
        if arguments.image_column_name != "image":
            images = images.rename_column(arguments.image_column_name, "image")
        # cast_column, unlike cast, does not write the images to the cache a second time.
        images = images.cast_column("image", Image())
        feature = ClassLabel(names=class_names)
        prepared[split] = images.add_column("label", mapped, feature=feature)
    return prepared
