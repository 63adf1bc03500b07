"""Large arrays that are computed once and then memory-mapped: decoded pixels, features.

An entry is a directory that appears whole or not at all, holding ``array.npy`` and ``entry.json``.
Its name is a digest of everything that its content depends on, so that a changed image, size or
weight leads to another entry; the processes of one machine build it once and share its pages.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from filelock import FileLock, Timeout

from siglip_flowers.base.files import atomic_directory, write_json
from siglip_flowers.config import DataArguments
from siglip_flowers.config.parsing import is_first_process

ARRAY_FILE = "array.npy"
ENTRY_FILE = "entry.json"
FORMAT_VERSION = 1
# Rows whose checksums are compared when an entry is opened, spread evenly over the array.
CHECKED_ROWS = 64
# Left free beside an entry, for checkpoints, logs and everybody else.
SPARE_BYTES = 256 * 2**20
UNWRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArrayEntry:
    """What an array is: its kind, everything it depends on, and its form.

    Attributes:
        kind: Short name, such as ``pixels``.
        key: Whatever the content depends on; plain JSON values.
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
        """Return what ``entry.json`` holds for this array."""
        checked = _choose_rows(len(array))
        checksums = [zlib.crc32(array[row].tobytes()) for row in checked]
        return {**self._describe(), "checksums": checksums}


def locate_cache(arguments: DataArguments) -> Path:
    """Return the cache directory: the option, ``$SIGLIP_FLOWERS_CACHE``, or one of datasets'."""
    named = arguments.cache_dir or os.environ.get("SIGLIP_FLOWERS_CACHE")
    return Path(named or Path(datasets.config.HF_DATASETS_CACHE) / "siglip_flowers_arrays")


def find_array(directory: Path, entry: ArrayEntry) -> np.memmap | None:
    """Return the entry as a read-only memory map where a good one is there, else None."""
    return _read(directory / entry.name, entry)


def state_disk_use(directory: Path, entry: ArrayEntry) -> None:
    """Say what an entry takes of the disk, beside the bars and not among the results.

    The first process of a launch says it, whichever of them builds.
    """
    if not is_first_process():
        return
    size = f"{entry.nbytes / 1e6:.1f} MB"
    print(f"Keeping {size} of {entry.kind} in {directory}", file=sys.stderr, flush=True)


def open_array(
    directory: Path,
    entry: ArrayEntry,
    build: Callable[[np.ndarray], None],
    *,
    quiet: bool = False,
) -> np.memmap | None:
    """Return the entry as a read-only memory map, building it first where there is no good one.

    Args:
        directory: The cache directory.
        entry: What is wanted.
        build: Fills the whole array it is given; called by one process of the machine only.
        quiet: Do not say what the array takes of the disk before it is built.

    Returns:
        The array, or None, with one warning, where the directory cannot be written or its disk
        has too little room.

    Raises:
        Exception: Whatever ``build`` raises; nothing is left behind then.
    """
    path = directory / entry.name
    array = _read(path, entry)
    if array is not None:
        return array
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not quiet:
            state_disk_use(directory, entry)
        with _locked(directory / f"{entry.name}.lock"):
            # Another process may have built it while this one waited.
            array = _read(path, entry)
            if array is None:
                _check_room(directory, entry)
                _build(path, entry, build)
                array = _read(path, entry)
    except _Unusable as problem:
        _warn_once(f"{problem}; the {entry.kind} are computed anew whenever they are needed.")
        return None
    except _BuildFailed as failure:
        raise failure.error from failure.error.__cause__
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        _warn_once(
            f"The cache directory {directory} cannot be written ({error.strerror}); the "
            f"{entry.kind} are computed anew whenever they are needed. Name another with "
            "--cache_dir."
        )
        return None
    return array


class _Unusable(Exception):
    """The cache cannot be used; the message says why."""


class _BuildFailed(Exception):
    """What was to be kept could not be computed: an error of an image, say, not of the cache."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


def _choose_rows(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, CHECKED_ROWS).astype(int)).tolist() if count else []


def _read(path: Path, entry: ArrayEntry) -> np.memmap | None:
    """Map an entry that is there and what it should be; None otherwise."""
    try:
        array: np.memmap = np.load(path / ARRAY_FILE, mmap_mode="r", allow_pickle=False)
        found = json.loads((path / ENTRY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, EOFError):
        # Not there, or cut off: np.load checks the file's length against its header.
        return None
    if array.shape != entry.shape or array.dtype != np.dtype(entry.dtype):
        return None
    return array if found == entry.describe_with(array) else None


def _locked(path: Path) -> FileLock:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=2)
    except Timeout:
        logger.warning("Waiting for another process to finish %s.", path.with_suffix(""))
        return lock
    # The caller's with statement takes it a second time, which a FileLock allows.
    lock.release()
    return lock


def _check_room(directory: Path, entry: ArrayEntry) -> None:
    free = shutil.disk_usage(directory).free
    if free < entry.nbytes + SPARE_BYTES:
        raise _Unusable(
            f"The disk of {directory} has {free / 1e9:.1f} GB free, too little for "
            f"{entry.nbytes / 1e9:.1f} GB of {entry.kind}"
        )


def _build(path: Path, entry: ArrayEntry, build: Callable[[np.ndarray], None]) -> None:
    if path.is_file():
        path.unlink()
    # Under the lock, what lies half-built is of a process that was killed.
    for leftover in path.parent.glob(f".{path.name}.*"):
        shutil.rmtree(leftover)
    with atomic_directory(path) as temporary:
        file = temporary / ARRAY_FILE
        array = np.lib.format.open_memmap(file, mode="w+", dtype=entry.dtype, shape=entry.shape)
        # Writing to a map whose disk turns out full kills the process; reserving raises an error.
        if hasattr(os, "posix_fallocate"):
            with file.open("r+b") as handle:
                os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
        try:
            build(array)
        except OSError as error:
            raise _BuildFailed(error) from error
        array.flush()
        write_json(temporary / ENTRY_FILE, entry.describe_with(array))


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    # One process of a launch speaks, once for each reason.
    if message not in _warned and os.environ.get("LOCAL_RANK", "0") == "0":
        logger.warning("%s", message)
    _warned.add(message)
