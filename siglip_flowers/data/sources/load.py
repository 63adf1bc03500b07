"""``load_data`` brings every source into the same shape.

It is two steps: ``open_data`` reads what is known without decoding an image, ``check_images``
decodes each once.
"""

import dataclasses
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datasets import DatasetDict

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.paths import describe_missing
from siglip_flowers.base.text import abbreviate, count
from siglip_flowers.config import DataArguments
from siglip_flowers.data.inspection import SharedImage, inspect_images
from siglip_flowers.data.pixels.array_cache import locate_cache
from siglip_flowers.data.pixels.tensors import PixelForm
from siglip_flowers.data.rows import get_labels
from siglip_flowers.data.sources.folder import list_folder, load_folder
from siglip_flowers.data.sources.hub import check_hub_arguments, load_hub
from siglip_flowers.data.sources.oxford import (
    KNOWN_SHARED,
    check_local_files,
    load_oxford,
    looks_like_oxford,
    prepare_download,
)
from siglip_flowers.data.sources.table import FORMATS, find_tables, load_table
from siglip_flowers.data.splits import (
    draw_rows,
    fill_missing_splits,
    find_empty_classes,
    require_training_images,
    take_shots,
)
from siglip_flowers.runtime.devices import count_cores

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassificationData:
    """A data set ready for use: train, validation and test with the columns image and label.

    ``description`` is one line for titles. ``skipped`` has the ids of the unreadable images
    dropped from each split, ``shared`` the accepted pairs of images that are in two splits,
    ``checked`` says what was checked.
    """

    splits: DatasetDict
    source: str
    split_protocol: str
    description: str
    skipped: dict[str, list[str]] = field(default_factory=dict)
    shared: list[SharedImage] = field(default_factory=list)
    checked: str = ""

    @property
    def class_names(self) -> list[str]:
        """The name of each class number."""
        return list(self.splits["train"].features["label"].names)


def resolve_source(arguments: DataArguments) -> str:
    """Return oxford, hub, folder, table or procedural: the option, or what the others imply."""
    if arguments.data_source is not None:
        return arguments.data_source
    if arguments.dataset_name is not None:
        return "hub"
    if arguments.data_dir is not None and not looks_like_oxford(Path(arguments.data_dir)):
        return "table" if find_tables(Path(arguments.data_dir)) else "folder"
    return "oxford"


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
            raise InputError(f"--data_dir {folder} {what} ({', '.join(FORMATS)}). Name another.")
    if source == "hub":
        check_hub_arguments(arguments)
    elif source == "oxford" and folder is not None:
        check_local_files(folder)
    elif source == "oxford" and not arguments.oxford_url.startswith(("http://", "https://")):
        raise InputError(
            f"--oxford_url is {arguments.oxford_url!r}, but must start with http:// or https://. "
            "Pass a local directory with --data_dir."
        )
    elif source == "folder":
        assert folder is not None, "the folder source has a directory"
        listing = list_folder(folder)
        require_training_images(listing.labels["train"], listing.class_names)


def download_data(arguments: DataArguments) -> None:
    """Download what ``load_data`` needs of the original files.

    Every process of a launch calls it before they wait for one another: the others wait for the
    download at a file's lock, where no collective can time out.

    Raises:
        RunError: the download failed.
    """
    if resolve_source(arguments) == "oxford" and arguments.data_dir is None:
        check_data_arguments(arguments)
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
        assert arguments.data_dir is not None, "the folder and table sources have a path"
        path = Path(arguments.data_dir)
        given = (
            load_folder(path) if source == "folder" else load_table(find_tables(path), arguments)
        )
        kind = "image folder" if source == "folder" else "table"
        title, origin = f"{kind} {path.resolve().name}", f"one {kind.split()[-1]}"
    splits, protocol = fill_missing_splits(
        given, arguments.validation_fraction, arguments.split_seed, origin
    )
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


def _check_classes(splits: DatasetDict, limit: int | None) -> None:
    """Require images of every class, or warn if --max_train_samples left a class without any."""
    names = splits["train"].features["label"].names
    labels = get_labels(splits["train"])
    if limit is None:
        require_training_images(labels, names)
    elif empty := find_empty_classes(labels, names):
        logger.warning(
            "--max_train_samples %d leaves no training image of %s: %s.",
            limit,
            count(len(empty), "class"),
            abbreviate(empty),
        )


def open_data(arguments: DataArguments) -> ClassificationData:
    """Load the data without decoding an image, and draw the subsets that are asked for.

    Raises:
        InputError: Bad options or files, or a class with no training image.
        RunError: A failed download, or a damaged archive.
    """
    check_data_arguments(arguments)
    source = resolve_source(arguments)
    splits, protocol, title = _load_source(arguments, source)
    require_training_images(get_labels(splits["train"]), splits["train"].features["label"].names)
    return ClassificationData(_thin_splits(splits, arguments), source, protocol, title)


def check_images(
    data: ClassificationData,
    arguments: DataArguments,
    forms: Mapping[str, PixelForm] | None = None,
) -> ClassificationData:
    """Check every image of opened data once; return the data without those that are dropped.

    Args:
        data: From :func:`open_data`.
        arguments: Where the images come from.
        forms: By split, the pixels that will be asked for. They are put into the cache while the
            images are checked; without them images are not decoded here, see
            :func:`~siglip_flowers.data.inspection.inspect_images`.

    Raises:
        InputError: An image in two splits, or a class that has lost its training images.
        RunError: Unreadable images.
    """
    known: Collection[frozenset[str]] = KNOWN_SHARED if data.source == "oxford" else ()
    found = inspect_images(
        data.splits,
        workers=arguments.image_workers or count_cores(),
        skip_corrupt_images=arguments.skip_corrupt_images,
        cache_dir=locate_cache(arguments) if arguments.pixel_cache else None,
        allow_duplicates=arguments.allow_duplicates,
        known_shared=known,
        forms=forms,
    )
    _check_classes(found.splits, arguments.max_train_samples)
    shots = f", {arguments.shots} per class" if arguments.shots is not None else ""
    sizes = "/".join(str(len(dataset)) for dataset in found.splits.values())
    return dataclasses.replace(
        data,
        splits=found.splits,
        description=f"{data.description}{shots}, {sizes} images",
        skipped=found.skipped,
        shared=found.shared,
        checked=found.checked,
    )


def load_data(
    arguments: DataArguments, forms: Mapping[str, PixelForm] | None = None
) -> ClassificationData:
    """Load the data, draw the subsets that are asked for and check every image once.

    Raises:
        InputError: As :func:`open_data` and :func:`check_images`.
        RunError: As these.
    """
    return check_images(open_data(arguments), arguments, forms)
