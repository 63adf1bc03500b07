"""Print predictions: a table to read, JSON lines, or CSV.

Whatever a label or a file name holds, nothing reaches a terminal that it would obey: characters
that are not printable are written as escapes.
"""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

CSV_COLUMNS = ("picture", "rank", "label", "score")
MAX_NAME_WIDTH = 60

# Takes the name of a picture and its results, and returns the text to print.
Formatter = Callable[[str, list[dict[str, Any]]], str]


def escape_unprintable(text: str, keep: str = "") -> str:
    """Replace control and other unprintable characters by escapes such as ``\\x1b``."""
    return "".join(
        char
        if char.isprintable() or char in keep
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def choose_formatter(kind: str, names: list[str]) -> tuple[str, Formatter]:
    """Return the heading of a format ("" for none) and the function that formats one picture.

    Args:
        kind: ``table``, ``json`` or ``csv``.
        names: Names of pictures, as far as they are known, for the width of the table's column.
    """
    if kind == "json":
        return "", format_json_line
    if kind == "csv":
        return _to_csv([CSV_COLUMNS]), format_csv_lines
    width = max([len("picture"), *(len(escape_unprintable(name)) for name in names)])
    width = min(width, MAX_NAME_WIDTH)
    heading = f"{'picture':<{width}}    score  class\n"
    return heading, lambda name, results: format_table_lines(name, results, width)


def format_table_lines(name: str, results: list[dict[str, Any]], width: int) -> str:
    """Return a line for each class, the first with the picture's name."""
    lines = []
    shown = escape_unprintable(name)
    for result in results:
        score = f"{100 * result['score']:5.1f} %"
        lines.append(f"{shown:<{width}}  {score}  {escape_unprintable(result['label'])}\n")
        shown = ""
    return "".join(lines)


def format_json_line(name: str, results: list[dict[str, Any]]) -> str:
    """Return one line, ``{"picture": ..., "predictions": [{"label", "score"}, ...]}``, in ASCII."""
    return json.dumps({"picture": name, "predictions": results}) + "\n"


def format_csv_lines(name: str, results: list[dict[str, Any]]) -> str:
    """Return a line for each class; commas, quotes and line ends are quoted as in RFC 4180."""
    return _to_csv(
        [
            (
                escape_unprintable(name, keep="\n\r\t"),
                rank,
                escape_unprintable(result["label"], keep="\n\r\t"),
                f"{result['score']:.6g}",
            )
            for rank, result in enumerate(results, 1)
        ]
    )


def _to_csv(rows: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
