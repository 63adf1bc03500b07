"""Class names: always matched by name, never by their position in an alphabetical listing."""

import re
from collections.abc import Iterable, Sequence

from siglip_flowers.labels import FLOWER_NAMES


def normalize_name(name: str) -> str:
    """Reduce a class name to lower-case words: ``Black_Eyed-Susan`` -> ``black eyed susan``.

    Apostrophes and question marks go without a trace, since folder names often lack them.
    """
    return " ".join(re.sub(r"[\W_]+", " ", re.sub(r"['’`?]", "", name.casefold())).split())


_POSITIONS = {normalize_name(name): position for position, name in enumerate(FLOWER_NAMES)}


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def order_names(names: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """Choose the classes of a data set and give each of its names a class number.

    Names that all belong to Oxford Flowers102 get the original spelling and order (of those that
    occur); any other set of names is kept as it is, in natural order (``2`` before ``10``).

    Returns:
        The class names and, for each name that was given, its index into them.
    """
    given = sorted(set(names), key=lambda name: (_natural_key(name), name))
    positions = [_POSITIONS.get(normalize_name(name)) for name in given]
    known = [position for position in positions if position is not None]
    if len(known) < len(given):
        return given, {name: index for index, name in enumerate(given)}
    present = sorted(set(known))
    classes = [FLOWER_NAMES[position] for position in present]
    return classes, {
        name: present.index(position) for name, position in zip(given, known, strict=True)
    }


def abbreviate(items: Sequence[str], limit: int = 10) -> str:
    """Join at most ``limit`` items for a message and say how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
