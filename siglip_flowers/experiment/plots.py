"""The plots of an experiment: loss with bands over seeds, and intervals beside each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from siglip_flowers.plots.theme import (
    MUTED_COLOR,
    TRAIN_COLOR,
    VALIDATION_COLOR,
    make_figure,
    save_figure,
    style_axes,
    wrap,
)

WIDTH, HEIGHT, ROW_HEIGHT = 8.0, 4.6, 0.42
LABEL_LETTERS = 34


def plot_loss_band(
    histories: Sequence[NDArray[Any]], path: Path, title: str, limits: tuple[float, float]
) -> None:
    """Draw one arm's train and validation loss: mean line and min-to-max band over seeds.

    Args:
        histories: The evaluations of each seed, with the columns epoch, train_nll and
            validation_nll; nan leaves a gap.
        path: The PNG file.
        title: The title.
        limits: Of the loss axis, from :func:`share_limits`.
    """
    figure, axes = _start(title, HEIGHT)
    axes.set(xlabel="epoch", ylabel="loss, nats", ylim=limits)
    epochs = histories[0]["epoch"]
    for split, color in (("train", TRAIN_COLOR), ("validation", VALIDATION_COLOR)):
        losses = np.stack([history[f"{split}_nll"] for history in histories])
        mean = losses.mean(axis=0)
        axes.plot(epochs, mean, color=color, marker="o", markersize=3, label=split)
        low, high = losses.min(axis=0), losses.max(axis=0)
        axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
    axes.legend(title=f"mean, lowest and highest of {len(histories)} seeds", frameon=False)
    save_figure(figure, path)


def share_limits(histories: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Return a loss axis that holds every finite loss, with a small margin."""
    losses = [history[name] for history in histories for name in ("train_nll", "validation_nll")]
    low, high = float(np.nanmin(losses)), float(np.nanmax(losses))
    margin = 0.05 * (high - low) or 0.5
    return max(0.0, low - margin), high + margin


def plot_intervals(
    rows: Mapping[str, tuple[Sequence[float], float, float]],
    path: Path,
    title: str,
    label: str,
    marks: Sequence[float] = (),
) -> None:
    """Draw a row per name: a hollow point per seed, their mean, and an interval.

    Args:
        rows: Values of the seeds and the two ends of the interval, which may be nan.
        path: The PNG file.
        title: The title.
        label: What is measured, and its unit.
        marks: Values with a vertical line.
    """
    figure, axes = _start(title, 1.2 + ROW_HEIGHT * len(rows))
    axes.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [wrap(name, LABEL_LETTERS, 2) for name in rows])
    for mark in marks:
        axes.axvline(mark, color=MUTED_COLOR, linestyle="--", linewidth=1)
    for number, (values, low, high) in enumerate(rows.values()):
        mean = float(np.mean(values))
        if np.isfinite([low, high]).all():
            axes.plot([low, high], [number, number], color=TRAIN_COLOR, linewidth=2)
        axes.plot(values, [number] * len(values), "o", color=TRAIN_COLOR, fillstyle="none")
        axes.plot([mean], [number], "D", color=VALIDATION_COLOR, zorder=3)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    save_figure(figure, path)


def _start(title: str, height: float) -> tuple[Figure, Axes]:
    figure = make_figure(WIDTH, height, title)
    axes = figure.add_subplot()
    style_axes(axes)
    return figure, axes
