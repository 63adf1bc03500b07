"""Text for terminals, spreadsheets and Markdown.

Nothing that a label or a file name contains may act on a terminal: characters that are not
printable are written as escapes.
"""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence

# A cell that starts with one of these may be a formula in a spreadsheet.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
# Characters of a name in a message; a label of a data set can be as long as a book.
MAX_SHOWN = 200
# They change how letters or emoji beside them are drawn.
JOINERS = "\u200c\u200d"
# Of an organization or user, and of a model: the Hub's own rules.
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(f"{_NAME}/{_NAME}")


def is_printable(char: str) -> bool:
    """Return whether a character is one of text: printable, a space of any kind, or a joiner."""
    return char.isprintable() or char in JOINERS or unicodedata.category(char) == "Zs"


def escape_unprintable(text: str, keep: str = "") -> str:
    """Replace control and other unprintable characters with escapes such as ``\\x1b``."""
    return "".join(
        char
        if is_printable(char) or char in keep
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().split("\n")[0].rstrip(".")[:300] or type(error).__name__


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return the number with its noun: ``1 image``, ``2 images``, ``3 classes``."""
    if number == 1:
        return f"{number} {noun}"
    ending = "es" if noun.endswith(("s", "sh", "ch", "x")) else "s"
    return f"{number} {plural or noun + ending}"


def abbreviate(items: Sequence[str], limit: int = 10) -> str:
    """Join at most ``limit`` items for a message, long ones cut, and say how many more."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    shown = (item if len(item) <= MAX_SHOWN else f"{item[:MAX_SHOWN]}…" for item in items[:limit])
    return ", ".join(shown) + more


def shorten_description(description: str) -> str:
    """Return the name of a data set from its description, without source, splits and sizes."""
    return description.split(" (")[0].split(", ")[0]


def format_csv(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV: numbers with six digits, and text that no spreadsheet computes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [_to_cell(value) for value in row] for row in rows
    )
    return text.getvalue()


def _to_cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6g}"
    if not isinstance(value, str):
        return value
    shown = escape_unprintable(value, keep="\n\r\t")
    # A spreadsheet takes what follows an apostrophe as text.
    return f"'{shown}" if shown.startswith(FORMULA_SIGNS) else shown


def compose(text: str) -> str:
    """Return text in the form in which most systems write it; macOS splits letters and accents."""
    return unicodedata.normalize("NFC", text)


def measure_width(text: str) -> int:
    """Return how many columns a terminal needs: East Asian letters take two, accents none."""
    drawn = (char for char in text if unicodedata.category(char) not in ("Mn", "Me", "Cf"))
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in drawn)


def pad(text: str, width: int) -> str:
    """Fill text with spaces to a width."""
    return text + " " * (width - measure_width(text))


def align_columns(lines: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines of text: the first column left-aligned, the others right."""
    widths = [max(map(measure_width, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            pad(cell, width) if index == 0 else " " * (width - measure_width(cell)) + cell
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def format_markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; the first row is its heading."""
    # A bar in a name would end its cell.
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|---" + "|---:" * (len(rows[0]) - 1) + "|", *lines[1:]]


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form ``ORG/NAME`` of a model or data set on the Hub."""
    return (
        _HUB_ID.fullmatch(name) is not None
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
    )
