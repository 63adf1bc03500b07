"""Figures of a run: loss and accuracy by epoch, and the confusion matrix."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from siglip_flowers.plots.theme import (
    MUTED_COLOR,
    TEXT_COLOR,
    TRAIN_COLOR,
    VALIDATION_COLOR,
    WRONG_COLOR,
    make_figure,
    save_figure,
    shorten,
    style_axes,
)

HistoryRow = dict[str, Any]

# Inches.
_WIDTH, _HEIGHT = 7.5, 4.6
_LARGEST_CELL, _SMALLEST_CELL, _LARGEST_SIDE = 0.6, 0.15, 24.0
_NAME_LETTERS = 28
# Cells of more classes are too small for numbers, then rows too low for names.
_COUNTED_CLASSES, _NAMED_CLASSES = 20, 250


def plot_curves(history: Sequence[HistoryRow], path: Path, title: str, name: str) -> None:
    """Draw the train and validation loss or accuracy by epoch into a PNG file.

    Values that are missing, None or not finite are left out. Accuracy is drawn in percent.

    Args:
        history: Rows of a run, each with any of ``epoch``, ``NAME`` (running, on augmented
            images), ``train_NAME`` and ``validation_NAME``; the highest
            ``validation_accuracy`` marks the best epoch. Accuracies are in [0, 1].
        path: The file.
        title: Of the figure.
        name: ``loss`` or ``accuracy``.
    """
    figure = make_figure(_WIDTH, _HEIGHT, title)
    axes = figure.add_subplot()
    axes.set(xlabel="epoch", ylabel="accuracy, %" if name == "accuracy" else name)
    style_axes(axes)
    scale = 100.0 if name == "accuracy" else 1.0
    epochs, values = _read_points(history, name, scale)
    if epochs:
        # A line through one point is invisible.
        marker = "." if len(epochs) == 1 else None
        label = "train, augmented (running)"
        axes.plot(
            epochs, values, color=TRAIN_COLOR, alpha=0.4, linewidth=1, marker=marker, label=label
        )
    for split, color, marker in (
        ("train", TRAIN_COLOR, "o"),
        ("validation", VALIDATION_COLOR, "s"),
    ):
        epochs, values = _read_points(history, f"{split}_{name}", scale)
        if epochs:
            # About thirty markers fit side by side before they merge into a band.
            size = 5.0 if len(epochs) <= 30 else 3.0
            axes.plot(epochs, values, color=color, linewidth=2, label=split)
            axes.lines[-1].set(marker=marker, markersize=size, markeredgecolor="white")
    _mark_best_epoch(axes, history, f"validation_{name}", scale)
    _finish_axes(axes)
    if axes.lines and name == "accuracy":
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -2.0), min(high, 102.0))
    save_figure(figure, path)


def _mark_best_epoch(axes: Axes, history: Sequence[HistoryRow], key: str, scale: float) -> None:
    """Mark the first row with the highest validation accuracy, if there is one."""
    rows = [row for row in history if _is_number(row.get("validation_accuracy"))]
    best = max(rows, key=lambda row: row["validation_accuracy"], default={})
    if not _is_number(best.get("epoch")) or not _is_number(best.get(key)):
        return
    percent = 100 * best["validation_accuracy"]
    label = f"best validation accuracy: {percent:.2f}%, epoch {best['epoch']:.4g}"
    axes.axvline(best["epoch"], color=MUTED_COLOR, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.plot(best["epoch"], best[key] * scale, "*", color=VALIDATION_COLOR, label=label)
    axes.lines[-1].set(markersize=14, markeredgecolor=TEXT_COLOR, markeredgewidth=0.8, zorder=4)


def _finish_axes(axes: Axes) -> None:
    if not axes.lines:
        # As of a head that was fitted on features.
        place = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(0.5, 0.5, "nothing was measured", color=MUTED_COLOR, **place)  # type: ignore[arg-type]
        axes.set(xticks=[], yticks=[])
        return
    last = max(float(np.max(line.get_xdata())) for line in axes.lines)
    axes.set_xlim(0.0, max(last, 1e-9) * 1.025)
    # A short run may end in its first epoch, where whole epochs would be no ticks.
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=last >= 3, steps=[1, 2, 5, 10]))
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9.5, labelcolor=TEXT_COLOR)


def _read_points(
    history: Sequence[HistoryRow], key: str, scale: float
) -> tuple[list[float], list[float]]:
    points = sorted(
        (float(row["epoch"]), float(row[key]) * scale)
        for row in history
        if _is_number(row.get("epoch")) and _is_number(row.get(key))
    )
    return [epoch for epoch, _ in points], [value for _, value in points]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


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
    else:
        # Row numbers would say nothing; the report shows the names of a cell.
        axes.set(xticks=[], yticks=[])
    axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5), aspect="equal")
    # A matrix without names is looked at from afar.
    label_size = 10.0 if classes <= _NAMED_CLASSES else side
    axes.set_xlabel("predicted class", color=TEXT_COLOR, fontsize=label_size)
    axes.set_ylabel("true class", color=TEXT_COLOR, fontsize=label_size)
    axes.tick_params(length=0, colors=TEXT_COLOR)
    for spine in axes.spines.values():
        spine.set_color("#999999")
    return figure
