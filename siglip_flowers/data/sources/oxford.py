"""The original distribution of Oxford Flowers102: three files, two split protocols."""

import errno
import gzip
import hashlib
import http.client
import logging
import os
import tarfile
import urllib.error
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
from siglip_flowers.base.labels import FLOWER_NAMES

ARCHIVE, LABELS, SPLIT_IDS = "102flowers.tgz", "imagelabels.mat", "setid.mat"
MD5_SUMS = {
    ARCHIVE: "52808999861908f626f3c1f4e79d11fa",
    LABELS: "e0620be6f572b9609742df49c70aed4d",
    SPLIT_IDS: "a5357ecc9cb78c4bef273ce3793fc85c",
}
IMAGE_COUNT = 8189
IMAGE_FOLDER = "jpg"
IMAGE_NAMES = tuple(f"image_{number:05d}.jpg" for number in range(1, IMAGE_COUNT + 1))
ORIGINAL_SIZES = {"trnid": 1020, "valid": 1020, "tstid": 6149}
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
# A download may take hours, but a server that sends nothing for this long is given up.
SILENCE_SECONDS = 60.0
CHUNK_BYTES = 1 << 20
DISK_BYTES = 700 << 20  # the archive and its images, 345 MB each
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR)

logger = logging.getLogger(__name__)


def looks_like_oxford(folder: Path) -> bool:
    """Return whether a directory holds any of the original files."""
    return any((folder / name).is_file() for name in MD5_SUMS)


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and set(IMAGE_NAMES) <= set(os.listdir(folder))


def _read_numbers(path: Path, sizes: dict[str, int], highest: int) -> dict[str, np.ndarray]:
    """Read vectors of whole numbers from 1 to ``highest`` from a .mat file, as int64."""
    remedy = f"Use the original {path.name}."
    try:
        content = scipy.io.loadmat(path, variable_names=list(sizes))
    except Exception as error:  # a damaged file makes scipy raise almost anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path} is not a readable .mat file ({reason}). {remedy}") from error
    vectors: dict[str, np.ndarray] = {}
    for name, size in sizes.items():
        values = np.asarray(content.get(name, ())).ravel()
        valid = values.dtype.kind in "iuf" and np.isin(values, np.arange(1, highest + 1)).all()
        if len(values) != size or not valid:
            raise InputError(
                f"{path}: {name!r} must be {size} whole numbers from 1 to {highest}. {remedy}"
            )
        vectors[name] = values.astype(np.int64)
    return vectors


def read_labels(path: Path) -> np.ndarray:
    """Return the class of every image, 1..102 as in the file: int64, shape (8189,)."""
    return _read_numbers(path, {"labels": IMAGE_COUNT}, len(FLOWER_NAMES))["labels"]


def read_split_ids(path: Path) -> dict[str, np.ndarray]:
    """Return the image numbers (1..8189, ascending) of trnid, valid and tstid.

    Raises:
        InputError: unreadable, another size, or an image in two splits.
    """
    ids = _read_numbers(path, ORIGINAL_SIZES, IMAGE_COUNT)
    numbers, counts = np.unique(np.concatenate(list(ids.values())), return_counts=True)
    if len(numbers) < IMAGE_COUNT:
        raise InputError(
            f"{path} lists image {numbers[counts > 1][0]} more than once. Use the original "
            f"{path.name}."
        )
    return {name: np.sort(values) for name, values in ids.items()}


def check_local_files(folder: Path) -> None:
    """Check that a directory holds the distribution, without unpacking the archive.

    Raises:
        InputError: a file is missing, or a .mat file is not what its name says.
    """
    missing = [name for name in (LABELS, SPLIT_IDS) if not (folder / name).is_file()]
    if not missing:
        read_labels(folder / LABELS)
        read_split_ids(folder / SPLIT_IDS)
    if not (_holds_images(folder / IMAGE_FOLDER) or (folder / ARCHIVE).is_file()):
        missing.append(f"{ARCHIVE} (or {IMAGE_FOLDER}/ with all {IMAGE_COUNT} images)")
    if missing:
        raise InputError(f"--data_dir {folder} lacks {' and '.join(missing)}.")


def _compute_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _compute_sums(folder: Path, names: list[str]) -> dict[str, str]:
    """Return the MD5 sums of local files; warn once if they are not the original ones."""
    sums = {name: _compute_md5(folder / name) for name in names}
    other = [f"{folder / name} ({md5})" for name, md5 in sums.items() if md5 != MD5_SUMS[name]]
    if other:
        logger.warning("Not the original Flowers102 files, by MD5 sum: %s.", ", ".join(other))
    return sums


def _explain_write_failure(error: OSError, folder: Path) -> RunError:
    return RunError(
        f"Cannot write the Flowers102 files to {folder} ({error.strerror or error}). They need "
        f"about {DISK_BYTES >> 20} MB; set HF_DATASETS_CACHE to another directory."
    )


def get_cache_folder() -> Path:
    """Return the folder of downloaded files and unpacked archives."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "siglip_flowers_oxford"


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the images of an archive to ``folder``, which appears whole or not at all.

    Raises:
        RunError: the archive is damaged or incomplete, or the disk is full.
    """
    wanted = set(IMAGE_NAMES)
    try:
        with (
            atomic_directory(folder) as temporary,
            gzip.open(archive) as stream,
            tarfile.open(fileobj=stream) as tar,
        ):
            for member in tar:
                place, _, name = member.name.removeprefix("./").rpartition("/")
                if place == IMAGE_FOLDER and name in wanted and member.isreg():
                    tar.extract(member.replace(name=name, deep=False), temporary, filter="data")
            stream.read()  # the rest, behind which the checksum of the stream is
            missing = sorted(wanted - set(os.listdir(temporary)))
            if missing:
                raise RunError(
                    f"{archive} lacks {len(missing)} of {IMAGE_COUNT} images, {missing[0]} among "
                    "them. Download it again."
                )
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno in WRITE_ERRORS:
            raise _explain_write_failure(error, folder) from error
        raise RunError(
            f"{archive} is damaged ({' '.join(str(error).split())}). Download it again."
        ) from error


