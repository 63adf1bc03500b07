"""Loss and accuracy curves of a training run, drawn without pyplot's global state."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from siglip_flowers.base.errors import RunError
from siglip_flowers.base.files import atomic_path

HistoryRow = dict[str, Any]

# Dark enough on white, and told apart in gray and with any color vision (Okabe and Ito, 2008).
TRAIN_COLOR = "#0072B2"
VALIDATION_COLOR = "#D55E00"
TEXT_COLOR = "#222222"
MUTED_COLOR = "#666666"

_DPI = 160
_FIGURE_INCHES = (7.5, 4.6)
_TITLE_CHARACTERS = 72


def plot_loss(history: Sequence[HistoryRow], path: Path, title: str) -> None:
    """Draw the train and validation loss by epoch into a PNG file.

    history: rows of a run, each with any of ``epoch``, ``loss`` (running objective on augmented
    images), ``train_loss``, ``validation_loss`` and ``validation_accuracy`` (in [0, 1], marks
    the best epoch). Values that are missing, None or not finite are left out.

    Raises RunError where the file cannot be written.
    """
    figure, axes = _make_axes(title, "loss")
    _draw_running(axes, history, "loss", 1.0)
    _draw_curve(axes, history, "train_loss", "train", TRAIN_COLOR, "o")
    _draw_curve(axes, history, "validation_loss", "validation", VALIDATION_COLOR, "s")
    _mark_best_epoch(axes, history, "validation_loss", 1.0)
    _finish_axes(axes)
    save_figure(figure, path)


def plot_accuracy(history: Sequence[HistoryRow], path: Path, title: str) -> None:
    """Draw the train and validation accuracy by epoch, in percent, into a PNG file.

    history: rows of a run, each with any of ``epoch``, ``accuracy`` (running, on augmented
    images), ``train_accuracy`` and ``validation_accuracy``, all in [0, 1]. Values that are
    missing, None or not finite are left out.

    Raises RunError where the file cannot be written.
    """
    figure, axes = _make_axes(title, "accuracy, %")
    _draw_running(axes, history, "accuracy", 100.0)
    _draw_curve(axes, history, "train_accuracy", "train", TRAIN_COLOR, "o", 100.0)
    _draw_curve(axes, history, "validation_accuracy", "validation", VALIDATION_COLOR, "s", 100.0)
    _mark_best_epoch(axes, history, "validation_accuracy", 100.0)
    _finish_axes(axes)
    if axes.lines:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -2.0), min(high, 102.0))
    save_figure(figure, path)


def find_best_row(history: Sequence[HistoryRow]) -> HistoryRow | None:
    """The row with the highest validation accuracy, the first of equals; None without any."""
    rows = [row for row in history if _is_number(row.get("validation_accuracy"))]
    return max(rows, key=lambda row: row["validation_accuracy"], default=None)


def save_figure(figure: Figure, path: Path, dpi: int = _DPI) -> None:
    """Write a figure as PNG; the path holds either its former content or the whole new file.

    Raises RunError where the file cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            # No software entry: equal figures give equal files.
            figure.savefig(temporary, format="png", dpi=dpi, metadata={"Software": None})
    except OSError as error:
        raise RunError(
            f"The image {path} cannot be written ({error.strerror or error}); free some space "
            "or choose another output directory."
        ) from error


def _make_axes(title: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_FIGURE_INCHES, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("white")
    axes.set_title(
        "\n".join(textwrap.wrap(title, _TITLE_CHARACTERS)),
        loc="left",
        fontsize=11.5,
        color=TEXT_COLOR,
        pad=10,
        parse_math=False,
    )
    axes.set_xlabel("epoch", color=TEXT_COLOR)
    axes.set_ylabel(y_label, color=TEXT_COLOR)
    axes.grid(True, color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=TEXT_COLOR, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#999999")
    return figure, axes


def _draw_running(axes: Axes, history: Sequence[HistoryRow], key: str, scale: float) -> None:
    epochs, values = _read_points(history, key, scale)
    if epochs:
        axes.plot(
            epochs,
            values,
            color=TRAIN_COLOR,
            alpha=0.4,
            linewidth=1.0,
            # A line through one point is invisible.
            marker="." if len(epochs) == 1 else None,
            label="train, augmented (running)",
            zorder=2,
        )


def _draw_curve(
    axes: Axes,
    history: Sequence[HistoryRow],
    key: str,
    label: str,
    color: str,
    marker: str,
    scale: float = 1.0,
) -> None:
    epochs, values = _read_points(history, key, scale)
    if epochs:
        axes.plot(
            epochs,
            values,
            color=color,
            linewidth=2.0,
            marker=marker,
            # About thirty markers fit side by side before they merge into a band.
            markersize=5.0 if len(epochs) <= 30 else 3.0,
            markeredgecolor="white",
            markeredgewidth=0.7 if len(epochs) <= 30 else 0.3,
            label=label,
            zorder=3,
        )


def _mark_best_epoch(axes: Axes, history: Sequence[HistoryRow], key: str, scale: float) -> None:
    best = find_best_row(history)
    if best is None or not _is_number(best.get("epoch")) or not _is_number(best.get(key)):
        return
    percent = 100 * best["validation_accuracy"]
    label = f"best validation accuracy: {percent:.1f} %, epoch {best['epoch']:.4g}"
    axes.axvline(best["epoch"], color=MUTED_COLOR, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    axes.plot(
        [best["epoch"]],
        [best[key] * scale],
        linestyle="none",
        marker="*",
        markersize=14,
        color=VALIDATION_COLOR,
        markeredgecolor=TEXT_COLOR,
        markeredgewidth=0.8,
        label=label,
        zorder=4,
    )


def _finish_axes(axes: Axes) -> None:
    if not axes.lines:
        axes.text(
            0.5,
            0.5,
            "nothing was measured",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=MUTED_COLOR,
        )
        axes.set(xticks=[], yticks=[])
        return
    last = max(float(np.max(line.get_xdata())) for line in axes.lines)
    axes.set_xlim(0.0, max(last, 1e-9) * 1.025)
    # Whole epochs only where there are some; a short run may end inside its first.
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
