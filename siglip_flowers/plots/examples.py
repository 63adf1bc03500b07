"""Sheets of single predictions: image, true and predicted class, confidence, right or wrong."""

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image, ImageOps

from siglip_flowers.data.pixels.decoding import decode_rgb
from siglip_flowers.plots import theme

Example = tuple[Image.Image, str, str, float]

_COLUMNS = _FILES = 5
# Inches: the width of a panel, the side of its image, and the height of its caption.
_PANEL, _SIDE, _CAPTION = 4.4, 3.84, 1.9
_PIXELS = 384
_DPI, _SHEET_DPI = 100, 64
_NAME_LETTERS, _NAME_LINES = 23, 2


def choose_examples(
    labels: ArrayLike, probabilities: ArrayLike, count_right: int, count_wrong: int, seed: int
) -> list[int]:
    """Choose rows that were predicted right and wrong, alternating and starting with a right one.

    If there are too few of one kind, the other fills its places. Classes that are not shown yet
    come before a second image of the same class. Equal arguments give equal rows.

    labels: integers in [0, classes), shape (n,). probabilities: shape (n, classes). Returns at
    most count_right + count_wrong different row numbers.
    """
    true = np.asarray(labels)
    is_right = np.asarray(probabilities).argmax(axis=1) == true
    order = np.random.default_rng(seed).permutation(len(true))
    right, wrong = (
        spread_classes(order[is_right[order] == kind], true).tolist() for kind in (1, 0)
    )
    spare_right = max(0, count_right - len(right))
    spare_wrong = max(0, count_wrong - len(wrong))
    pairs = zip_longest(right[: count_right + spare_wrong], wrong[: count_wrong + spare_right])
    return [row for pair in pairs for row in pair if row is not None]


def save_examples(examples: Sequence[Example], output_dir: Path, title: str) -> None:
    """Draw predictions into ``example1.png`` to ``example5.png`` and one ``examples.png``.

    The first five examples get a file each; the sheet shows all of them.

    examples: image of any size and mode, true class, predicted class, and the probability of the
    predicted class in [0, 1].
    """
    for number, example in enumerate(examples[:_FILES], start=1):
        figure = _draw_panels([example], title)
        theme.save_figure(figure, output_dir / f"example{number}.png", _DPI)
    # Photographs make large PNG files.
    theme.save_figure(_draw_panels(examples, title), output_dir / "examples.png", _SHEET_DPI)


def spread_classes(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Reorder rows: classes that did not come yet before a second row of the same class.

    rows: (M,) numbers; labels: (N,), of all rows. Their order is kept otherwise.
    """
    times_seen: Counter[int] = Counter()
    repeats = []
    for label in labels[rows].tolist():
        repeats.append(times_seen[label])
        times_seen[label] += 1
    # A stable sort keeps the order among equals.
    return rows[np.argsort(repeats, kind="stable")]


def _draw_panels(examples: Sequence[Example], title: str) -> Figure:
    columns = min(len(examples), _COLUMNS)
    rows = -(-len(examples) // columns)
    width, panel = columns * _PANEL, _SIDE + _CAPTION
    height = rows * panel + 1.0
    figure = theme.make_figure(width, height, title, points=10.0 if columns == 1 else 14.0)
    figure.set_layout_engine("none")
    margin = (_PANEL - _SIDE) / 2
    for number, example in enumerate(examples):
        row, column = divmod(number, columns)
        left, bottom = column * _PANEL + margin, height - 1.0 - row * panel - _SIDE
        place = (left / width, bottom / height, _SIDE / width, _SIDE / height)
        _draw_panel(figure.add_axes(place), example)
    return figure


def _draw_panel(axes: Axes, example: Example) -> None:
    image, true_name, predicted_name, confidence = example
    is_right = true_name == predicted_name
    color = theme.RIGHT_COLOR if is_right else theme.WRONG_COLOR
    square = ImageOps.pad(
        decode_rgb(image), (_PIXELS, _PIXELS), Image.Resampling.LANCZOS, color="white"
    )
    axes.imshow(np.asarray(square), interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        # Right and wrong differ without color as well.
        spine.set(color=color, linewidth=3, linestyle="solid" if is_right else (0, (4, 2)))
    verdict = "\N{CHECK MARK} right" if is_right else "\N{BALLOT X} wrong"
    texts = [(0.0, -0.09, verdict, color, 15)]
    rows = zip(("true", "predicted", "confidence"), (true_name, predicted_name, ""), strict=True)
    y = -0.165
    for label, name in rows:
        texts.append((0.0, y, label, theme.MUTED_COLOR, 13))
        value = theme.wrap(name, _NAME_LETTERS, _NAME_LINES) or format_confidence(confidence)
        # Each line is a text: letters with accents make lines of a longer one higher.
        for line in value.split("\n"):
            texts.append((0.31, y, line, theme.TEXT_COLOR, 13))
            y -= 0.0625
    for x, y, text, shade, size in texts:
        shown = axes.text(x, y, text, color=shade, fontsize=size, transform=axes.transAxes)
        shown.set(parse_math=False, weight="bold" if text is verdict else "normal")


def format_confidence(confidence: float) -> str:
    """Return a probability in percent, without claiming a certainty that no softmax reaches."""
    return "> 99.9%" if 0.9995 <= confidence < 1.0 else f"{100 * confidence:.1f}%"
