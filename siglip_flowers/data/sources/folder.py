"""An image folder: one folder per class, inside split folders or to be cut into splits."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, NamedSplit

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.text import abbreviate, count
from siglip_flowers.data.names import describe_similar_names, is_text, order_names
from siglip_flowers.data.pixels.decoding import list_image_extensions
from siglip_flowers.data.splits import SPLIT_NAMES, recognize_split

# How the names of hidden folders and files begin, and of those that systems put beside images.
HIDDEN_NAMES = (".", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
# Read by Pillow if this package is installed.
HEIC_ENDINGS, HEIC_PACKAGE = (".heic", ".heif"), "pillow-heif"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderListing:
    """The images of an image folder.

    Attributes:
        class_names: Names of the classes.
        paths: Per split, the images in order of class and path.
        labels: Per split, their class numbers.
        notes: Sentences to warn of: classes of similar names, and what is read and left out.
    """

    class_names: list[str] = field(default_factory=list)
    paths: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def list_subfolders(folder: Path) -> dict[str, Path]:
    """Return the folders in a folder by name, in order, except hidden ones."""
    with os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    visible = [entry for entry in entries if not entry.name.startswith(HIDDEN_NAMES)]
    return {entry.name: Path(entry.path) for entry in visible if entry.is_dir()}


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in list_image_extensions()


def _walk(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield the files in a folder and its subfolders by path, and whether each is hidden."""

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        folders.sort()
        inside = os.path.relpath(place, folder).split(os.sep)
        hidden = any(part.startswith(HIDDEN_NAMES) and part != "." for part in inside)
        # Links to folders are not followed in here, since they may lead back.
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in sorted(files) + links:
            yield os.path.join(place, name), hidden or name.startswith(HIDDEN_NAMES)


def _count_images(folder: Path) -> int:
    """Return the number of visible images directly in a folder."""
    names = [name for name in os.listdir(folder) if not name.startswith(HIDDEN_NAMES)]
    return sum(map(_is_image, names))


def _find_class_folders(folder: Path, left_out: list[str]) -> dict[str, Path]:
    """Return the folders of classes in a folder; images beside them are left out.

    Raises:
        InputError: There is one folder only, whose folders look like the classes.
    """
    folders = list_subfolders(folder)
    if folders and (loose := _count_images(folder)):
        left_out.append(f"{count(loose, 'image')} in {folder}, outside the class folders")
    inner, only = folder, folders
    while len(only) == 1 and not _count_images(next(iter(only.values()))):
        inner = next(iter(only.values()))
        only = list_subfolders(inner)
    if inner != folder and len(only) > 1:
        raise InputError(
            f"{folder} has one folder only, and the class folders seem to be in {inner} "
            f"({abbreviate(list(only), 3)}). Pass --data_dir {inner}, or move them up."
        )
    return folders


def _find_splits(data_dir: Path, left_out: list[str]) -> dict[str, dict[str, Path]]:
    """Return the class folders of each split; without split folders, all of them are train."""
    folders = list_subfolders(data_dir)
    splits: dict[str, list[str]] = {}
    for name in folders:
        if split := recognize_split(name):
            splits.setdefault(split, []).append(name)
    for split, names in splits.items():
        if len(names) > 1:
            raise InputError(
                f"--data_dir {data_dir} has two {split} folders, {names[0]} and {names[1]}. Keep "
                "one."
            )
    found = {split: folders[splits[split][0]] for split in SPLIT_NAMES if split in splits}
    others = {name: path for name, path in folders.items() if path not in found.values()}
    full = [
        f"{name}/"
        for name, path in others.items()
        if any(_is_image(file) and not hidden for file, hidden in _walk(path))
    ]
    if found and full:
        named = abbreviate([f"{path.name}/" for path in found.values()])
        raise InputError(
            f"--data_dir {data_dir} has {named} beside {abbreviate(full)}: they are splits with "
            "something else beside them, or classes of which one is called like a split. Move "
            "the others away, or rename the class."
        )
    if found:
        left_out += [f"{name}/ beside the split folders (no images)" for name in others]
    places = found or {"train": data_dir}
    classes = {split: _find_class_folders(path, left_out) for split, path in places.items()}
    if not classes.get("train"):
        where = f"{data_dir} has no class folders" + (" in train/" if any(classes.values()) else "")
        raise InputError(
            f"{where}. An image folder holds one folder per class, or train/, validation/ and "
            "test/ with one folder per class."
        )
    for split in [split for split, inside in classes.items() if not inside]:
        loose = count(_count_images(found[split]), "image")
        left_out.append(f"{loose} in {found[split].name}/, which has no class folders")
        del classes[split]
    return classes


def _describe_endings(files: Iterable[str]) -> str:
    """Return a text such as ``9 files of other formats (8 .heic, 1 .txt)``."""
    endings = Counter(os.path.splitext(file)[1].lower() or "no extension" for file in files)
    kinds = [f"{number} {ending}" for ending, number in endings.most_common()]
    hint = f"; {HEIC_PACKAGE} reads HEIC" if any(map(endings.get, HEIC_ENDINGS)) else ""
    return f"{count(endings.total(), 'file')} of other formats ({abbreviate(kinds)}{hint})"


def list_folder(data_dir: Path) -> FolderListing:
    """List the images of an image folder and its subfolders without opening any.

    Links to class folders are followed.

    Raises:
        InputError: No class folders, ones that are a level deeper, two folders for one split, or
            split folders beside others.
    """
    listing, hidden_images = FolderListing(), 0
    left_out: list[str] = []
    others: list[str] = []
    try:
        classes = _find_splits(data_dir, left_out)
        given = {name for folders in classes.values() for name in folders}
        names, numbers = order_names(given)
        listing.class_names.extend(names)
        listing.notes.extend(describe_similar_names(given))
        for split, folders in classes.items():
            rows = []
            for name, folder in folders.items():
                for path, hidden in _walk(folder.absolute()):
                    if hidden:
                        hidden_images += _is_image(path)
                    elif not _is_image(path):
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
    if hidden_images:
        left_out.append(count(hidden_images, "hidden image"))
    if others:
        left_out.append(_describe_endings(others))
    if left_out:
        read = count(sum(map(len, listing.paths.values())), "image")
        listing.notes.append(f"{data_dir}: read {read}; left out: {'; '.join(left_out)}.")
    return listing


def load_folder(data_dir: Path) -> dict[str, Dataset]:
    """Load an image folder as data sets with the columns image and label, and log its notes.

    Raises:
        InputError: As :func:`list_folder`.
    """
    listing = list_folder(data_dir)
    for note in listing.notes:
        logger.warning("%s", note)
    features = Features(image=Image(), label=ClassLabel(names=listing.class_names))
    return {
        split: Dataset.from_dict(
            {"image": paths, "label": listing.labels[split]},
            features=features,
            split=NamedSplit(split),
        )
        for split, paths in listing.paths.items()
    }
