"""Safe unpacking of the original archive: images only, all of them or nothing."""

import errno
import gzip
import hashlib
import io
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from filelock import FileLock

from siglip_flowers.base.errors import RunError

# What gzip and tarfile raise for damaged or hostile files; headers of headers recurse.
UNREADABLE = (
    EOFError,
    OSError,
    tarfile.TarError,
    zlib.error,
    OverflowError,
    ValueError,
    LookupError,
    RecursionError,
)
IMAGE_FOLDER = "jpg"
IMAGE_NAME = re.compile(r"image_\d{5}\.jpg")
# The original unpacks to 0.35 GB; whatever goes far beyond that is not it.
MAX_UNPACKED_BYTES = 1 << 30
MAX_IMAGE_BYTES = 1 << 26
# Long names and extended attributes, which tarfile reads whole.
MAX_HEADER_BYTES = 1 << 20
HEADER_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
READ_BYTES = 1 << 20


def compute_md5(path: Path) -> str:
    """Return the MD5 sum of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


class _BoundedReader(io.BytesIO):
    """The unpacked stream of an archive, up to a size: a small file can hold a huge stream."""

    def __init__(self, archive: Path, stream: gzip.GzipFile, limit: int) -> None:
        super().__init__()
        self._archive = archive
        self._stream = stream
        self._limit = limit
        self._seen = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = self._stream.read(READ_BYTES if size is None or size < 0 else size)
        self._seen += len(content)
        if self._seen > self._limit:
            raise RunError(
                f"{self._archive} unpacks to more than {self._limit >> 20} MB, so it is not the "
                "Flowers102 archive; download 102flowers.tgz again."
            )
        return content


class _Entry(tarfile.TarInfo):
    """An entry that is refused before a huge header would be read into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Entry":
        entry = super().frombuf(buf, encoding, errors)
        if entry.type in HEADER_TYPES and entry.size > MAX_HEADER_BYTES:
            raise EOFError(f"a header claims to be {entry.size} bytes long")
        return entry


def _check_member(archive: Path, member: tarfile.TarInfo) -> str | None:
    """Return the file name of an image entry, None for an entry to leave out."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        problem = "points outside the archive"
    elif member.islnk() or member.issym():
        problem = "is a link"
    elif member.isdir():
        return None
    elif not member.isreg() or member.issparse():
        problem = "is not a regular file"
    elif member.size > MAX_IMAGE_BYTES:
        # Also where it is left out: tarfile would skip it in steps, however many those are.
        problem = f"claims to be {member.size} bytes long"
    elif path.parent == PurePosixPath(IMAGE_FOLDER) and IMAGE_NAME.fullmatch(path.name):
        return path.name
    else:
        return None
    raise RunError(
        f"{archive} is not safe to unpack: its entry {member.name[:200]!r} {problem}; "
        "download 102flowers.tgz again."
    )


def _read_images(archive: Path, limit: int) -> Iterator[tuple[str, bytes]]:
    with (
        gzip.open(archive) as stream,
        tarfile.open(
            fileobj=_BoundedReader(archive, stream, limit),
            mode="r|",
            bufsize=READ_BYTES,
            tarinfo=_Entry,
        ) as tar,
    ):
        for member in tar:
            name = _check_member(archive, member)
            if name is not None:
                file = tar.extractfile(member)
                assert file is not None, "a regular file has content"
                content = file.read()
                if len(content) != member.size:
                    raise EOFError(f"{member.name} ends early")
                yield name, content


def _iterate_readable(archive: Path, limit: int) -> Iterator[tuple[str, bytes]]:
    """Yield the images; raise RunError where the archive is cut short or damaged."""
    try:
        yield from _read_images(archive, limit)
    except UNREADABLE as error:
        raise RunError(
            f"{archive} is truncated or damaged ({' '.join(str(error).split())}); "
            "download 102flowers.tgz again."
        ) from error


def explain_write_failure(error: OSError, folder: Path, needed_bytes: int) -> RunError:
    """Say what was to be written where, and what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"The disk is full: the Flowers102 files need about "
            f"{max(1, needed_bytes >> 20)} MB under {folder}; free some space or set "
            "HF_DATASETS_CACHE to another disk."
        )
    return RunError(
        f"Cannot write the Flowers102 files under {folder} ({error.strerror or error}); "
        "set HF_DATASETS_CACHE to a writable directory."
    )


def holds_images(folder: Path, names: Collection[str]) -> bool:
    """Tell whether a folder holds every one of these files."""
    return folder.is_dir() and set(names) <= set(os.listdir(folder))


def _write_images(archive: Path, folder: Path, names: Collection[str], limit: int) -> None:
    """Write exactly the named images of an archive into a new folder."""
    folder.mkdir(parents=True)
    missing = set(names)
    for name, content in _iterate_readable(archive, limit):
        if name not in missing:
            raise RunError(
                f"{archive} holds {IMAGE_FOLDER}/{name} twice or beyond the {len(names)} "
                "expected images; download 102flowers.tgz again."
            )
        missing.remove(name)
        (folder / name).write_bytes(content)
    if missing:
        raise RunError(
            f"{archive} lacks {len(missing)} of {len(names)} images, {min(missing)} among them; "
            "download 102flowers.tgz again."
        )


def unpack_images(
    archive: Path,
    cache: Path,
    checksum: str,
    names: Collection[str],
    limit: int = MAX_UNPACKED_BYTES,
) -> Path:
    """Unpack the images under ``cache / checksum`` unless they are there, and return the folder.

    The folder appears whole or not at all: it is filled under another name and renamed. Processes
    that start together wait for the first of them.

    Raises:
        RunError: the archive is unsafe, damaged or incomplete, or the disk is full.
    """
    target = cache / checksum
    images = target / IMAGE_FOLDER
    if holds_images(images, names):
        return images
    temporary: str | None = None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{checksum}.lock"):
            if holds_images(images, names):
                return images
            temporary = tempfile.mkdtemp(prefix=f"{checksum}.", dir=cache)
            unpacked = Path(temporary) / "unpacked"
            _write_images(archive, unpacked / IMAGE_FOLDER, names, limit)
            if target.exists():  # left incomplete by somebody deleting files
                target.rename(Path(temporary) / "incomplete")
            unpacked.rename(target)
    except OSError as error:
        raise explain_write_failure(error, cache, archive.stat().st_size) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return images
