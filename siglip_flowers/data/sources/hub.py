"""Any data set of the Hugging Face Hub, or a local one, with an image and a label column."""

from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.paths import OFFLINE_WAYS, prepare_hub
from siglip_flowers.config import DataArguments
from siglip_flowers.data.sources.table import is_saved, prepare_columns
from siglip_flowers.data.splits import SPLIT_ALIASES, SPLIT_NAMES

# A split of this name is not used, and cut from the training split instead.
NO_SPLIT = "none"


def _fetch(name: str, config_name: str | None) -> DatasetDict:
    """Load all splits of a data set, from disk if ``save_to_disk`` wrote it."""
    if not Path(name).exists():
        prepare_hub()
    try:
        if is_saved(Path(name)):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, config_name)
    # The errors of datasets and of the Hub's client have no base class in common.
    except Exception as error:
        asked = f"dataset {name!r}" + (f", configuration {config_name!r}" if config_name else "")
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RunError(f"The {asked} cannot be loaded ({reason}). {OFFLINE_WAYS}") from error
    return DatasetDict(train=loaded) if isinstance(loaded, Dataset) else loaded


def _choose_splits(loaded: DatasetDict, arguments: DataArguments) -> dict[str, Dataset]:
    """Map the data set's split names to train, validation and test; only train must exist."""
    chosen: dict[str, Dataset] = {}
    for split in SPLIT_NAMES:
        name = getattr(arguments, f"{split}_split_name")
        names = SPLIT_ALIASES[split] if name == split else (name,)
        found = [each for each in names if each in loaded]
        if found:
            chosen[split] = loaded[found[0]]
        elif split == "train" or name not in (split, NO_SPLIT):
            raise InputError(
                f"The dataset {arguments.dataset_name!r} has no split {name!r}, only "
                f"{', '.join(loaded)}. Choose one with --{split}_split_name."
            )
    return chosen


def load_hub(arguments: DataArguments) -> dict[str, Dataset]:
    """Load a data set by name and bring it to the columns image and label.

    Returns:
        The train split and, if the data set has them with labels, validation and test.

    Raises:
        InputError: A split is not found; otherwise as ``prepare_columns``.
        RunError: The Hub cannot be reached, or the data set cannot be loaded.
    """
    name = str(arguments.dataset_name)
    loaded = _fetch(name, arguments.dataset_config_name)
    splits = _choose_splits(loaded, arguments)
    # Paths in the tables of a folder are relative to it; save_to_disk keeps them as they were.
    folder = name if Path(name).is_dir() and not is_saved(Path(name)) else ""
    return prepare_columns(splits, arguments, name, dict.fromkeys(splits, folder))
