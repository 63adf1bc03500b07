"""Class names: always matched by name, never by their position in an alphabetical listing."""

import logging
import re
from collections.abc import Iterable, Sequence

import datasets

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.prompts import FLOWER_NAMES
from siglip_flowers.base.text import MAX_SHOWN, abbreviate, compose

logger = logging.getLogger(__name__)


def normalize_name(name: str) -> str:
    """Reduce a class name to lower-case words: ``Black_Eyed-Susan`` -> ``black eyed susan``.

    Apostrophes and question marks are dropped, since folder names often lack them.
    """
    return " ".join(re.sub(r"[\W_]+", " ", re.sub(r"['’`?]", "", name.casefold())).split())


_NUMBER = re.compile(r"[+-]?\d{1,100}(\.\d{1,100})?")
_POSITIONS = {normalize_name(name): position for position, name in enumerate(FLOWER_NAMES)}


def _split_numbers(name: str) -> list[tuple[int, int, str]]:
    # Python refuses to convert very long numbers, so they are compared in pieces.
    parts = re.split(r"(\d{1,18})", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def is_text(name: str) -> bool:
    """Return whether a file in UTF-8 can hold a name; a file's name may be any bytes."""
    return re.search("[\0\ud800-\udfff]", name) is None


def order_names(names: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """Choose the classes of a data set and give each of its names a class number.

    Names that all belong to Oxford Flowers102 get the original spelling and order (of those that
    occur). Any other set of names is kept as it is, in natural order (``2`` before ``10``). Names
    that differ in spelling only are a warning.

    Returns:
        The class names and, for each name that was given, its index into them.

    Raises:
        InputError: A name that is empty or not UTF-8 text.
    """
    given = sorted(set(names), key=lambda name: (_split_numbers(name), name))
    if all(_NUMBER.fullmatch(name) for name in given):
        given.sort(key=lambda name: (float(name), name))
    for name in given:
        if not name.strip() or not is_text(name):
            raise InputError(
                f"The class name {name[:MAX_SHOWN]!r} is empty or not UTF-8 text. Rename it."
            )
    positions = [_POSITIONS.get(normalize_name(name), -1) for name in given]
    if -1 in positions:
        _warn_of_similar_names(given, "rename one if they should be one class")
        return given, {name: index for index, name in enumerate(given)}
    _warn_of_similar_names(given, "they are read as one")
    present = sorted(set(positions))
    numbers = [present.index(position) for position in positions]
    return [FLOWER_NAMES[n] for n in present], dict(zip(given, numbers, strict=True))


def _warn_of_similar_names(names: list[str], advice: str) -> None:
    seen: dict[str, str] = {}
    for name in names:
        # The same letters can be written with accents of their own or without.
        composed = compose(name)
        other = seen.setdefault(normalize_name(composed) or name, name)
        if other != name:
            show = ascii if compose(other) == composed else repr
            pair = f"{show(other[:MAX_SHOWN])} and {show(name[:MAX_SHOWN])}"
            what = "case, punctuation or Unicode form"
            logger.warning("The classes %s differ in %s only; %s.", pair, what, advice)


def match_names(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Return the position of each class among known ones, None if it is not among them.

    A flower may be spelled in any way: its name is the original one only if all classes of a data
    set are flowers (see :func:`order_names`).
    """
    numbers = {name: number for number, name in enumerate(known)}
    flowers = {_POSITIONS.get(normalize_name(name)): number for name, number in numbers.items()}
    flowers.pop(None, None)
    return [numbers.get(n, flowers.get(_POSITIONS.get(normalize_name(n)))) for n in names]


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
    numbers = match_names(names, model_names)
    unknown = [name for name, number in zip(names, numbers, strict=True) if number is None]
    if unknown:
        raise InputError(
            f"The model {model_path} does not know {len(unknown)} of the data's {len(names)} "
            f"classes: {abbreviate(unknown)}. Evaluate it on data with the classes it was trained "
            "on."
        )
    labels = [numbers[label] for label in rows["label"]]
    feature = datasets.ClassLabel(names=model_names)
    return rows.remove_columns("label").add_column("label", labels, feature=feature)
