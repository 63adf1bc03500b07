"""Find the images that a command line names."""

import glob
import io
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from siglip_flowers.base.errors import InputError
from siglip_flowers.inference.urls import is_url

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
