"""Names for rows, so that a split, a prediction and a complaint can be traced to an image."""

import posixpath
from collections import Counter
from functools import lru_cache

import pyarrow.compute as pc
from datasets import Dataset

from siglip_flowers.data.names import normalize_name
from siglip_flowers.data.splits import get_labels


def get_image_paths(dataset: Dataset) -> list[str | None]:
    """Return the path stored with each image, without reading any image."""
    paths = pc.struct_field(dataset.data.column("image"), "path")
    # A selected data set is its whole table plus row numbers; Dataset has no public way to
    # read one struct field through them without copying the bytes of every image.
    rows = dataset._indices
    if rows is not None:
        paths = paths.take(rows.column(0))
    return paths.to_pylist()


def _list_source_rows(dataset: Dataset) -> list[int]:
    rows = dataset._indices
    return list(range(len(dataset))) if rows is None else rows.column(0).to_pylist()


def _split_path(path: str) -> tuple[str, str, str]:
    """Return folder name, stem and extension; pathlib takes ten times as long."""
    folder, _, file = path.replace("\\", "/").rpartition("/")
    stem, extension = posixpath.splitext(file)
    return folder.rpartition("/")[2], stem, extension


def image_ids(dataset: Dataset) -> list[str]:
    """Name every row of a split; names are unique within it and survive selecting rows.

    The stem of the image's file, after its class where the file lies in a folder of that name
    (``rose/0001``). A row without a path is ``<split>_<row number in the source>``. Two rows with
    the same name get the file's extension and, should that not do, the row number added.
    """
    class_names = dataset.features["label"].names
    normalize = lru_cache(normalize_name)
    prefix = dataset.split if dataset.split is not None else "row"
    rows = _list_source_rows(dataset)
    ids, extensions = [], []
    for path, row, label in zip(
        get_image_paths(dataset), rows, get_labels(dataset).tolist(), strict=True
    ):
        folder, stem, extension = ("", f"{prefix}_{row}", "") if path is None else _split_path(path)
        in_class_folder = folder != "" and normalize(folder) == normalize(class_names[label])
        ids.append(f"{folder}/{stem}" if in_class_folder else stem)
        extensions.append(extension)
    for suffixes in (extensions, [f"_{row}" for row in rows]):
        counts = Counter(ids)
        ids = [
            name + suffix if counts[name] > 1 else name
            for name, suffix in zip(ids, suffixes, strict=True)
        ]
    return ids
