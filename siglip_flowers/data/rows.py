"""Rows of a data set: labels, image files, ids, digests and decoded images."""

import hashlib
import json
import os
import posixpath
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from json.encoder import encode_basestring_ascii
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.compute as pc
from datasets import Dataset, Image
from tqdm.auto import tqdm

from siglip_flowers.base.text import abbreviate, count
from siglip_flowers.data.names import normalize_name
from siglip_flowers.data.pixels.decoding import ImageError, decode_rgb, map_ahead

BATCH_ROWS = 64
# Folders between an image and its class folder.
MAX_SUBFOLDERS = 3


def get_labels(dataset: Dataset) -> np.ndarray:
    """Return the class numbers of all rows: int64, shape (rows,)."""
    table = dataset.select_columns("label").with_format("arrow")[:]
    return table["label"].to_numpy().astype(np.int64)


def select_undecoded(dataset: Dataset) -> Dataset:
    """Return the column image alone, as values ``{"bytes": ..., "path": ...}``."""
    return dataset.select_columns("image").cast_column("image", Image(decode=False))


def read_images(dataset: Dataset, rows: Sequence[int]) -> list[PIL.Image.Image]:
    """Return images by row number as RGB, decoded as in training.

    Raises:
        ImageError: One cannot be read.
    """
    values = select_undecoded(dataset)[list(rows)]["image"] if len(rows) else ()
    return [decode_rgb(value) for value in values]


def visit_images(
    dataset: Dataset, visit: Callable[[int, Any], None], workers: int, description: str
) -> dict[int, str]:
    """Call a function with the number and the undecoded image of every row, in threads.

    Args:
        dataset: With the columns ``image`` and ``label``.
        visit: May raise ImageError or OSError.
        workers: Threads. Pillow lets other threads run while it decodes.
        description: The label of the progress bar, which is shown on a terminal.

    Returns:
        Why images could not be read, by row.
    """
    images = select_undecoded(dataset)
    problems: dict[int, str] = {}
    stopped = threading.Event()

    def visit_batch(start: int) -> int:
        values = images[start : start + BATCH_ROWS]["image"]
        for row, value in enumerate(values, start):
            # After Ctrl-C, nobody waits for the rest of the batch.
            if stopped.is_set():
                break
            try:
                visit(row, value)
            except (ImageError, OSError) as error:
                problems[row] = str(error)
        return len(values)

    starts = range(0, len(images), BATCH_ROWS)
    with tqdm(total=len(images), desc=description, unit="img", leave=False, disable=None) as bar:
        for number in map_ahead(
            visit_batch, starts, workers=workers, ahead=2 * workers, stopped=stopped
        ):
            bar.update(number)
    return problems


def list_unreadable(dataset: Dataset, problems: Mapping[int, str]) -> list[str]:
    """Name the images that cannot be read, each with what is wrong; ``problems`` are by row."""
    paths, ids = get_image_paths(dataset), image_ids(dataset)
    return [f"{paths[row] or ids[row]} ({problems[row]})" for row in sorted(problems)]


def describe_unreadable(problems: Sequence[str], total: int) -> str:
    """Return a message about images of :func:`list_unreadable`."""
    return (
        f"{len(problems)} of {count(total, 'image')} cannot be read: {abbreviate(problems)}. "
        "Replace them, or drop them with --skip_corrupt_images."
    )


def get_image_paths(dataset: Dataset) -> list[str | None]:
    """Return the path stored with each image, without reading any image."""
    paths = pc.struct_field(dataset.data.column("image"), "path")
    # A selected data set is its whole table plus row numbers; Dataset has no public way to
    # read one struct field through them without copying the bytes of every image.
    rows = dataset._indices
    if rows is not None:
        paths = paths.take(rows.column(0))
    return paths.to_pylist()


def image_ids(dataset: Dataset) -> list[str]:
    """Name every row of a split; names are unique within it and survive selecting rows.

    The stem of the image's file, after its class and subfolders if the file is in a folder of that
    name (``rose/0001``, ``rose/2019/0001``). A row without a path is ``<split>_<row number in the
    source>``. Two rows with the same name get the file's extension and, if that is not enough, the
    row number added.
    """
    class_names = dataset.features["label"].names
    normalize = cache(normalize_name)
    prefix = dataset.split if dataset.split is not None else "row"
    rows = range(len(dataset))
    if dataset._indices is not None:
        rows = dataset._indices.column(0).to_pylist()
    ids, extensions = [], []
    for path, row, label in zip(
        get_image_paths(dataset), rows, get_labels(dataset).tolist(), strict=True
    ):
        stem, extension = posixpath.splitext((path or f"{prefix}_{row}").replace("\\", "/"))
        parts = stem.split("/")
        wanted = normalize(class_names[label])
        nearest = range(len(parts) - 2, max(-1, len(parts) - 3 - MAX_SUBFOLDERS), -1)
        start = next((n for n in nearest if parts[n] and normalize(parts[n]) == wanted), -1)
        ids.append("/".join(parts[start:]))
        extensions.append(extension)
    for suffixes in (extensions, [f"_{row}" for row in rows]):
        counts = Counter(ids)
        ids = [
            name + suffix if counts[name] > 1 else name
            for name, suffix in zip(ids, suffixes, strict=True)
        ]
    return ids


def fingerprint_images(dataset: Dataset) -> str:
    """Return a digest of the images, in row order, without decoding any.

    Embedded images count by their bytes, files by path, length and time of change. Unlike the
    fingerprint that ``datasets`` keeps, it is the same in every process, and it changes when a
    file of an image folder is replaced.
    """
    digest = hashlib.blake2b(digest_size=16)
    column = dataset.data.column("image")
    if pc.struct_field(column, "bytes").null_count == len(column) and not column.null_count:
        # Millions of files take seconds this way, where rows of a data set take minutes.
        for path in get_image_paths(dataset):
            digest.update(_identify_file(str(path)))
    else:
        for batch in select_undecoded(dataset).iter(BATCH_ROWS):
            for value in batch["image"]:
                digest.update(_identify(value))
    return digest.hexdigest()


def _identify(value: dict[str, Any] | None) -> bytes:
    if value is None:
        return b"none"
    if value["bytes"] is not None:
        return hashlib.blake2b(value["bytes"], digest_size=16).digest()
    return _identify_file(value["path"])


def _identify_file(path: str) -> bytes:
    try:
        status = os.stat(path)
    except OSError:
        return json.dumps([path, None]).encode()
    # As json.dumps writes a list, in a tenth of the time.
    quoted = encode_basestring_ascii(os.path.abspath(path))
    return f"[{quoted}, {status.st_size}, {status.st_mtime_ns}]".encode()