def _request(url: str, part: Path) -> None:
    """Append what ``part`` still lacks of the file behind an URL."""
    present = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "siglip-flowers"})
    if present:
        request.add_header("Range", f"bytes={present}-")
    # The timeout is one of silence: it applies to each read, not to the whole download.
    with urllib.request.urlopen(request, timeout=SILENCE_SECONDS) as response:
        if response.status != http.client.PARTIAL_CONTENT:
            present = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else present + int(length)
        with (
            part.open("ab" if present else "wb") as file,
            # None: a bar on a terminal only.
            tqdm(
                total=total, initial=present, desc=url, unit="B", unit_scale=True, disable=None
            ) as bar,
        ):
            while chunk := response.read1(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
            if total is not None and file.tell() < total:
                raise ConnectionError(f"the connection broke after {file.tell()} of {total} bytes")


def _explain(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"no answer for {SILENCE_SECONDS:g} seconds"
    return " ".join(str(reason).split()) or type(reason).__name__


def _download_file(url: str, path: Path) -> None:
    """Download a file unless it is there, and check it.

    A download that breaks off is resumed, now as long as it gets further, and by the next run.

    Raises:
        RunError: unreachable, full disk, or a wrong checksum.
    """
    if path.is_file() and _compute_md5(path) == MD5_SUMS[path.name]:
        return
    part = path.with_name(f"{path.name}.part")
    url = f"{url.rstrip('/')}/{path.name}"
    try:
        if datasets.config.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                _request(url, part)
                break
            except urllib.error.HTTPError as error:
                # Longer than the file there, or complete already: start over.
                if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not before:
                    raise
                part.unlink()
            except (ConnectionError, TimeoutError, http.client.HTTPException):
                if not part.exists() or part.stat().st_size <= before:
                    raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in WRITE_ERRORS:
            raise _explain_write_failure(error, path.parent) from error
        raise RunError(
            f"Cannot download {url} ({_explain(error)}). Offline, pass --data_dir with {ARCHIVE}, "
            f"{LABELS} and {SPLIT_IDS}, or use --data_source procedural."
        ) from error
    found = _compute_md5(part)
    if found != MD5_SUMS[path.name]:
        part.unlink()
        raise RunError(
            f"{url} has the MD5 sum {found}, expected {MD5_SUMS[path.name]}. Try again, or pass "
            "--data_dir with files from elsewhere."
        )
    part.replace(path)


@contextmanager
def _lock_cache(name: str) -> Iterator[None]:
    """Hold a lock in the cache folder, where the machine's other processes wait.

    They wait outside any collective, so that none can time out, however long a download takes.
    """
    cache = get_cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / f"{name}.lock")
        lock.acquire()
    except OSError as error:
        raise _explain_write_failure(error, cache) from error
    try:
        yield
    finally:
        lock.release()


def prepare_download(url: str) -> tuple[Path, Path]:
    """Download what the cache lacks; return the folders of the .mat files and of the images."""
    cache = get_cache_folder()
    images = cache / MD5_SUMS[ARCHIVE] / IMAGE_FOLDER
    with _lock_cache("download"):
        for name in (LABELS, SPLIT_IDS):
            _download_file(url, cache / name)
        if not _holds_images(images):
            _download_file(url, cache / ARCHIVE)
            _unpack(cache / ARCHIVE, images)
            (cache / ARCHIVE).unlink()
    return cache, images


def _prepare_local(folder: Path) -> Path:
    """Return the folder of the images of local files; unpack the archive if need be."""
    if _holds_images(folder / IMAGE_FOLDER):
        _compute_sums(folder, [LABELS, SPLIT_IDS])
        return folder / IMAGE_FOLDER
    checksum = _compute_sums(folder, [ARCHIVE, LABELS, SPLIT_IDS])[ARCHIVE]
    images = get_cache_folder() / checksum / IMAGE_FOLDER
    with _lock_cache(checksum):
        if not _holds_images(images):
            _unpack(folder / ARCHIVE, images)
    return images


def load_oxford(data_dir: str | None, url: str, protocol: str) -> DatasetDict:
    """Load Oxford Flowers102 from a directory, or download it.

    Returns:
        6149/1020/1020 rows for "swapped", 1020/1020/6149 for "official", ascending by image
        number; columns image, label.

    Raises:
        InputError: local files are missing or wrong.
        RunError: the download or the archive failed.
    """
    if data_dir is None:
        folder, images = prepare_download(url)
    else:
        folder = Path(data_dir)
        check_local_files(folder)
        images = _prepare_local(folder)
    classes, ids = read_labels(folder / LABELS) - 1, read_split_ids(folder / SPLIT_IDS)
    features = Features(image=datasets.Image(), label=ClassLabel(names=list(FLOWER_NAMES)))
    splits = DatasetDict()
    for split, original in PROTOCOLS[protocol].items():
        numbers = ids[original]
        paths = [str(images.absolute() / IMAGE_NAMES[number - 1]) for number in numbers]
        splits[split] = Dataset.from_dict(
            {"image": paths, "label": classes[numbers - 1]},
            features=features,
            split=datasets.NamedSplit(split),
        )
    return splits
