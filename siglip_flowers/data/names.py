"""Class names: always matched by name, never by their position in an alphabetical listing."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

import datasets

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.labels import FLOWER_NAMES

# Characters of a name in a message; a label of a data set can be as long as a book.
MAX_SHOWN = 200


def normalize_name(name: str) -> str:
    """Reduce a class name to lower-case words: ``Black_Eyed-Susan`` -> ``black eyed susan``.

    Apostrophes and question marks go without a trace, since folder names often lack them.
    """
    return " ".join(re.sub(r"[\W_]+", " ", re.sub(r"['’`?]", "", name.casefold())).split())


_POSITIONS = {normalize_name(name): position for position, name in enumerate(FLOWER_NAMES)}


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def is_text(name: str) -> bool:
    """Tell whether a file in UTF-8 can hold a name; that of a file may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def _check_names(names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if not name.strip():
            raise InputError(f"A class has the name {name!r}; give it one that can be read.")
        if not is_text(name):
            raise InputError(
                f"The class {name[:MAX_SHOWN]!r} has a name that is not UTF-8 text; rename it."
            )
        # The same letters can be written with accents of their own or without.
        other = seen.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise InputError(
                f"The classes {other[:MAX_SHOWN]!a} and {name[:MAX_SHOWN]!a} look the "
                "same (two Unicode forms of one name); rename one."
            )


def order_names(names: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """Choose the classes of a data set and give each of its names a class number.

    Names that all belong to Oxford Flowers102 get the original spelling and order (of those that
    occur); any other set of names is kept as it is, in natural order (``2`` before ``10``).

    Returns:
        The class names and, for each name that was given, its index into them.

    Raises:
        InputError: a name that is empty, that no file in UTF-8 can hold, or that looks like
            another one.
    """
    given = sorted(set(names), key=lambda name: (_natural_key(name), name))
    _check_names(given)
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
    """Join at most ``limit`` items for a message, cut where long, and say how many more."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    shown = (item if len(item) <= MAX_SHOWN else f"{item[:MAX_SHOWN]}…" for item in items[:limit])
    return ", ".join(shown) + more


def follow_model_classes(
    rows: datasets.Dataset, model_names: list[str], model_path: str
) -> datasets.Dataset:
    """Give the rows the model's class numbers, by name; the data may lack some of its classes.

    Raises:
        InputError: The data have classes that the model does not know.
    """
    names: list[str] = rows.features["label"].names
    if names == model_names:
        return rows
    number_of = {name: number for number, name in enumerate(model_names)}
    unknown = [name for name in names if name not in number_of]
    if unknown:
        raise InputError(
            f"The model {model_path} does not know {len(unknown)} of the data's {len(names)} "
            f"classes ({unknown[0]!r} for one); evaluate it on data with the classes it was "
            "trained on."
        )
    labels = [number_of[names[label]] for label in rows["label"]]
    return (
        rows.remove_columns("label")
        .add_column("label", labels)
        .cast_column("label", datasets.ClassLabel(names=model_names))
    )
