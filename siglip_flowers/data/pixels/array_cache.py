"""Large arrays that are computed once and then memory-mapped: decoded pixels, features.

An entry is a directory that appears whole or not at all, holding ``array.npy`` and ``entry.json``.
Its name is a digest of everything that its content depends on, so that a changed image, size or
weight leads to another entry; the processes of one machine build it once and share its pages.
What takes long to compute is a growing array until all of its rows are there.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import xxhash
from filelock import FileLock
from tqdm.auto import tqdm

from siglip_flowers.base.files import atomic_directory, write_json
from siglip_flowers.config import DataArguments
from siglip_flowers.config.parsing import is_first_process

ARRAY_FILE = "array.npy"
ENTRY_FILE = "entry.json"
# Of a growing array: the checksum of each row that is there, and the end of its name.
SUMS_FILE, GROWING = "sums.npy", ".part"
FORMAT_VERSION = 1
# Rows whose checksums are compared when an entry is opened, spread evenly over the array.
CHECKED_ROWS = 64
# Disk space left free, for checkpoints and logs.
SPARE_BYTES = 256 * 2**20

logger = logging.getLogger(__name__)
_warn_once = cache(logger.warning)


@cache
def _announce(kind: str, directory: Path) -> None:
    """Say once where arrays are kept; each split has one."""
    print(f"Keeping {kind} in {directory} for later runs.", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class ArrayEntry:
    """What an array holds: its kind, everything it depends on, and its form.

    Attributes:
        kind: Short name, such as ``pixels``.
        key: Everything the content depends on, in JSON values.
        shape: Shape; the first axis counts rows.
        dtype: Element type.
    """

    kind: str
    key: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: str

    @property
    def name(self) -> str:
        """The entry's directory name."""
        text = json.dumps(self._describe(), sort_keys=True)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def _describe(self) -> dict[str, Any]:
        return {
            "format": FORMAT_VERSION,
            "kind": self.kind,
            "key": dict(self.key),
            "shape": list(self.shape),
            "dtype": self.dtype,
        }

    def describe_with(self, array: np.ndarray) -> dict[str, Any]:
        """Return the content of ``entry.json`` for this array."""
        checked = np.unique(np.linspace(0, len(array) - 1, CHECKED_ROWS).astype(int))
        checksums = [zlib.crc32(array[row].tobytes()) for row in checked if len(array)]
        return {**self._describe(), "checksums": checksums}


def locate_cache(arguments: DataArguments) -> Path:
    """Return the cache directory: the option, ``$SIGLIP_FLOWERS_CACHE``, or one of datasets'."""
    named = arguments.cache_dir or os.environ.get("SIGLIP_FLOWERS_CACHE")
    default = Path(datasets.config.HF_DATASETS_CACHE) / "siglip_flowers_arrays"
    return Path(named or default).expanduser()


def find_array(directory: Path, entry: ArrayEntry) -> np.memmap | None:
    """Return an entry that is there and undamaged as a read-only memory map, else None."""
    path = directory / entry.name
    try:
        array: np.memmap = np.load(path / ARRAY_FILE, mmap_mode="r", allow_pickle=False)
        found = json.loads((path / ENTRY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, EOFError):
        # Not there, or cut off: np.load checks the file's length against its header.
        return None
    if found != entry.describe_with(array):
        return None
    with suppress(OSError):  # the cache may be read-only
        os.utime(path / ENTRY_FILE)  # the time of the last use
    return array


def list_entries(directory: Path) -> list[Path]:
    """Return the entries of a cache directory, the longest unused first."""
    files = list(directory.glob(f"*/{ENTRY_FILE}"))
    return [file.parent for file in sorted(files, key=lambda file: file.stat().st_mtime)]


def remove_entry(path: Path) -> None:
    """Delete an entry; a process that has it open keeps its pages."""
    shutil.rmtree(path)
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)


def open_array(
    directory: Path, entry: ArrayEntry, build: Callable[[np.ndarray], None], *, quiet: bool = False
) -> np.memmap | None:
    """Return the entry as a read-only memory map, building it first if needed.

    Args:
        directory: The cache directory.
        entry: What is wanted.
        build: Fills the whole array it is given; called by one process of the machine only.
        quiet: Do not print where it is kept.

    Returns:
        The array, or None, with one warning, if the directory cannot be written or its disk has
        too little room.

    Raises:
        Exception: Whatever ``build`` raises; nothing is left behind then.
    """
    array = find_array(directory, entry)
    if array is not None:
        return array
    with _tolerate(directory, entry), _lock(directory, entry, quiet):
        # Another process may have built it while this one waited.
        if find_array(directory, entry) is None:
            _create(directory / entry.name, entry, build)
    return find_array(directory, entry)


