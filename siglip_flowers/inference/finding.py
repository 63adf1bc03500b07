"""Find the images that a command line names: files, folders, patterns, URLs."""

import glob
import http.client
import io
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.paths import is_url

STANDARD_INPUT = "-"
MAX_BYTES = 64 * 2**20
TIMEOUT_SECONDS = 20.0
CHUNK_BYTES = 2**16


def check_paths(paths: Iterable[str], *, allow_urls: bool) -> None:
    """Check what can be checked without reading folders.

    Raises:
        InputError: A path does not exist, or is a URL and URLs are not allowed.
    """
    for path in paths:
        if is_url(path):
            if not allow_urls:
                raise InputError(f"{path!r} is a URL; pass --allow_urls to fetch it.")
        elif path != STANDARD_INPUT and not os.path.exists(path) and not glob.has_magic(path):
            raise InputError(f"{path!r} does not exist; name a file, a folder or a quoted pattern.")


def find_images(paths: Iterable[str], extensions: frozenset[str]) -> list[str]:
    """Return the files that files, folders and patterns name, in the order of the paths.

    Folders are searched with all their subfolders, sorted by name, for files with the extension of
    an image; hidden ones are skipped. URLs and ``-`` are returned as they are.

    Args:
        paths: Those that :func:`check_paths` accepts.
        extensions: Extensions of images, lower case with a dot.

    Raises:
        InputError: A folder or pattern has no image.
    """
    found: list[str] = []
    for path in paths:
        is_folder = os.path.isdir(path)
        if path == STANDARD_INPUT or is_url(path) or (os.path.exists(path) and not is_folder):
            found.append(path)
            continue
        matches = filter(os.path.isfile, glob.glob(path, recursive=True))
        files = _walk(path) if is_folder else sorted(matches)
        images = [file for file in files if Path(file).suffix.lower() in extensions]
        if not images:
            raise InputError(
                f"{path!r} contains no image; images are recognized by their extension, such as "
                ".jpg or .png. Quote a pattern, so that the shell does not expand it."
            )
        found += images
    return found


def _walk(folder: str) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise error

    seen = set()
    for directory, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        place = os.path.realpath(directory)
        if place in seen:  # through a link
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(name for name in files if not name.startswith("."))
        yield from (os.path.join(directory, name) for name in names)


def insert_list(found: list[str], stream: TextIO) -> Iterator[str]:
    """Yield the paths that were found, with the lines of the stream in place of ``-``."""
    for path in found:
        if path != STANDARD_INPUT:
            yield path
            continue
        if isinstance(stream, io.TextIOWrapper):
            # As for paths on the command line: file names need not be UTF-8.
            stream.reconfigure(errors="surrogateescape")
        yield from filter(None, (line.rstrip("\r\n") for line in stream))


def fetch_image(
    url: str, *, max_bytes: int = MAX_BYTES, timeout_seconds: float = TIMEOUT_SECONDS
) -> bytes:
    """Return the bytes behind an http or https URL.

    Raises:
        OSError: It cannot be reached, answers with an error, is too large or takes too long.
        ValueError: It is not such a URL.
    """
    if not is_url(url):
        raise ValueError("not an http or https URL")
    deadline = time.monotonic() + timeout_seconds
    request = urllib.request.Request(url, headers={"User-Agent": "siglip-flowers"})
    content = bytearray()
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as response:
            # The socket's timeout limits silence; a server that drips bytes needs the deadline.
            while chunk := response.read1(CHUNK_BYTES):
                content += chunk
                if len(content) > max_bytes:
                    raise OSError(f"larger than {max_bytes / 2**20:g} MiB")
                if time.monotonic() > deadline:
                    raise OSError(f"no complete answer within {timeout_seconds:g} seconds")
    except (urllib.error.URLError, http.client.HTTPException) as error:
        raise OSError(f"cannot be fetched ({getattr(error, 'reason', error)})") from error
    return bytes(content)
