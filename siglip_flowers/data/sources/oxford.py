"""The original distribution of Oxford Flowers102: three files, two split protocols."""

import gzip
import hashlib
import http.client
import logging
import os
import shutil
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import scipy.io
from datasets import ClassLabel, Dataset, DatasetDict, Features
from filelock import FileLock
from tqdm.auto import tqdm

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.files import atomic_directory
from siglip_flowers.base.prompts import FLOWER_NAMES

ARCHIVE, LABELS, SPLIT_IDS = "102flowers.tgz", "imagelabels.mat", "setid.mat"
MD5_SUMS = {
    ARCHIVE: "52808999861908f626f3c1f4e79d11fa",
    LABELS: "e0620be6f572b9609742df49c70aed4d",
    SPLIT_IDS: "a5357ecc9cb78c4bef273ce3793fc85c",
}
IMAGE_FOLDER = "jpg"
IMAGE_NAMES = tuple(f"image_{number:05d}.jpg" for number in range(1, 8190))
# Source: setid.mat and its read-me. "swapped" exchanges the original train and test ids.
PROTOCOLS = {
    "official": {"train": "trnid", "validation": "valid", "test": "tstid"},
    "swapped": {"train": "tstid", "validation": "valid", "test": "trnid"},
}
# The published data set itself has these photographs in two of its three splits.
KNOWN_SHARED = frozenset(
    frozenset(f"image_{number:05d}" for number in pair)
    for pair in ((7015, 7040), (7307, 7309), (8067, 8077))
)
# A download may take hours, but stops if the server sends nothing for this long.
SILENCE_SECONDS = 60.0

logger = logging.getLogger(__name__)


def looks_like_oxford(folder: Path) -> bool:
    """Return whether a directory holds any of the original files."""
    return any((folder / name).is_file() for name in MD5_SUMS)


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and set(IMAGE_NAMES) <= set(os.listdir(folder))


def _compute_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def check_local_files(folder: Path) -> None:
    """Check that a directory holds the distribution, without unpacking the archive.

    Raises:
        InputError: A file is missing, or a .mat file is not the original one.
    """
    missing = [
        f"{name} (MD5 sum {MD5_SUMS[name]})"
        for name in (LABELS, SPLIT_IDS)
        if not (folder / name).is_file() or _compute_md5(folder / name) != MD5_SUMS[name]
    ]
    if not (_holds_images(folder / IMAGE_FOLDER) or (folder / ARCHIVE).is_file()):
        missing.append(f"{ARCHIVE} (or {IMAGE_FOLDER}/ with all {len(IMAGE_NAMES)} images)")
    if missing:
        raise InputError(
            f"--data_dir {folder} lacks the original {' and '.join(missing)}. Download it again."
        )