@contextmanager
def _lock(directory: Path, entry: ArrayEntry, quiet: bool = False) -> Iterator[None]:
    """Hold the lock of an entry that is written, if its disk has room."""
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < entry.nbytes + SPARE_BYTES and not is_growing(directory, entry):
        raise OSError(f"{free / 1e9:.1f} GB free, {entry.nbytes / 1e9:.1f} GB needed")
    if not quiet and is_first_process():
        _announce(entry.kind, directory)
    with FileLock(directory / f"{entry.name}.lock"):
        yield


@contextmanager
def _tolerate(directory: Path, entry: ArrayEntry) -> Iterator[None]:
    """Make a warning, once, of an OSError."""
    try:
        yield
    except OSError as error:
        _warn_once(
            f"The cache directory {directory} cannot be written ({error.strerror or error}); the "
            f"{entry.kind} are computed again whenever they are needed. --cache_dir names another."
        )


def _create(
    path: Path, entry: ArrayEntry, build: Callable[[np.ndarray], None] | None = None
) -> None:
    """Create the directory of an entry that ``build`` fills, or else of an empty growing array."""
    # Under the lock, a half-built entry is that of a process that was killed.
    for pattern in (f".{path.name}.*", path.name + GROWING):
        for leftover in path.parent.glob(pattern):
            shutil.rmtree(leftover)
    with atomic_directory(path) as temporary:
        file = temporary / ARRAY_FILE
        array = np.lib.format.open_memmap(file, mode="w+", dtype=entry.dtype, shape=entry.shape)
        # Writing to a map whose disk turns out full kills the process; reserving raises an error.
        if hasattr(os, "posix_fallocate"):
            with file.open("r+b") as handle:
                os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
        if build is None:
            np.save(temporary / SUMS_FILE, np.zeros(len(array), dtype=np.uint64))
            write_json(temporary / ENTRY_FILE, {})
        else:
            build(array)
            array.flush()
            write_json(temporary / ENTRY_FILE, entry.describe_with(array))
        # Windows renames no directory with a file that is mapped, so nobody may refer to it now.
        del array


class GrowingArray:
    """An entry whose rows are written in any order, by any thread or process, and kept at once.

    A row counts if its checksum fits: one that was cut off is missing.

    Args:
        path: Of the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = np.load(path / ARRAY_FILE, mmap_mode="r+")
        self._sums = np.load(path / SUMS_FILE, mmap_mode="r+")

    def __reduce__(self) -> tuple[type["GrowingArray"], tuple[Path]]:
        # Memory maps are pickled as copies.
        return GrowingArray, (self.path,)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a copy of some rows, and which of them are missing: bool."""
        values = self._rows[rows]
        sums = np.array([xxhash.xxh3_64_intdigest(v.data) for v in values], dtype=np.uint64)
        return values, sums != self._sums[rows]

    def write(self, row: int, value: np.ndarray) -> None:
        """Keep a row."""
        self._rows[row] = value
        self._sums[row] = xxhash.xxh3_64_intdigest(np.ascontiguousarray(value).data)

    def is_complete(self) -> bool:
        """Return whether all rows are there and undamaged."""
        if not self._sums.all():
            return False
        numbers = tqdm(range(len(self._sums)), "checking pixels", leave=False, disable=None)
        return not any(self.read(np.array([number]))[1].any() for number in numbers)


def is_growing(directory: Path, entry: ArrayEntry) -> bool:
    """Return whether a growing array keeps rows of an entry."""
    return (directory / (entry.name + GROWING)).is_dir()


def grow_array(directory: Path, entry: ArrayEntry) -> GrowingArray | None:
    """Return a growing array that keeps what is computed of an entry.

    Returns:
        None if it was complete, and has become the entry; or, with one warning, if the directory
        cannot be written or its disk has too little room.
    """
    path, array = directory / (entry.name + GROWING), None
    with _tolerate(directory, entry), _lock(directory, entry):
        try:
            array = GrowingArray(path)
        except (OSError, ValueError, EOFError):
            # Not there, cut off, or damaged.
            shutil.rmtree(path, ignore_errors=True)
            _create(path, entry)
            array = GrowingArray(path)
        os.utime(path / ENTRY_FILE)
        if array.is_complete():
            array = None
            rows = np.load(path / ARRAY_FILE, mmap_mode="r")
            write_json(path / ENTRY_FILE, entry.describe_with(rows))
            del rows
            # A damaged entry may be in its place.
            shutil.rmtree(directory / entry.name, ignore_errors=True)
            # The sums go last: a run that is killed before the renaming needs them again.
            (path.rename(directory / entry.name) / SUMS_FILE).unlink()
    return array
