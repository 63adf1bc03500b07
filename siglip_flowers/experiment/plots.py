"""The plots of an experiment, drawn without pyplot and written atomically."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from siglip_flowers.base.files import atomic_path
from siglip_flowers.metrics.statistics import mean_interval

# The colors of Okabe and Ito can be told apart with any of the common color-vision deficiencies.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# One marker more than colors, so that a pair repeats only after 56 arms.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
TEXT_SIZE = 11
# 8 in x 150 dpi = 1200 px: sharp when a README shows it at about 800.
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 8.0, 4.6, 150
# Characters that fit across the figure in the legend's and in the title's size.
LEGEND_CHARACTERS, TITLE_CHARACTERS = 85, 68


@dataclass(frozen=True)
class Curve:
    """Losses of one seed: epochs, train_loss and validation_loss are (E,) floats.

    A nan in a loss (there is no training loss before the first step) leaves a gap.
    """

    epochs: ArrayLike
    train_loss: ArrayLike
    validation_loss: ArrayLike


def plot_loss_band(
    curves: Sequence[Curve],
    path: str | os.PathLike[str],
    title: str,
    y_limits: tuple[float, float] | None = None,
) -> None:
    """Draw one arm's train and validation loss: mean line and min-to-max band over seeds.

    ``y_limits`` from :func:`share_y_limits` make the plots of several arms comparable.

    Raises:
        ValueError: The seeds have different epochs.
    """
    figure, axes = _new_axes(title, "epoch", "loss (nats)")
    _draw_band(axes, [(curve.epochs, curve.train_loss) for curve in curves], "train", 0)
    _draw_band(axes, [(curve.epochs, curve.validation_loss) for curve in curves], "validation", 1)
    if y_limits is not None:
        axes.set_ylim(*y_limits)
    _add_legend(figure, axes, _describe_band([len(curves)]))
    _write(figure, path)


def share_y_limits(*arms: Sequence[Curve]) -> tuple[float, float]:
    """Return the loss axis that holds every finite loss of all the arms, with a small margin."""
    losses = [
        np.asarray(values, dtype=np.float64)
        for curves in arms
        for curve in curves
        for values in (curve.train_loss, curve.validation_loss)
    ]
    low, high = float(np.nanmin(losses)), float(np.nanmax(losses))
    margin = 0.05 * (high - low) or 0.5
    return max(0.0, low - margin), high + margin


def plot_accuracy_curves(
    arms: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]],
    path: str | os.PathLike[str],
    title: str,
) -> None:
    """Draw the accuracy of each arm over the epochs: mean line and min-to-max band over seeds.

    ``arms`` maps a name to one (epochs (E,), accuracy (E,) in 0..1) per seed; drawn in percent.

    Raises:
        ValueError: The seeds of an arm have different epochs.
    """
    figure, axes = _new_axes(title, "epoch", "accuracy (%)")
    for number, (name, runs) in enumerate(arms.items()):
        percent = [(epochs, 100 * np.asarray(values)) for epochs, values in runs]
        _draw_band(axes, percent, name, number)
    _add_legend(figure, axes, _describe_band([len(runs) for runs in arms.values()]))
    _write(figure, path)


def plot_shots(
    table: Mapping[str, Mapping[str, Sequence[float]]],
    path: str | os.PathLike[str],
    title: str,
) -> None:
    """Draw accuracy by the number of training images per class, one series per arm.

    ``table`` maps arm and regime label to one accuracy in 0..1 per seed; an arm may lack regimes.
    Each seed is a small hollow point beside the mean, which has its 95 % interval (Student's t,
    cut at 0 and 100 %) if there are two seeds or more.
    """
    regimes = list(dict.fromkeys(regime for row in table.values() for regime in row))
    figure, axes = _new_axes(title, "training images per class", "accuracy (%)")
    gap = min(0.2, 0.8 / len(table))
    for number, (name, row) in enumerate(table.items()):
        style: dict[str, Any] = {
            "color": COLORS[number % len(COLORS)],
            "marker": MARKERS[number % len(MARKERS)],
        }
        # The arms of a regime are drawn side by side.
        offset = (number - (len(table) - 1) / 2) * gap
        places = np.array([regimes.index(regime) for regime in row]) + offset
        intervals = [mean_interval(list(values)) for values in row.values()]
        means = np.array([100 * interval.mean for interval in intervals])
        ends = [
            (100 * max(each.low, 0.0), 100 * min(each.high, 1.0)) if each.n > 1 else (mean, mean)
            for each, mean in zip(intervals, means, strict=True)
        ]
        errors = np.abs(np.array(ends).T - means)
        for place, values in zip(places, row.values(), strict=True):
            hollow: dict[str, Any] = {
                "markerfacecolor": "white",
                "markersize": 4,
                "zorder": 4,
                **style,
            }
            shown = 100 * np.asarray(values)
            axes.plot(np.full(len(shown), place + 0.3 * gap), shown, linestyle="none", **hollow)
        axes.plot(places, means, color=style["color"], linewidth=1.0, alpha=0.35, zorder=2)
        axes.errorbar(
            places, means, yerr=errors, linestyle="none", capsize=3, zorder=3, label=name, **style
        )
    axes.set_xticks(range(len(regimes)), regimes)
    axes.set_xlim(-0.5, len(regimes) - 0.5)
    axes.grid(False, axis="x")
    _add_legend(figure, axes, "filled: mean with its 95 % interval; hollow: single seeds")
    _write(figure, path)


def _new_axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
    axes = figure.add_subplot()
    wrapped = textwrap.fill(title, TITLE_CHARACTERS)
    axes.set_title(wrapped, fontsize=TEXT_SIZE + 2, loc="left", parse_math=False)
    axes.set_xlabel(x_label, fontsize=TEXT_SIZE)
    axes.set_ylabel(y_label, fontsize=TEXT_SIZE)
    axes.tick_params(labelsize=TEXT_SIZE - 1)
    axes.grid(True, color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_band(
    axes: Axes, runs: Sequence[tuple[ArrayLike, ArrayLike]], label: str, number: int
) -> None:
    """Draw one series: ``runs`` has the (x (E,), y (E,)) of each seed."""
    epochs = np.asarray(runs[0][0], dtype=np.float64)
    if any(not np.array_equal(epochs, np.asarray(other)) for other, _ in runs):
        raise ValueError(f"the seeds of {label!r} have different epochs")
    values: NDArray[np.float64] = np.array([y for _, y in runs], dtype=np.float64)
    color = COLORS[number % len(COLORS)]
    # About a dozen markers, shifted so that arms do not hide each other.
    step = max(1, len(epochs) // 12)
    axes.plot(
        epochs,
        values.mean(axis=0),
        color=color,
        marker=MARKERS[number % len(MARKERS)],
        markersize=5,
        markevery=(number % step, step),
        linewidth=1.8,
        label=label,
    )
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)


def _describe_band(seeds: Sequence[int]) -> str:
    fewest, most = min(seeds), max(seeds)
    if most == 1:
        return "one seed"
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"line: mean of {count} seeds; band: lowest to highest seed"


def _add_legend(figure: Figure, axes: Axes, note: str) -> None:
    handles, names = axes.get_legend_handles_labels()
    labels = [textwrap.fill(str(name), LEGEND_CHARACTERS) for name in names]
    # A handle and its spaces take about 7 characters.
    widest = max(len(line) for label in labels for line in label.split("\n")) + 7
    legend = figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=max(1, min(4, (LEGEND_CHARACTERS + 7) // widest)),
        frameon=False,
        fontsize=TEXT_SIZE - 1,
        title=note,
        title_fontsize=TEXT_SIZE - 2,
    )
    legend.get_title().set_color("#555555")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _write(figure: Figure, path: str | os.PathLike[str]) -> None:
    with atomic_path(Path(path)) as temporary:
        # Without the software version, equal data give equal bytes.
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
