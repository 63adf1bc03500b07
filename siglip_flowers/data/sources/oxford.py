"""The original distribution of Oxford Flowers102: three files, two split protocols."""

import errno
import io
import logging
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
import datasets
import numpy as np
import scipy.io
from datasets import ClassLabel, Dataset, DatasetDict, DownloadConfig, DownloadManager, Features
from scipy.io.matlab import MatReadError

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.labels import FLOWER_NAMES
from siglip_flowers.data.names import abbreviate
from siglip_flowers.data.sources.archive import (
    IMAGE_FOLDER,
    compute_md5,
    explain_write_failure,
    holds_images,
    unpack_images,
)

ARCHIVE, LABELS, SPLIT_IDS = "102flowers.tgz", "imagelabels.mat", "setid.mat"
MD5_SUMS = {
    ARCHIVE: "52808999861908f626f3c1f4e79d11fa",
    LABELS: "e0620be6f572b9609742df49c70aed4d",
    SPLIT_IDS: "a5357ecc9cb78c4bef273ce3793fc85c",
}
IMAGE_COUNT = 8189
# The original ones have 15 kB at most.
MAX_MAT_BYTES = 1 << 20
# Version 5 of the format, in either byte order: a header, then parts of a kind and a length.
MAT_VERSIONS = (b"\x00\x01IM", b"\x01\x00MI")
MAT_HEADER_BYTES, MAT_COMPRESSED = 128, 15
NUMBER_KINDS = (
    "double",
    "single",
    *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)),
)
UNREADABLE_MAT = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    NotImplementedError,
    OverflowError,
    MemoryError,
    RecursionError,
    MatReadError,
    struct.error,
    zlib.error,
)
DISK_BYTES = 700 << 20  # the archive and its images, 345 MB each
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)
ORIGINAL_SIZES = {"trnid": 1020, "valid": 1020, "tstid": 6149}
# Source: setid.mat and its read-me. "swapped" exchanges the original train and test ids.
PROTOCOLS = {
    "official": {"train": "trnid", "validation": "valid", "test": "tstid"},
    "swapped": {"train": "tstid", "validation": "valid", "test": "trnid"},
}
IMAGE_NAMES = tuple(f"image_{number:05d}.jpg" for number in range(1, IMAGE_COUNT + 1))
# The published data set itself has these photographs in two of its three splits.
KNOWN_SHARED = frozenset(
    frozenset(f"image_{number:05d}" for number in pair)
    for pair in ((7015, 7040), (7307, 7309), (8067, 8077))
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OxfordFiles:
    """Where the parts of the distribution lie; ``archive`` or the unpacked ``images``."""

    labels: Path
    split_ids: Path
    archive: Path | None = None
    images: Path | None = None


def looks_like_oxford(folder: Path) -> bool:
    """Tell whether a directory holds any of the original files."""
    return any((folder / name).is_file() for name in MD5_SUMS)


def _open_bounded(path: Path) -> io.BytesIO:
    """Return the content of a .mat file whose parts do not unpack to too much.

    Raises:
        ValueError: it is too large, or a compressed part of it is.
    """
    if path.stat().st_size > MAX_MAT_BYTES:
        raise ValueError(f"larger than {MAX_MAT_BYTES >> 20} MB")
    content = path.read_bytes()
    order: Literal["little", "big"] = "big" if content[126:128] == b"MI" else "little"
    place = MAT_HEADER_BYTES
    while content[124:128] in MAT_VERSIONS and place + 8 <= len(content):
        kind, size = (
            int.from_bytes(content[start : start + 4], order) for start in (place, place + 4)
        )
        if kind == MAT_COMPRESSED:
            unpacker = zlib.decompressobj()
            unpacker.decompress(content[place + 8 : place + 8 + size], MAX_MAT_BYTES)
            if unpacker.unconsumed_tail:
                raise ValueError(f"unpacks to more than {MAX_MAT_BYTES >> 20} MB")
        place += 8 + size
    return io.BytesIO(content)


def _read_mat(path: Path, variables: Mapping[str, int], highest: int) -> dict[str, np.ndarray]:
    """Read 1 x n variables of whole numbers 1..highest from a .mat file: int64, shape (n,)."""
    expected = " and ".join(f"{name!r} (1 x {size})" for name, size in variables.items())
    remedy = f"supply the original {path.name} with {expected}"
    try:
        # What stands there is looked at first: cells and bombs take memory without end.
        # Any: the stubs of scipy know names of files only.
        stream: Any = _open_bounded(path)
        found = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(stream)}
        wanted = [name for name in variables if found.get(name, ((), ""))[1] in NUMBER_KINDS]
        content: dict[str, Any] = scipy.io.loadmat(stream, variable_names=wanted)
    except UNREADABLE_MAT as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{path} is not a readable .mat file ({reason}); {remedy}.") from error
    arrays: dict[str, np.ndarray] = {}
    for name, size in variables.items():
        if name not in found:
            names = abbreviate([repr(key[:100])[1:-1] for key in sorted(found)]) or "none"
            raise InputError(f"{path} has no variable {name!r}, only {names}; {remedy}.")
        if name not in content:
            raise InputError(f"{path}: {name!r} is a {found[name][1]}, not numbers; {remedy}.")
        values = np.asarray(content[name])
        if values.size != size or values.ndim != 2 or min(values.shape) != 1:
            raise InputError(
                f"{path}: {name!r} has the shape {values.shape}, not (1, {size}); {remedy}."
            )
        if values.dtype.kind not in "iuf" or not np.all(
            (values >= 1) & (values <= highest) & (values == np.floor(values))
        ):
            raise InputError(
                f"{path}: {name!r} must hold whole numbers from 1 to {highest} only; {remedy}."
            )
        arrays[name] = values.reshape(-1).astype(np.int64)
    return arrays


