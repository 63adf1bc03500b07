"""An image folder: one folder per class, inside split folders or to be cut into splits."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, NamedSplit

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.text import abbreviate, count
from siglip_flowers.data.names import is_text, order_names
from siglip_flowers.data.pixels.decoding import list_image_extensions

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderListing:
    """The images of an image folder.

    Attributes:
        class_names: Names of the classes.
        paths: Per split, the images in order of class and path.
        labels: Per split, their class numbers.
        left_out: What is not used, one sentence for each kind.
    """

    class_names: list[str]
    paths: dict[str, list[str]]
    labels: dict[str, np.ndarray]
    left_out: list[str]


def _list_folders(folder: Path, left_out: list[str]) -> dict[str, Path]:
    """Return the folders in a folder by name; images beside them are left out."""
    with os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    entries = [entry for entry in entries if not entry.name.startswith(".")]
    folders = {entry.name: Path(entry.path) for entry in entries if entry.is_dir()}
    loose = sum(not entry.is_dir() and _is_image(entry.name) for entry in entries)
    if folders and loose:
        left_out.append(f"{count(loose, 'image')} in {folder}, outside the class folders")
    return folders


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in list_image_extensions()


def _find_splits(data_dir: Path, left_out: list[str]) -> dict[str, dict[str, Path]]:
    """Return the class folders of each split; without split folders, all of them are train.

    A folder with the name of a split is one if it, or another such folder, has class folders.
    Otherwise it is a class like the others.
    """
    folders = _list_folders(data_dir, left_out)
    found: dict[str, Path] = {}
    for split, aliases in SPLIT_FOLDERS.items():
        matches = [path for name, path in folders.items() if name.lower() in aliases]
        if len(matches) > 1:
            raise InputError(
                f"--data_dir {data_dir} has two {split} folders, {matches[0].name} and "
                f"{matches[1].name}. Keep one."
            )
        if matches:
            found[split] = matches[0]
    classes = {split: _list_folders(path, left_out) for split, path in found.items()}
    if not any(classes.values()):
        if len(folders) == len(found):
            raise InputError(
                f"{data_dir} has no class folders. An image folder holds one folder per class, or "
                "train/, validation/ and test/ with one folder per class."
            )
        return {"train": folders}
    if not classes.get("train"):
        raise InputError(
            f"--data_dir {data_dir} has {' and '.join(path.name for path in found.values())} but "
            "no train folder with class folders. Add one, or put the class folders directly into "
            "--data_dir."
        )
    for split in [split for split, inside in classes.items() if not inside]:
        left_out.append(f"{found[split].name}/ has no class folders, so it has no labels")
        del classes[split]
    others = [f"{name}/" for name, path in folders.items() if path not in found.values()]
    if others:
        left_out.append(f"{abbreviate(others)} beside the split folders")
    return classes


def _walk(folder: Path) -> Iterator[str]:
    """Yield the files in a folder and its subfolders, except hidden ones, in order of the path."""

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        # Links to folders are not followed in here, since they may lead back.
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        names = [name for name in sorted(files) if not name.startswith(".")]
        yield from (os.path.join(place, name) for name in names + links)


def _describe_endings(files: Iterable[str]) -> str:
    """Return a text such as ``9 files of other formats (8 .heic, 1 .txt)``."""
    endings = Counter(os.path.splitext(file)[1].lower() or "no extension" for file in files)
    kinds = [f"{number} {ending}" for ending, number in endings.most_common()]
    return f"{count(endings.total(), 'file')} of other formats ({abbreviate(kinds)})"


def list_folder(data_dir: Path) -> FolderListing:
    """List the images of an image folder and its subfolders without opening any.

    Hidden files and folders are left out silently; links to class folders are followed.

    Raises:
        InputError: No class folders, or two folders for one split.
    """
    left_out: list[str] = []
    others: list[str] = []
    listing = FolderListing([], {}, {}, left_out)
    try:
        classes = _find_splits(data_dir, left_out)
        names, numbers = order_names(name for folders in classes.values() for name in folders)
        listing.class_names.extend(names)
        for split, folders in classes.items():
            rows = []
            for name, folder in folders.items():
                for path in _walk(folder.absolute()):
                    if not _is_image(path):
                        others.append(path)
                    elif is_text(path):
                        rows.append((path, numbers[name]))
                    else:
                        raise InputError(
                            f"The image {path!r} has a name that is not UTF-8. Rename it."
                        )
            if not rows:
                raise InputError(
                    f"--data_dir {data_dir} has no images in the class folders of the {split} "
                    f"split ({abbreviate(list(folders))}). Add some, or remove the folder."
                )
            listing.paths[split] = [path for path, _ in rows]
            listing.labels[split] = np.array([label for _, label in rows], dtype=np.int64)
    except OSError as error:
        raise InputError(
            f"--data_dir {data_dir} cannot be read ({error.filename}: {error.strerror}). Check "
            "the path and its permissions."
        ) from error
    if others:
        left_out.append(_describe_endings(others))
    return listing


def load_folder(data_dir: Path) -> dict[str, Dataset]:
    """Load an image folder as data sets with the columns image and label.

    One line says what is read and what is left out, if anything is.

    Raises:
        InputError: as :func:`list_folder`.
    """
    listing = list_folder(data_dir)
    if listing.left_out:
        logger.warning(
            "%s: read %s; left out: %s.",
            data_dir,
            count(sum(map(len, listing.paths.values())), "image"),
            "; ".join(listing.left_out),
        )
    features = Features(image=Image(), label=ClassLabel(names=listing.class_names))
    return {
        split: Dataset.from_dict(
            {"image": paths, "label": listing.labels[split]},
            features=features,
            split=NamedSplit(split),
        )
        for split, paths in listing.paths.items()
    }
