"""An image folder: one folder a class, inside split folders or to be cut into splits."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, NamedSplit

from siglip_flowers.base.errors import InputError
from siglip_flowers.data.names import abbreviate, is_text, order_names
from siglip_flowers.data.pixels.decoding import list_image_extensions

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class FolderListing:
    """The images of an image folder: per split, paths and class numbers in order of the path."""

    class_names: list[str]
    paths: dict[str, list[str]]
    labels: dict[str, np.ndarray]


def _list_folders(folder: Path) -> dict[str, Path]:
    with os.scandir(folder) as entries:
        return {
            entry.name: Path(entry.path)
            for entry in sorted(entries, key=lambda entry: entry.name)
            if entry.is_dir() and not entry.name.startswith(".")
        }


def _find_split_folders(data_dir: Path, folders: dict[str, Path]) -> dict[str, Path]:
    """Map split names to folders; without any split folder, the whole directory is train."""
    found: dict[str, Path] = {}
    for split, aliases in SPLIT_FOLDERS.items():
        matches = [path for name, path in folders.items() if name.lower() in aliases]
        if len(matches) > 1:
            raise InputError(
                f"--data_dir {data_dir} has two {split} folders, {matches[0].name} and "
                f"{matches[1].name}; keep one."
            )
        if matches:
            found[split] = matches[0]
    if found and "train" not in found:
        raise InputError(
            f"--data_dir {data_dir} has {' and '.join(path.name for path in found.values())} but "
            "no train folder; add one, or put the class folders directly into --data_dir."
        )
    return found or {"train": data_dir}


def list_folder(data_dir: Path) -> FolderListing:
    """List the images of an image folder without opening any.

    Hidden files and files without an image's extension are left out; links are followed.

    Raises:
        InputError: no class folders, or two folders for one split.
    """
    try:
        splits = _find_split_folders(data_dir, _list_folders(data_dir))
        classes = {split: _list_folders(path) for split, path in splits.items()}
        files = {
            split: {name: sorted(os.listdir(path)) for name, path in folders.items()}
            for split, folders in classes.items()
        }
    except OSError as error:
        raise InputError(
            f"--data_dir {data_dir} cannot be read ({error.filename}: {error.strerror}); "
            "check the path and its permissions."
        ) from error
    for split, path in splits.items():
        if not classes[split]:
            raise InputError(
                f"{path} has no class folders; an image folder holds one folder a class, or "
                "train/, validation/ and test/ with one folder a class."
            )
    class_names, numbers = order_names(name for folders in classes.values() for name in folders)
    extensions = list_image_extensions()
    listing = FolderListing(class_names, {}, {})
    for split, folders in classes.items():
        rows = [
            (str(path.absolute() / file), numbers[name])
            for name, path in folders.items()
            for file in files[split][name]
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in extensions
        ]
        if not rows:
            raise InputError(
                f"{splits[split]} holds no images in its class folders "
                f"({abbreviate(list(folders))}); add some, or remove the folder."
            )
        for image, _ in rows:
            if not is_text(image):
                raise InputError(f"The image {image!r} has a name that is not UTF-8; rename it.")
        listing.paths[split] = [path for path, _ in rows]
        listing.labels[split] = np.array([label for _, label in rows], dtype=np.int64)
    return listing


def load_folder(listing: FolderListing) -> dict[str, Dataset]:
    """Turn a listing into data sets with the columns image and label."""
    features = Features(image=Image(), label=ClassLabel(names=listing.class_names))
    return {
        split: Dataset.from_dict(
            {"image": paths, "label": listing.labels[split]},
            features=features,
            split=NamedSplit(split),
        )
        for split, paths in listing.paths.items()
    }
