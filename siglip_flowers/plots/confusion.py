"""The figure of a confusion matrix."""

from collections.abc import Sequence

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from siglip_flowers.plots.theme import (
    MUTED_COLOR,
    TEXT_COLOR,
    TRAIN_COLOR,
    WRONG_COLOR,
    make_figure,
    shorten,
)

# Inches.
_LARGEST_CELL, _SMALLEST_CELL, _LARGEST_SIDE = 0.6, 0.15, 24.0
_NAME_LETTERS = 28
# Cells of more classes are too small for numbers, then rows too low for names.
_COUNTED_CLASSES, _NAMED_CLASSES = 20, 250


def draw_confusion(counts: ArrayLike, class_names: Sequence[str], title: str = "") -> Figure:
    """Draw how many images of each true class (row) got each predicted class (column).

    The shade of a cell is the square root of its share of the true class, so that single errors
    in a large class are visible. The collection of cells, row by row, has the id ``confusion``.

    counts: (C, C) integers, true classes in rows.
    """
    table = np.asarray(counts)
    classes = len(table)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    cell = min(_LARGEST_CELL, max(_SMALLEST_CELL, 5 / classes), _LARGEST_SIDE / classes)
    side = cell * classes
    figure = make_figure(max(5.0, side + 2.4), max(2.0, side) + 2.4, title)
    axes = figure.add_subplot()
    rows, columns = np.nonzero(table)
    colors = np.where(rows == columns, TRAIN_COLOR, WRONG_COLOR).tolist()
    squares = [
        [(x - 0.5, y - 0.5), (x + 0.5, y - 0.5), (x + 0.5, y + 0.5), (x - 0.5, y + 0.5)]
        for y, x in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    opacity = 0.2 + 0.8 * np.sqrt(shares[rows, columns])
    cells = PolyCollection(squares, facecolors=colors, alpha=opacity, linewidths=0)
    cells.set_gid("confusion")
    axes.add_collection(cells)
    size = min(9.0, 50 * cell)
    if classes <= _COUNTED_CLASSES:
        for y, x in np.ndindex(table.shape):
            color = "white" if shares[y, x] > 0.4 else TEXT_COLOR if table[y, x] else MUTED_COLOR
            axes.text(x, y, str(table[y, x]), color=color, fontsize=size, ha="center", va="center")
    if classes <= _NAMED_CLASSES:
        names = [shorten(name, _NAME_LETTERS) for name in class_names]
        axes.set_xticks(range(classes), names, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(classes), names, fontsize=size, parse_math=False)
    axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5), aspect="equal")
    axes.set_xlabel("predicted class", color=TEXT_COLOR)
    axes.set_ylabel("true class", color=TEXT_COLOR)
    axes.tick_params(length=0, colors=TEXT_COLOR)
    for spine in axes.spines.values():
        spine.set_color("#999999")
    return figure