def read_labels(path: Path) -> np.ndarray:
    """Return the class of every image, 1..102 as in the file: int64, shape (8189,)."""
    return _read_mat(path, {"labels": IMAGE_COUNT}, len(FLOWER_NAMES))["labels"]


def read_split_ids(path: Path) -> dict[str, np.ndarray]:
    """Return the image numbers (1..8189, ascending) of trnid, valid and tstid.

    Raises:
        InputError: unreadable, another size, or a number that occurs twice.
    """
    ids = _read_mat(path, ORIGINAL_SIZES, IMAGE_COUNT)
    numbers, counts = np.unique(np.concatenate(list(ids.values())), return_counts=True)
    if len(numbers) < IMAGE_COUNT:
        raise InputError(
            f"{path} lists image {numbers[counts > 1][0]} more than once; "
            "supply the original setid.mat."
        )
    return {name: np.sort(values) for name, values in ids.items()}


def locate_files(folder: Path) -> OxfordFiles:
    """Find the distribution in a directory and read its .mat files.

    The unpacked jpg/ is taken if it is complete, the archive otherwise.

    Raises:
        InputError: a part is missing, empty or not what its name says.
    """
    missing = [name for name in (LABELS, SPLIT_IDS) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"--data_dir {folder} lacks {' and '.join(missing)}; it must hold {ARCHIVE} (or the "
            f"unpacked {IMAGE_FOLDER}/), {LABELS} and {SPLIT_IDS}."
        )
    files = OxfordFiles(folder / LABELS, folder / SPLIT_IDS)
    read_labels(files.labels)
    read_split_ids(files.split_ids)
    if holds_images(folder / IMAGE_FOLDER, IMAGE_NAMES):
        return OxfordFiles(files.labels, files.split_ids, images=folder / IMAGE_FOLDER)
    archive = folder / ARCHIVE
    if not archive.is_file():
        found = folder / IMAGE_FOLDER
        state = f"{found} is incomplete" if found.is_dir() else f"there is no {IMAGE_FOLDER}/"
        raise InputError(
            f"--data_dir {folder} lacks {ARCHIVE}, and {state}; it must hold all {IMAGE_COUNT} "
            "images in one of the two."
        )
    with archive.open("rb") as file:
        magic = file.read(2)
    if magic != b"\x1f\x8b":
        kind = "empty" if not magic else "not a gzip archive"
        raise RunError(f"{archive} is {kind}; download {ARCHIVE} again.")
    return OxfordFiles(files.labels, files.split_ids, archive=archive)