@contextmanager
def _lock_cache(name: str) -> Iterator[Path]:
    """Yield the directory of downloads and unpacked archives, locked.

    The machine's other processes wait here, outside any collective, so that none can time out,
    however long a download takes.

    Raises:
        RunError: The directory cannot be written, or the disk is full.
    """
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "siglip_flowers_oxford"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{name}.lock"):
            yield cache
    except OSError as error:
        raise RunError(
            f"Cannot write the Flowers102 files to {cache} ({error.strerror or error}). They need "
            "about 700 MB; set HF_DATASETS_CACHE to another directory."
        ) from error


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive to ``folder``, which appears whole or not at all.

    Raises:
        RunError: The archive is damaged or incomplete, or has more than files and folders.
    """
    try:
        with atomic_directory(folder) as temporary, tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
            if not _holds_images(temporary / IMAGE_FOLDER):
                raise RunError(f"{archive} lacks some of its images. Download it again.")
    except (EOFError, tarfile.TarError, zlib.error, gzip.BadGzipFile) as error:
        raise RunError(f"{archive} is damaged ({error}). Download it again.") from error


def _request(url: str, part: Path) -> None:
    """Append what ``part`` still lacks of the file behind a URL."""
    present = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "siglip-flowers", "Range": f"bytes={present}-"}
    request = urllib.request.Request(url, headers=headers)
    # The timeout is one of silence: it applies to each read, not to the whole download.
    with urllib.request.urlopen(request, timeout=SILENCE_SECONDS) as response:
        mode = "ab" if response.status == http.client.PARTIAL_CONTENT else "wb"
        with part.open(mode) as file:
            present = file.tell()
            total = present + int(response.headers.get("Content-Length", 0))
            # disable=None: a bar on a terminal only.
            options = {"total": total, "initial": present, "desc": url, "disable": None}
            with tqdm.wrapattr(response, "read", **options) as body:
                shutil.copyfileobj(body, file)
    if part.stat().st_size < total:
        raise ConnectionError(f"the connection broke after {part.stat().st_size} of {total} bytes")


def _download_file(url: str, path: Path) -> None:
    """Download a file unless it is there, and check it; an interrupted download is resumed.

    Raises:
        RunError: It cannot be downloaded, or is another file.
    """
    if path.is_file():
        return
    url, part = f"{url.rstrip('/')}/{path.name}", path.with_name(f"{path.name}.part")
    expected = MD5_SUMS[path.name]
    try:
        _request(url, part)
    except (OSError, ValueError, http.client.HTTPException) as error:
        # A part that is complete, or too long, is only checked.
        if getattr(error, "code", None) != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            reason = str(error).strip("<>") or type(error).__name__
            raise RunError(
                f"Cannot download {url} ({reason}). The same command resumes it; offline, pass "
                f"--data_dir with {ARCHIVE}, {LABELS} and {SPLIT_IDS}, or use --data_source "
                "procedural."
            ) from error
    found = _compute_md5(part)
    if found != expected:
        part.unlink()
        raise RunError(
            f"{url} has the MD5 sum {found}, expected {expected}. Try again, or pass --data_dir "
            "with files from elsewhere."
        )
    part.replace(path)


def prepare_download(url: str) -> tuple[Path, Path]:
    """Download what the cache lacks; return the folders of the .mat files and of the images."""
    with _lock_cache("download") as cache:
        images = cache / MD5_SUMS[ARCHIVE] / IMAGE_FOLDER
        for name in (LABELS, SPLIT_IDS):
            _download_file(url, cache / name)
        if not _holds_images(images):
            _download_file(url, cache / ARCHIVE)
            _unpack(cache / ARCHIVE, images.parent)
            (cache / ARCHIVE).unlink()
    return cache, images


def _prepare_local(folder: Path) -> Path:
    """Return the folder of the images of local files; unpack the archive if needed."""
    if _holds_images(folder / IMAGE_FOLDER):
        return folder / IMAGE_FOLDER
    checksum = _compute_md5(folder / ARCHIVE)
    if checksum != MD5_SUMS[ARCHIVE]:
        logger.warning(
            "%s has the MD5 sum %s, so it is not the original archive.", folder / ARCHIVE, checksum
        )
    with _lock_cache(checksum) as cache:
        images = cache / checksum / IMAGE_FOLDER
        if not _holds_images(images):
            _unpack(folder / ARCHIVE, images.parent)
    return images


def load_oxford(data_dir: str | None, url: str, protocol: str) -> DatasetDict:
    """Load Oxford Flowers102 from a directory, or download it.

    Returns:
        6149/1020/1020 rows for "swapped", 1020/1020/6149 for "official", ascending by image
        number; columns image, label.

    Raises:
        InputError: Local files are missing or wrong.
        RunError: The download or the archive failed.
    """
    if data_dir is None:
        folder, images = prepare_download(url)
    else:
        folder = Path(data_dir)
        images = _prepare_local(folder)
    classes = scipy.io.loadmat(folder / LABELS)["labels"].ravel().astype(np.int64) - 1
    ids = scipy.io.loadmat(folder / SPLIT_IDS)
    features = Features(image=datasets.Image(), label=ClassLabel(names=list(FLOWER_NAMES)))
    splits = DatasetDict()
    for split, original in PROTOCOLS[protocol].items():
        rows = np.sort(ids[original].ravel()).astype(np.int64) - 1
        paths = [str(images.absolute() / IMAGE_NAMES[row]) for row in rows]
        columns = {"image": paths, "label": classes[rows]}
        named = datasets.NamedSplit(split)
        splits[split] = Dataset.from_dict(columns, features=features, split=named)
    return splits
