"""Find the images that a command line names, and fetch those that are URLs."""

import glob
import io
import itertools
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from siglip_flowers.base.errors import InputError

MAX_BYTES = 64 * 2**20
TIMEOUT_SECONDS = 20.0
CHUNK_BYTES = 2**16


def _build_opener() -> urllib.request.OpenerDirector:
    """Return an opener that knows http and https only, also when it is redirected."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def is_url(source: object) -> bool:
    """Return whether this is an http or https URL."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def fetch_image(
    url: str, *, max_bytes: int = MAX_BYTES, timeout_seconds: float = TIMEOUT_SECONDS
) -> bytes:
    """Return the bytes behind an http or https URL.

    Raises:
        OSError: It cannot be reached, answers with an error, is too large or takes too long.
        ValueError: It is no such URL.
    """
    if not is_url(url):
        raise ValueError("not an http or https URL")
    deadline = time.monotonic() + timeout_seconds
    request = urllib.request.Request(url, headers={"User-Agent": "siglip-flowers"})
    content = bytearray()
    try:
        with _build_opener().open(request, timeout=timeout_seconds) as response:
            # The socket's timeout is one of silence; a server that drips needs the deadline.
            while chunk := response.read1(CHUNK_BYTES):
                content += chunk
                if len(content) > max_bytes:
                    raise OSError(f"larger than {max_bytes / 2**20:g} MiB")
                if time.monotonic() > deadline:
                    raise TimeoutError
    except TimeoutError as error:
        raise OSError(f"no whole answer within {timeout_seconds:g} seconds") from error
    except urllib.error.HTTPError as error:
        raise OSError(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise OSError(f"cannot be reached ({error.reason})") from error
    return bytes(content)


STANDARD_INPUT = "-"


def check_paths(paths: Iterable[str], *, allow_urls: bool) -> None:
    """Check what can be told at once.

    Raises:
        InputError: Something does not exist, or is a URL and not allowed.
    """
    for path in paths:
        if is_url(path):
            if not allow_urls:
                raise InputError(f"{path!r} is a URL; pass --allow_urls to have it fetched.")
        elif path != STANDARD_INPUT and not os.path.exists(path) and not glob.has_magic(path):
            raise InputError(f"{path!r} does not exist; name a file, a folder or a quoted pattern.")


def find_images(paths: Iterable[str], extensions: frozenset[str]) -> list[str]:
    """Return the files that files, folders and patterns stand for, in the order of the paths.

    Folders are searched through with all that lies below them, sorted by name, for files that end
    like an image; hidden ones are left out. URLs and ``-`` are returned as they are.

    Args:
        paths: Those that :func:`check_paths` let pass.
        extensions: Endings of images, lower case with a dot.

    Raises:
        InputError: A folder holds no image, or a pattern matches none.
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
            f"There is no image in the folder {folder!r}; files are told by their ending, such "
            "as .jpg or .png."
        )
    return found


def _match_pattern(pattern: str, extensions: frozenset[str]) -> list[str]:
    """Return the files that match; whoever writes * for the ending means images all the same."""
    matches = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    found = [path for path in matches if Path(path).suffix.lower() in extensions]
    if not found:
        raise InputError(
            f"The pattern {pattern!r} matches no image; quote it, so that the shell leaves it as "
            "it is, and check where it starts."
        )
    return found


def read_list(stream: TextIO) -> Iterator[str]:
    """Yield the paths or URLs of a list, one a line; empty lines are passed over."""
    if isinstance(stream, io.TextIOWrapper):
        # As for paths on the command line: names of files need not be UTF-8.
        stream.reconfigure(errors="surrogateescape")
    return (path for line in stream if (path := line.rstrip("\r\n")))


def insert_list(found: list[str], stream: TextIO) -> Iterator[str]:
    """Yield what was found, with the lines of the stream in the place of ``-``."""
    return itertools.chain.from_iterable(
        read_list(stream) if path == STANDARD_INPUT else [path] for path in found
    )
