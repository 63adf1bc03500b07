"""Loss and accuracy curves of a training run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from siglip_flowers.plots.theme import (
    MUTED_COLOR,
    TEXT_COLOR,
    TRAIN_COLOR,
    VALIDATION_COLOR,
    make_figure,
    save_figure,
    style_axes,
)

HistoryRow = dict[str, Any]

_WIDTH, _HEIGHT = 7.5, 4.6


def plot_loss(history: Sequence[HistoryRow], path: Path, title: str) -> None:
    """Draw the train and validation loss by epoch into a PNG file.

    history: rows of a run, each with any of ``epoch``, ``loss`` (running objective on augmented
    images), ``train_loss``, ``validation_loss`` and ``validation_accuracy`` (in [0, 1], marks
    the best epoch). Values that are missing, None or not finite are left out.

    Raises:
        RunError: The file cannot be written.
    """
    _plot(history, path, title, "loss", 1.0)


def plot_accuracy(history: Sequence[HistoryRow], path: Path, title: str) -> None:
    """Draw the train and validation accuracy by epoch, in percent, into a PNG file.

    history: rows of a run, each with any of ``epoch``, ``accuracy`` (running, on augmented
    images), ``train_accuracy`` and ``validation_accuracy``, all in [0, 1]. Values that are
    missing, None or not finite are left out.

    Raises:
        RunError: The file cannot be written.
    """
    _plot(history, path, title, "accuracy", 100.0)


def find_best_row(history: Sequence[HistoryRow]) -> HistoryRow | None:
    """Return the first row with the highest validation accuracy; None without any."""
    rows = [row for row in history if _is_number(row.get("validation_accuracy"))]
    return max(rows, key=lambda row: row["validation_accuracy"], default=None)


def _plot(history: Sequence[HistoryRow], path: Path, title: str, name: str, scale: float) -> None:
    figure = make_figure(_WIDTH, _HEIGHT, title)
    axes = figure.add_subplot()
    axes.set(xlabel="epoch", ylabel="accuracy, %" if name == "accuracy" else name)
    style_axes(axes)
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
        # About thirty markers fit side by side before they merge into a band.
        few = len(epochs) <= 30
        if epochs:
            axes.plot(
                epochs,
                values,
                color=color,
                linewidth=2.0,
                marker=marker,
                markersize=5.0 if few else 3.0,
                markeredgecolor="white",
                markeredgewidth=0.7 if few else 0.3,
                label=split,
            )
    _mark_best_epoch(axes, history, f"validation_{name}", scale)
    _finish_axes(axes)
    if axes.lines and name == "accuracy":
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -2.0), min(high, 102.0))
    save_figure(figure, path)


def _mark_best_epoch(axes: Axes, history: Sequence[HistoryRow], key: str, scale: float) -> None:
    best = find_best_row(history)
    if best is None or not _is_number(best.get("epoch")) or not _is_number(best.get(key)):
        return
    percent = 100 * best["validation_accuracy"]
    axes.axvline(best["epoch"], color=MUTED_COLOR, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.plot(
        [best["epoch"]],
        [best[key] * scale],
        linestyle="none",
        marker="*",
        markersize=14,
        color=VALIDATION_COLOR,
        markeredgecolor=TEXT_COLOR,
        markeredgewidth=0.8,
        label=f"best validation accuracy: {percent:.2f} %, epoch {best['epoch']:.4g}",
        zorder=4,
    )


def _finish_axes(axes: Axes) -> None:
    if not axes.lines:
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
