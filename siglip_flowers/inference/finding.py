"""Find the images that a command line names: files, folders, patterns, URLs."""

import glob
import io
import itertools
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from siglip_flowers.base.errors import InputError

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
        InputError: A folder contains no image, or a pattern matches none.
    """
    found: list[str] = []
    for path in paths:
        if path == STANDARD_INPUT or is_url(path):
            found.append(path)
        elif os.path.isdir(path):
            found += _search_folder(path, extensions)
        elif os.path.exists(path):
            found.append(path)
        else:
            found += _match_pattern(path, extensions)
    return found


def _search_folder(folder: str, extensions: frozenset[str]) -> list[str]:
    found = []
    for directory, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.join(directory, name)
            for name in sorted(files)
            if not name.startswith(".") and Path(name).suffix.lower() in extensions
        ]
    if not found:
        raise InputError(
            f"The folder {folder!r} contains no image; images are recognized by their extension, "
            "such as .jpg or .png."
        )
    return found


def _match_pattern(pattern: str, extensions: frozenset[str]) -> list[str]:
    """Return the images among the files that match, also if the pattern ends in ``*``."""
    matches = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    found = [path for path in matches if Path(path).suffix.lower() in extensions]
    if not found:
        raise InputError(
            f"The pattern {pattern!r} matches no image. Quote it, so that the shell does not "
            "expand it, and check the folder it starts in."
        )
    return found


def insert_list(found: list[str], stream: TextIO) -> Iterator[str]:
    """Yield the paths that were found, with the lines of the stream in place of ``-``."""
    return itertools.chain.from_iterable(
        _read_list(stream) if path == STANDARD_INPUT else [path] for path in found
    )


def _read_list(stream: TextIO) -> Iterator[str]:
    """Yield the paths or URLs of a list, one per line; empty lines are skipped."""
    if isinstance(stream, io.TextIOWrapper):
        # As for paths on the command line: file names need not be UTF-8.
        stream.reconfigure(errors="surrogateescape")
    return (path for line in stream if (path := line.rstrip("\r\n")))


def is_url(source: object) -> bool:
    """Return whether this is an http or https URL."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only; any other one is an HTTPError."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any
    ) -> Any:
        if not is_url(newurl):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


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
    opener = urllib.request.build_opener(_HttpRedirects)
    content = bytearray()
    try:
        with opener.open(request, timeout=timeout_seconds) as response:
            # The socket's timeout limits silence; a server that drips bytes needs the deadline.
            while chunk := response.read1(CHUNK_BYTES):
                content += chunk
                if len(content) > max_bytes:
                    raise OSError(f"larger than {max_bytes / 2**20:g} MiB")
                if time.monotonic() > deadline:
                    raise TimeoutError
    except TimeoutError as error:
        raise OSError(f"no complete answer within {timeout_seconds:g} seconds") from error
    except urllib.error.HTTPError as error:
        raise OSError(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise OSError(f"cannot be reached ({error.reason})") from error
    return bytes(content)
