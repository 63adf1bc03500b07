"""Colors, fonts, titles and files of all figures, without pyplot's global state."""

import functools
import io
import logging
from pathlib import Path
from typing import IO, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text
from PIL import Image

from siglip_flowers.base.files import atomic_path
from siglip_flowers.base.text import escape_unprintable, measure_width

logger = logging.getLogger(__name__)

# Dark enough on white, and distinct in gray and with any color vision (Okabe and Ito, 2008).
TRAIN_COLOR = "#0072B2"
VALIDATION_COLOR = "#D55E00"
RIGHT_COLOR = "#1B7837"
WRONG_COLOR = "#B2182B"
TEXT_COLOR = "#222222"
MUTED_COLOR = "#666666"
GRID_COLOR = "#E3E3E3"

_DPI = 160
_TITLE_POINTS = 10.0
# The average width of a letter, as a share of the font size, rounded up.
_LETTER = 0.6
_FONT = "DejaVu Sans"


@functools.cache
def _read_characters(path: str) -> frozenset[int]:
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@functools.cache
def _find_font(char: str) -> str | None:
    """Return the first font family that has a character; None without any."""
    if ord(char) in _read_characters(findfont(_FONT)):
        return _FONT
    for font in fontManager.ttflist:
        # The last resort has a box for every character.
        if not font.name.startswith("Last Resort") and ord(char) in _read_characters(font.fname):
            return font.name
    return None


@functools.cache
def _warn_once() -> None:
    logger.warning(
        "No installed font has some characters of the names, so plots show escapes. Install a "
        "font that has them, such as Noto Sans CJK."
    )


def make_drawable(text: str) -> str:
    """Return a text as figures can show it: characters without a font become escapes."""
    shown = escape_unprintable(text, keep="\n")
    for char in sorted(set(shown) - {"\n"}):
        if _find_font(char) is None:
            _warn_once()
            shown = shown.replace(char, char.encode("unicode_escape").decode("ascii"))
    return shown


def shorten(text: str, width: int) -> str:
    """Return a drawable text of at most ``width`` letters, cut by an ellipsis."""
    return wrap(text, width, 1)


def wrap(text: str, width: int, max_lines: int = 4) -> str:
    """Return a drawable text in lines of at most ``width`` letters, the last cut by an ellipsis.

    Letters of Chinese, Japanese and Korean count twice.
    """
    lines: list[str] = []
    words = make_drawable(text).split()
    while words and len(lines) < max_lines:
        line = words.pop(0)
        while words and measure_width(f"{line} {words[0]}") <= width:
            line += f" {words.pop(0)}"
        kept = _count_fitting(line, width)
        if kept < len(line):
            words.insert(0, line[kept:])
        lines.append(line[:kept])
    if words:
        lines[-1] = f"{lines[-1][: _count_fitting(lines[-1], width - 1)]}…"
    return "\n".join(lines)


def _count_fitting(text: str, width: int) -> int:
    """Return how many of the first characters fit; at least one."""
    count = len(text)
    while count > 1 and measure_width(text[:count]) > width:
        count -= 1
    return count


def make_figure(
    width: float, height: float, title: str = "", points: float = _TITLE_POINTS
) -> Figure:
    """Return an empty white figure of a size in inches, with a wrapped title on the left."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        letters = int(72 * (width - 0.2) / (_LETTER * points))
        figure.suptitle(
            wrap(title, letters),
            x=0.1 / width,
            ha="left",
            fontsize=points,
            color=TEXT_COLOR,
            parse_math=False,
        )
    return figure


def style_axes(axes: Axes) -> None:
    """Give axes a light grid and only the spines on the left and at the bottom."""
    axes.grid(True, color=GRID_COLOR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=TEXT_COLOR, length=3)
    axes.xaxis.label.set_color(TEXT_COLOR)
    axes.yaxis.label.set_color(TEXT_COLOR)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#999999")


def _render(figure: Figure, target: str | Path | IO[Any], **options: Any) -> None:
    """Save a figure with fonts for all its texts; equal figures give equal files."""
    for text in figure.findobj(Text):
        fonts = {_find_font(char) for char in text.get_text()} - {None, _FONT}
        if fonts:
            text.set_fontfamily([_FONT, *sorted(font for font in fonts if font)])
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "siglip-flowers"}
    with matplotlib.rc_context(settings):
        figure.savefig(target, **options)


def save_figure(figure: Figure, path: Path, dpi: int = _DPI) -> None:
    """Write a figure as PNG; the path has either its former content or the whole new file."""
    with atomic_path(path) as temporary:
        _render(figure, temporary, format="png", dpi=dpi, metadata={"Software": None})


def to_image(figure: Figure, dpi: int = 100) -> Image.Image:
    """Return a figure as pixels."""
    buffer = io.BytesIO()
    _render(figure, buffer, format="png", dpi=dpi)
    return Image.open(buffer).convert("RGB")


def to_svg(figure: Figure) -> str:
    """Return a figure as an SVG element with texts as text."""
    buffer = io.StringIO()
    facts = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    _render(figure, buffer, format="svg", metadata=facts)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
