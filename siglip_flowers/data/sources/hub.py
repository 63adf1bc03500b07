"""Any data set of the Hugging Face Hub, or a local one, with an image and a label column."""

from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HfHubHTTPError

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.paths import describe_missing, is_path, prepare_hub
from siglip_flowers.config import DataArguments
from siglip_flowers.data.sources.table import prepare_columns
from siglip_flowers.data.splits import SPLIT_ALIASES, SPLIT_NAMES

# The error base class of huggingface_hub's HTTP client, which has changed twice.
CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
# A split of this name is not used, and cut from the training split instead.
NO_SPLIT = "none"


def check_hub_arguments(arguments: DataArguments) -> None:
    """Check what can be checked without the network.

    Raises:
        InputError: a local path that does not exist, or one split named twice.
    """
    name = arguments.dataset_name
    assert name is not None, "the hub source has a dataset name"
    if is_path(name) and not Path(name).exists():
        missing = describe_missing("--dataset_name", name)
        raise InputError(f"{missing} Give an existing path or a Hub id (owner/name).")
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
        candidates = SPLIT_ALIASES[split] if is_default else (name,)
        found = next((candidate for candidate in candidates if candidate in loaded), None)
        if found is not None:
            chosen[split] = loaded[found]
        elif split == "train" or not (is_default or name == NO_SPLIT):
            raise InputError(
                f"The data set {arguments.dataset_name!r} has no split {name!r}, only "
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
    assert arguments.dataset_name is not None, "the hub source has a dataset name"
    loaded = _fetch(arguments.dataset_name, arguments.dataset_config_name)
    return prepare_columns(_choose_splits(loaded, arguments), arguments, arguments.dataset_name)
