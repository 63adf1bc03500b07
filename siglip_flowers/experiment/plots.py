"""The four plots of an experiment, drawn on own figures (no pyplot) and written whole or not."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from siglip_flowers.base.errors import RunError
from siglip_flowers.base.files import atomic_path
from siglip_flowers.metrics.statistics import mean_interval

# Okabe and Ito's colors, told apart with any of the common color-vision deficiencies.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# One marker more than colors, so that pairs repeat only after 56 arms.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
TEXT_SIZE = 11
# 8 in x 150 dpi = 1200 px: sharp when a README shows it at about 800.
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 8.0, 4.6, 150
# What fits across the figure: in the legend's letters, and in the title's.
LEGEND_CHARACTERS, TITLE_CHARACTERS = 92, 68


@dataclass(frozen=True)
class Curve:
    """Losses of one seed: epochs, train_loss and validation_loss are (E,) floats.

    A nan in a loss (no training loss exists before the first step) leaves a gap.
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

    y_limits: give both arms the same, from :func:`share_y_limits`, to make them comparable.

    Raises:
        ValueError: no curve, or arrays whose shapes or epochs differ.
        RunError: the file cannot be written.
    """
    figure, axes = _new_axes(title, "epoch", "loss (nats)")
    for i, kind in enumerate(("train", "validation")):
        runs = [(c.epochs, c.train_loss if kind == "train" else c.validation_loss) for c in curves]
        epochs, values = _stack_runs(runs, f"{kind} loss")
        _draw_band(axes, epochs, values, kind, i)
    if y_limits is not None:
        axes.set_ylim(*y_limits)
    _add_legend(figure, axes, _describe_band([len(curves)]))
    _write(figure, path)


def share_y_limits(*arms: Sequence[Curve]) -> tuple[float, float]:
    """Find the loss axis that holds every finite loss of all the arms, with a small margin.

    Raises:
        ValueError: there is no finite loss.
    """
    losses = [
        np.asarray(values, dtype=np.float64).ravel()
        for curves in arms
        for curve in curves
        for values in (curve.train_loss, curve.validation_loss)
    ]
    finite = np.concatenate(losses) if losses else np.empty(0)
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        raise ValueError("there is no finite loss to draw")
    low, high = float(finite.min()), float(finite.max())
    margin = 0.05 * (high - low) or 0.5
    return max(0.0, low - margin) if low >= 0 else low - margin, high + margin


def plot_accuracy_curves(
    arms: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]],
    path: str | os.PathLike[str],
    title: str,
) -> None:
    """Draw the accuracy of each arm over the epochs: mean line and min-to-max band over seeds.

    arms: name to one (epochs (E,), accuracy (E,) in 0..1) per seed; drawn in per cent.

    Raises:
        ValueError: no arm, an arm without runs, shapes or epochs that differ between the seeds of
            an arm, or an accuracy outside 0..1.
        RunError: the file cannot be written.
    """
    if not arms:
        raise ValueError("there is no arm to draw")
    figure, axes = _new_axes(title, "epoch", "accuracy (%)")
    seeds = [len(runs) for runs in arms.values()]
    for i, (name, runs) in enumerate(arms.items()):
        epochs, values = _stack_runs(runs, f"accuracy of {name}")
        _check_accuracies(values, name)
        _draw_band(axes, epochs, 100 * values, name, i)
    _add_legend(figure, axes, _describe_band(seeds))
    _write(figure, path)


def plot_shots(
    table: Mapping[str, Mapping[str, Sequence[float]]],
    path: str | os.PathLike[str],
    title: str,
) -> None:
    """Draw accuracy by the number of training images a class, one series per arm.

    table: arm to regime label to one accuracy in 0..1 per seed. Regimes keep the order in which
    they come; an arm may lack some. Each seed is a small hollow point beside the mean,
    which has its 95 % interval (Student's t, cut at 0 and 100 %) when there are two seeds or more.

    Raises:
        ValueError: nothing to draw, a regime without seeds, or an accuracy outside 0..1.
        RunError: the file cannot be written.
    """
    regimes = list(dict.fromkeys(regime for row in table.values() for regime in row))
    if not regimes:
        raise ValueError("there is no arm to draw")
    figure, axes = _new_axes(title, "training images a class", "accuracy (%)")
    gap = min(0.2, 0.8 / len(table))  # arms stand side by side within a regime
    for i, (name, row) in enumerate(table.items()):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        offset = (i - (len(table) - 1) / 2) * gap
        present = [regime for regime in regimes if regime in row]
        places = np.array([regimes.index(regime) for regime in present]) + offset
        means = np.full(len(present), np.nan)
        errors = np.zeros((2, len(present)))
        for j, regime in enumerate(present):
            values = np.asarray(row[regime], dtype=np.float64)
            _check_accuracies(values, f"{name} at {regime}")
            interval = mean_interval(values.tolist())
            means[j] = 100 * interval.mean
            if interval.n > 1:
                errors[0, j] = means[j] - 100 * max(interval.low, 0.0)
                errors[1, j] = 100 * min(interval.high, 1.0) - means[j]
            axes.scatter(
                np.full(values.size, places[j] + 0.3 * gap),
                100 * values,
                s=14,
                facecolors="white",
                edgecolors=color,
                linewidths=0.9,
                marker=marker,
                zorder=4,
            )
        axes.plot(places, means, color=color, linewidth=1.0, alpha=0.35, zorder=2)
        axes.errorbar(
            places,
            means,
            yerr=errors,
            color=color,
            marker=marker,
            markersize=7,
            linestyle="none",
            elinewidth=1.4,
            capsize=3,
            zorder=3,
            label=name,
        )
    axes.set_xticks(range(len(regimes)), regimes)
    axes.set_xlim(-0.5, len(regimes) - 0.5)
    axes.grid(False, axis="x")
    for border in range(1, len(regimes)):
        axes.axvline(border - 0.5, color="#dddddd", linewidth=0.8, zorder=1)
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
    axes: Axes,
    epochs: NDArray[np.float64],
    values: NDArray[np.float64],
    label: str,
    index: int,
) -> None:
    color = COLORS[index % len(COLORS)]
    axes.plot(
        epochs,
        values.mean(axis=0),
        color=color,
        marker=MARKERS[index % len(MARKERS)],
        markersize=5,
        # About a dozen markers whatever the length, shifted so that arms do not hide each other.
        markevery=(index % max(1, len(epochs) // 12), max(1, len(epochs) // 12)),
        linewidth=1.8,
        label=label,
    )
    if len(values) > 1:
        axes.fill_between(
            epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0
        )


def _describe_band(seeds: Sequence[int]) -> str:
    fewest, most = min(seeds), max(seeds)
    if most == 1:
        return "one seed"
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"line: mean of {count} seeds; band: lowest to highest seed"


def _add_legend(figure: Figure, axes: Axes, note: str) -> None:
    handles, names = axes.get_legend_handles_labels()
    labels = [textwrap.fill(str(name), LEGEND_CHARACTERS - 7) for name in names]
    legend = figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=_count_legend_columns([len(label) for label in labels]),
        frameon=False,
        fontsize=TEXT_SIZE - 1,
        title=note,
        title_fontsize=TEXT_SIZE - 2,
    )
    legend.get_title().set_color("#555555")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _count_legend_columns(lengths: Sequence[int]) -> int:
    # Matplotlib fills column by column; a handle and its spaces take about 7 characters.
    for columns in range(min(4, len(lengths)), 1, -1):
        filled = np.array_split(np.asarray(lengths), columns)
        if sum(int(column.max()) + 7 for column in filled) <= LEGEND_CHARACTERS:
            return columns
    return 1


def _stack_runs(
    runs: Sequence[tuple[ArrayLike, ArrayLike]], what: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bring runs of several seeds on one grid: epochs (E,), values (S, E)."""
    if not runs:
        raise ValueError(f"there is no run to draw for the {what}")
    pairs = [(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)) for x, y in runs]
    epochs = pairs[0][0]
    for x, y in pairs:
        if x.ndim != 1 or x.size == 0 or x.shape != y.shape:
            raise ValueError(
                f"epochs and {what} must be non-empty and of one length, "
                f"got shapes {x.shape} and {y.shape}"
            )
        if not np.array_equal(x, epochs):
            raise ValueError(f"the seeds must share their epochs for the {what}")
    return epochs, np.stack([y for _, y in pairs])


def _check_accuracies(values: NDArray[np.float64], name: str) -> None:
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"accuracies must be fractions in 0..1, got {values.tolist()} for {name}")


def _write(figure: Figure, path: str | os.PathLike[str]) -> None:
    target = Path(path)
    try:
        with atomic_path(target) as temporary:
            # No software version in the file: equal data then give equal bytes.
            figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    except OSError as error:
        raise RunError(
            f"Cannot write the plot {target} ({error.strerror or error}); "
            "choose another output folder or free some space."
        ) from error