def _download_file(url: str, name: str) -> Path:
    """Fetch one file into the cache of ``datasets`` and check it; no request if it is there."""
    config = DownloadConfig(use_etag=False, download_desc=name)
    try:
        path = Path(str(DownloadManager(download_config=config).download(f"{url}/{name}")))
    except (OSError, ValueError, aiohttp.ClientError) as error:
        if isinstance(error, OSError) and error.errno in WRITE_ERRORS:
            folder = Path(datasets.config.DOWNLOADED_DATASETS_PATH)
            raise explain_write_failure(error, folder, DISK_BYTES) from error
        reason = " ".join(str(error.__cause__ or error).split())
        raise RunError(
            f"Cannot download {url}/{name} ({reason}); offline, put {ARCHIVE}, {LABELS} and "
            f"{SPLIT_IDS} into a folder and pass --data_dir, or use --data_source procedural."
        ) from error
    found = compute_md5(path)
    if found != MD5_SUMS[name]:
        path.unlink(missing_ok=True)  # or the next run would find the wrong file in the cache
        raise RunError(
            f"{url}/{name} has the MD5 sum {found}, expected {MD5_SUMS[name]}; try again, or get "
            "the file elsewhere and pass --data_dir."
        )
    return path


def get_cache_folder() -> Path:
    """Return where unpacked archives are kept, one folder a checksum."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "siglip_flowers_oxford"


def download_files(url: str) -> OxfordFiles:
    """Download the distribution; an archive that is unpacked in the cache already is not fetched.

    Raises:
        RunError: unreachable, full disk, or a wrong checksum.
    """
    url = url.rstrip("/")
    labels, split_ids = _download_file(url, LABELS), _download_file(url, SPLIT_IDS)
    images = get_cache_folder() / MD5_SUMS[ARCHIVE] / IMAGE_FOLDER
    if holds_images(images, IMAGE_NAMES):
        return OxfordFiles(labels, split_ids, images=images)
    return OxfordFiles(labels, split_ids, archive=_download_file(url, ARCHIVE))


def _check_local_sums(files: OxfordFiles) -> str | None:
    """Warn once if local files are not the original ones; return the archive's checksum."""
    paths = {ARCHIVE: files.archive, LABELS: files.labels, SPLIT_IDS: files.split_ids}
    sums = {name: compute_md5(path) for name, path in paths.items() if path is not None}
    other = [f"{paths[name]} ({md5})" for name, md5 in sums.items() if md5 != MD5_SUMS[name]]
    if other:
        logger.warning(
            "Not the original Flowers102 files, by their MD5 sums: %s; used all the same.",
            ", ".join(other),
        )
    return sums.get(ARCHIVE)


def build_splits(images: Path, labels: Path, split_ids: Path, protocol: str) -> DatasetDict:
    """Build train, validation and test of a protocol; rows ascend by image number."""
    classes = read_labels(labels) - 1
    ids = read_split_ids(split_ids)
    features = Features(image=datasets.Image(), label=ClassLabel(names=list(FLOWER_NAMES)))
    splits = DatasetDict()
    for split, original in PROTOCOLS[protocol].items():
        numbers = ids[original]
        paths = [str(images / IMAGE_NAMES[number - 1]) for number in numbers]
        splits[split] = Dataset.from_dict(
            {"image": paths, "label": classes[numbers - 1]},
            features=features,
            split=datasets.NamedSplit(split),
        )
    return splits


def load_oxford(data_dir: str | None, url: str, protocol: str) -> DatasetDict:
    """Load Oxford Flowers102 from a directory, or download it.

    Returns:
        6149/1020/1020 rows for "swapped", 1020/1020/6149 for "official"; columns image, label.

    Raises:
        InputError: local files are missing or wrong.
        RunError: the download or the archive failed.
    """
    if data_dir is None:
        files = download_files(url)
        checksum: str | None = MD5_SUMS[ARCHIVE]
    else:
        files = locate_files(Path(data_dir))
        checksum = _check_local_sums(files)
    images = files.images
    if images is None:
        assert files.archive is not None, "without images there is an archive"
        assert checksum is not None, "an archive has a checksum"
        images = unpack_images(files.archive, get_cache_folder(), checksum, IMAGE_NAMES)
    return build_splits(images.absolute(), files.labels, files.split_ids, protocol)
