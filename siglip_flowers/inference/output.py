"""Format predictions: a table to read, JSON lines, or CSV."""

import json
from collections.abc import Callable
from typing import Any

from siglip_flowers.base.text import escape_unprintable, format_csv

CSV_COLUMNS = ("image", "rank", "label", "score", "known")
UNKNOWN = "not one of the known classes; nearest:"
MAX_NAME_WIDTH = 60

# Takes the name of an image, its results, and whether it shows a known class (None without a
# threshold), and returns the text to print.
Formatter = Callable[[str, list[dict[str, Any]], bool | None], str]


def choose_formatter(kind: str, names: list[str]) -> tuple[str, Formatter]:
    """Return the heading of a format ("" for none) and the function that formats one image.

    Args:
        kind: ``table``, ``json`` or ``csv``.
        names: Names of images, as far as they are known, for the width of the table's column.
    """
    if kind == "json":
        return "", format_json_line
    if kind == "csv":
        return format_csv([CSV_COLUMNS]), format_csv_lines
    width = max([len("image"), *(len(escape_unprintable(name)) for name in names)])
    width = min(width, MAX_NAME_WIDTH)
    heading = f"{'image':<{width}}    score  class\n"
    return heading, lambda name, results, known: format_table_lines(name, results, known, width)


def format_table_lines(
    name: str, results: list[dict[str, Any]], known: bool | None, width: int
) -> str:
    """Return one line per class, the first with the image's name.

    For an image of no known class the first line says so.
    """
    lines = []
    shown = escape_unprintable(name)
    if known is False:
        lines.append(f"{shown:<{width}}           {UNKNOWN}\n")
        shown = ""
    for result in results:
        score = f"{100 * result['score']:5.1f} %"
        lines.append(f"{shown:<{width}}  {score}  {escape_unprintable(result['label'])}\n")
        shown = ""
    return "".join(lines)


def format_json_line(name: str, results: list[dict[str, Any]], known: bool | None) -> str:
    """Return one line in ASCII.

    It is ``{"image": ..., "known": true|false|null, "predictions": [{"label", "score"}, ...]}``.
    """
    return json.dumps({"image": name, "known": known, "predictions": results}) + "\n"


def format_csv_lines(name: str, results: list[dict[str, Any]], known: bool | None) -> str:
    """Return one line per class; commas, quotes and line ends are quoted as in RFC 4180.

    ``known`` is ``true``, ``false``, or empty without a threshold.
    """
    return format_csv(
        [
            (
                name,
                rank,
                result["label"],
                float(result["score"]),
                "" if known is None else str(known).lower(),
            )
            for rank, result in enumerate(results, 1)
        ]
    )
