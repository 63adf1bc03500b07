"""An image folder: one folder per class, inside split folders or to be cut into splits."""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image, NamedSplit
from tqdm.auto import tqdm

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.text import abbreviate, count
from siglip_flowers.data.names import is_text, order_names
from siglip_flowers.data.pixels.decoding import HEIC_EXTENSIONS, list_image_extensions
from siglip_flowers.data.splits import recognize_split

# How the names of hidden folders and files begin, and of those that systems put beside images.
HIDDEN_NAMES = (".", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")

logger = logging.getLogger(__name__)


def list_subfolders(folder: Path) -> dict[str, Path]:
    """Return the folders in a folder by name, in order, except hidden ones."""
    return {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(HIDDEN_NAMES)
    }


def _is_image(path: str, unread: frozenset[str] = frozenset()) -> bool:
    extension = os.path.splitext(path)[1].lower()
    return extension in list_image_extensions() or extension in unread


class _Files(NamedTuple):
    """What a folder and its subfolders hold: images, hidden images, and files of other formats."""

    images: list[str]
    hidden: list[str]
    others: list[str]


def _list_files(folder: Path) -> _Files:
    """List the files in a folder and its subfolders, in order; other hidden files are left out."""

    def fail(error: OSError) -> None:
        raise error

    found = _Files([], [], [])
    for place, folders, files in os.walk(folder, onerror=fail):
        folders.sort()
        above = Path(place).relative_to(folder).parts
        # Links to folders are not followed in here, since they may lead back.
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in sorted(files) + links:
            is_hidden = any(part.startswith(HIDDEN_NAMES) for part in (*above, name))
            if _is_image(name):
                kind = found.hidden if is_hidden else found.images
                kind.append(os.path.join(place, name))
            elif not is_hidden:
                found.others.append(name)
    return found


def _count_images(folder: Path) -> int:
    """Return the number of visible images directly in a folder, with those that need a plugin."""
    names = [name for name in os.listdir(folder) if not name.startswith(HIDDEN_NAMES)]
    return sum(_is_image(name, HEIC_EXTENSIONS) for name in names)


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
    found: dict[str, Path] = {}
    for name, path in folders.items():
        if split := recognize_split(name):
            found.setdefault(split, path)
    others = {name: path for name, path in folders.items() if path not in found.values()}
    full = [f"{name}/" for name, path in others.items() if found and _list_files(path).images]
    if full:
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
    """Return a text such as ``9 files of other formats (8 .heic, 1 .txt)``, "" for no files."""
    endings = Counter(os.path.splitext(file)[1].lower() or "no extension" for file in files)
    kinds = [f"{number} {ending}" for ending, number in endings.most_common()]
    hint = "; HEIC requires pip install pillow-heif" if HEIC_EXTENSIONS & endings.keys() else ""
    if not kinds:
        return ""
    return f"{count(endings.total(), 'file')} of other formats ({abbreviate(kinds)}{hint})"


def load_folder(data_dir: Path) -> dict[str, Dataset]:
    """Load an image folder as data sets with the columns image and label.

    Subfolders are read, links to class folders are followed, and no image is opened. What is left
    out, and classes of similar names, are warnings.

    Raises:
        InputError: No class folders, ones that are a level deeper, two folders for one split, or
            split folders beside others.
    """
    left_out: list[str] = []
    splits = _find_splits(data_dir, left_out)
    files = {
        split: {
            name: _list_files(folder.absolute())
            for name, folder in tqdm(folders.items(), f"listing {split}", leave=False, disable=None)
        }
        for split, folders in splits.items()
    }
    names, numbers = order_names(name for classes in files.values() for name in classes)
    walked = [found for classes in files.values() for found in classes.values()]
    others = _describe_endings(name for found in walked for name in found.others)
    features = Features(image=Image(), label=ClassLabel(names=names))
    data = {}
    for split, classes in files.items():
        rows = [(path, numbers[name]) for name, found in classes.items() for path in found.images]
        if not rows:
            raise InputError(
                f"--data_dir {data_dir} has no images in the class folders of the {split} "
                f"split ({abbreviate(list(classes))}){others and f', only {others}'}. Add some, or "
                "remove the folder."
            )
        for path, _ in rows:
            if not is_text(path):
                raise InputError(f"The image {path!r} has a name that is not UTF-8. Rename it.")
        # An Arrow array, which is not encoded row by row.
        paths = pa.array([path for path, _ in rows])
        columns = {"image": paths, "label": [label for _, label in rows]}
        data[split] = Dataset.from_dict(columns, features=features, split=NamedSplit(split))
    if hidden := sum(len(found.hidden) for found in walked):
        left_out.append(count(hidden, "hidden image"))
    if others:
        left_out.append(others)
    if left_out:
        read = count(sum(map(len, data.values())), "image")
        logger.warning("%s: read %s; left out: %s.", data_dir, read, "; ".join(left_out))
    return data
