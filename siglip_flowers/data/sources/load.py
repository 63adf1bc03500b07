"""``load_data`` brings every source into the same shape.

It is two steps: ``open_data`` reads what is known without decoding an image, ``check_images``
decodes each once.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from datasets import DatasetDict

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.paths import describe_missing, is_path
from siglip_flowers.config import DataArguments
from siglip_flowers.config.fields import list_options
from siglip_flowers.data.inspection import check_images
from siglip_flowers.data.pixels.tensors import PixelForm
from siglip_flowers.data.sources.folder import load_folder
from siglip_flowers.data.sources.hub import load_hub
from siglip_flowers.data.sources.oxford import (
    check_local_files,
    load_oxford,
    looks_like_oxford,
    prepare_download,
)
from siglip_flowers.data.sources.table import FORMATS, find_tables, load_table
from siglip_flowers.data.splits import (
    ClassificationData,
    check_untrained,
    draw_rows,
    fill_missing_splits,
    require_training_images,
    take_shots,
)

_COLUMNS = ("image_column_name", "label_column_name")
# Options that other sources do not use.
OWN_OPTIONS = {
    "oxford": ("oxford_url", "split_protocol"),
    "hub": (
        *(*_COLUMNS, "validation_fraction"),
        *("dataset_config_name", "train_split_name", "validation_split_name", "test_split_name"),
    ),
    "table": (*_COLUMNS, "validation_fraction"),
    "folder": ("validation_fraction",),
    "procedural": ("procedural_images_per_class", "procedural_image_size", "procedural_seed"),
}

logger = logging.getLogger(__name__)


def resolve_source(arguments: DataArguments) -> str:
    """Return oxford, hub, folder, table or procedural: the option, or what the others imply."""
    if arguments.data_source is not None:
        return arguments.data_source
    if arguments.dataset_name is not None:
        return "hub"
    if arguments.data_dir is not None and not looks_like_oxford(Path(arguments.data_dir)):
        return "table" if find_tables(Path(arguments.data_dir)) else "folder"
    return "oxford"


def _warn_of_unused(arguments: DataArguments, source: str) -> None:
    unused = [
        f"--{field.name}"
        for field in list_options(DataArguments)
        # Version 0.1 saved the last two as names of columns.
        if getattr(arguments, field.name) not in (field.default, "image", "label")
        and any(field.name in names for names in OWN_OPTIONS.values())
        and field.name not in OWN_OPTIONS.get(source, ())
    ]
    if unused:
        logger.warning("The data source %s does not use %s.", source, ", ".join(unused))


def check_data_arguments(arguments: DataArguments) -> None:
    """Check everything that needs neither a download nor decoding an image.

    Raises:
        InputError: Options that contradict each other, a missing or wrong directory or file.
    """
    source = resolve_source(arguments)
    folder = Path(arguments.data_dir) if arguments.data_dir is not None else None
    if folder is not None:
        if source not in ("oxford", "folder", "table"):
            raise InputError(f"--data_source {source} does not use --data_dir {folder}. Drop one.")
        if not folder.exists():
            raise InputError(describe_missing("--data_dir", folder))
        if not (find_tables(folder) if source == "table" else folder.is_dir()):
            what = "has no table" if folder.is_dir() else "is neither a directory nor a table"
            raise InputError(f"--data_dir {folder} {what} ({', '.join(FORMATS)}). Name the file.")
    if source == "oxford" and folder is not None:
        check_local_files(folder)
    name = arguments.dataset_name or ""
    if is_path(name) and not Path(name).exists():
        missing = describe_missing("--dataset_name", name)
        raise InputError(f"{missing} Give an existing path or a Hub id (owner/name).")


def download_data(arguments: DataArguments) -> None:
    """Download what ``load_data`` needs of the original files.

    Every process of a launch calls it before they wait for one another: the others wait for the
    download at a file's lock, where no collective can time out.

    Raises:
        RunError: the download failed.
    """
    if resolve_source(arguments) == "oxford" and arguments.data_dir is None:
        prepare_download(arguments.oxford_url)


def _load_source(arguments: DataArguments, source: str) -> tuple[DatasetDict, str, str]:
    """Return all three splits, the name of the protocol and a title."""
    if source == "oxford":
        protocol = arguments.split_protocol
        splits = load_oxford(arguments.data_dir, arguments.oxford_url, protocol)
        return splits, protocol, f"Oxford Flowers102, {protocol} splits"
    if source == "procedural":
        from siglip_flowers.data.sources.procedural import load_procedural

        size = arguments.procedural_image_size
        splits = load_procedural(
            arguments.procedural_images_per_class, size, arguments.procedural_seed
        )
        return splits, "procedural", f"procedural flowers (drawn, {size} px)"
    if source == "hub":
        given, title, origin = load_hub(arguments), f"{arguments.dataset_name}", "the train split"
    else:
        path = Path(str(arguments.data_dir))
        if source == "folder":
            given, kind, origin = load_folder(path), "image folder", "one folder"
        else:
            given, kind, origin = load_table(path, arguments), "table", "one table"
        title = f"{path.resolve().name} ({kind})"
    fraction = arguments.validation_fraction
    splits, protocol = fill_missing_splits(given, fraction, arguments.split_seed, origin)
    if protocol == "as given" and fraction != DataArguments.validation_fraction:
        logger.warning("--validation_fraction has no effect: the data have all three splits.")
    return splits, protocol, f"{title}, splits {protocol}"


def _thin_splits(splits: DatasetDict, arguments: DataArguments) -> DatasetDict:
    seed = arguments.split_seed
    train_seed = seed if arguments.shots_seed is None else arguments.shots_seed
    train = splits["train"]
    if arguments.shots is not None:
        train = take_shots(train, arguments.shots, train_seed)
    thinned = DatasetDict(train=draw_rows(train, arguments.max_train_samples, train_seed, "train"))
    for name in ("validation", "test"):
        thinned[name] = draw_rows(splits[name], arguments.max_eval_samples, seed, name)
    return thinned


def open_data(arguments: DataArguments) -> ClassificationData:
    """Load the data without decoding an image, and draw the requested subsets.

    Raises:
        InputError: Bad options or files, or a class with no training image.
        RunError: A failed download, or a damaged archive.
    """
    check_data_arguments(arguments)
    source = resolve_source(arguments)
    _warn_of_unused(arguments, source)
    splits, protocol, title = _load_source(arguments, source)
    require_training_images(splits["train"])
    data = ClassificationData(_thin_splits(splits, arguments), source, protocol, title)
    if arguments.trained_run is not None and not arguments.allow_duplicates:
        check_untrained(arguments.trained_run, data)
    return data


def load_data(
    arguments: DataArguments, forms: Mapping[str, PixelForm] | None = None
) -> ClassificationData:
    """Load the data, draw the requested subsets and check every image once.

    Raises:
        InputError: As :func:`open_data` and :func:`check_images`.
        RunError: As these.
    """
    return check_images(open_data(arguments), arguments, forms)
