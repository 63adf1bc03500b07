"""The image of a search: its objective trial by trial, and over each option that it varied."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from siglip_flowers.plots.curves import (
    MUTED_COLOR,
    TEXT_COLOR,
    TRAIN_COLOR,
    VALIDATION_COLOR,
    save_figure,
)

COLUMNS = 3
WIDTH_INCHES, HISTORY_INCHES, ROW_INCHES = 9.0, 3.3, 2.5
TITLE_CHARACTERS, LABEL_CHARACTERS = 90, 12
# Sideways, in units between two words of an axis, so that equal points do not hide each other.
JITTER = 0.18
# Shares in [0, 1] are drawn in per cent.
SHARES = ("accuracy", "precision", "recall", "f1")


@dataclass(frozen=True)
class TrialPoint:
    """A trial.

    Attributes:
        number: Of the trial.
        value: The objective, or the last one of a trial that was ended early; None without any.
        finished: Whether the trial was done to its end.
        options: The values that it had.
    """

    number: int
    value: float | None
    finished: bool
    options: dict[str, Any]


@dataclass(frozen=True)
class OptionAxis:
    """The range of an option, and whether it was searched on a logarithmic scale."""

    low: float
    high: float
    log: bool


def plot_trials(
    trials: Sequence[TrialPoint],
    path: Path,
    *,
    title: str,
    objective: str,
    maximize: bool,
    axes_of: Mapping[str, OptionAxis],
) -> None:
    """Draw the history of a search, and a panel for each option, into a PNG file.

    Args:
        trials: In the order in which they began; those without a value are left out.
        path: The file.
        title: Above the image.
        objective: Name of what is measured; a share is drawn in per cent.
        maximize: Whether larger values are better.
        axes_of: How far the axis of an option reaches, for those that are numbers of a range.

    Raises:
        RunError: The file cannot be written.
    """
    scale = 100.0 if any(word in objective for word in SHARES) else 1.0
    measured = [one for one in trials if one.value is not None and math.isfinite(one.value)]
    names = list(dict.fromkeys(name for one in trials for name in one.options))
    rows = math.ceil(len(names) / COLUMNS)
    figure = Figure(
        figsize=(WIDTH_INCHES, HISTORY_INCHES + ROW_INCHES * rows),
        layout="constrained",
        facecolor="white",
    )
    FigureCanvasAgg(figure)
    figure.suptitle(
        "\n".join(textwrap.wrap(title, TITLE_CHARACTERS)),
        fontsize=11.5,
        color=TEXT_COLOR,
        x=0.01,
        ha="left",
        parse_math=False,
    )
    grid = figure.add_gridspec(
        rows + 1, COLUMNS, height_ratios=[HISTORY_INCHES, *[ROW_INCHES] * rows]
    )
    best = _find_best(measured, maximize)
    label = f"{objective}, %" if scale == 100.0 else objective
    history = figure.add_subplot(grid[0, :])
    _draw_history(history, measured, best, scale, maximize)
    _dress(history, "trial", label)
    if scale == 100.0 and measured:
        low, high = history.get_ylim()
        history.set_ylim(max(low, -3.0), min(high, 103.0))
    for index, name in enumerate(names):
        axes = figure.add_subplot(grid[1 + index // COLUMNS, index % COLUMNS], sharey=history)
        _draw_option(axes, [one for one in measured if name in one.options], best, name, scale)
        if name in axes_of:
            _reach(axes, axes_of[name])
        _dress(axes, name, label if index % COLUMNS == 0 else "")
        axes.tick_params(labelleft=index % COLUMNS == 0)
    save_figure(figure, path)


def _find_best(trials: Sequence[TrialPoint], maximize: bool) -> TrialPoint | None:
    finished = [one for one in trials if one.finished]
    sign = 1.0 if maximize else -1.0
    return max(finished, key=lambda one: (sign * _value(one), -one.number), default=None)


def _value(trial: TrialPoint) -> float:
    assert trial.value is not None
    return trial.value


def _draw_history(
    axes: Axes,
    trials: Sequence[TrialPoint],
    best: TrialPoint | None,
    scale: float,
    maximize: bool,
) -> None:
    _scatter(axes, trials, [float(one.number) for one in trials], best, scale)
    finished = [one for one in trials if one.finished]
    if finished and best is not None:
        accumulate = np.maximum.accumulate if maximize else np.minimum.accumulate
        numbers = [one.number for one in finished]
        values = accumulate([_value(one) * scale for one in finished])
        last = max(one.number for one in trials)
        axes.step(
            [*numbers, last],
            [*values, values[-1]],
            where="post",
            color=VALIDATION_COLOR,
            linewidth=1.8,
            label="best so far",
            zorder=2,
        )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    if trials:
        axes.legend(
            loc="lower right", fontsize=9, framealpha=0.9, edgecolor="none", labelcolor=TEXT_COLOR
        )
    else:
        axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, color=MUTED_COLOR)


def _draw_option(
    axes: Axes, trials: Sequence[TrialPoint], best: TrialPoint | None, name: str, scale: float
) -> None:
    values = [one.options[name] for one in trials]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        _scatter(axes, trials, [float(value) for value in values], best, scale)
        if len(set(values)) > 1:
            axes.margins(x=0.08)
        return
    words = sorted({_to_word(value) for value in values})
    # By the number of the trial: equal images for equal searches.
    places = [
        words.index(_to_word(value)) + JITTER * ((one.number * 0.618) % 1.0 - 0.5) * 2
        for one, value in zip(trials, values, strict=True)
    ]
    _scatter(axes, trials, places, best, scale)
    shown = [textwrap.shorten(word, LABEL_CHARACTERS, placeholder="...") for word in words]
    axes.set_xticks(range(len(words)), shown)
    axes.set_xlim(-0.6, len(words) - 0.4)


def _reach(axes: Axes, reach: OptionAxis) -> None:
    """Show the whole range that was searched, also where no trial was."""
    if reach.log:
        axes.set_xscale("log")
        margin = (reach.high / reach.low) ** 0.05
        axes.set_xlim(reach.low / margin, reach.high * margin)
        decades = math.log10(reach.high / reach.low)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2.5 else (1.0, 3.0)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        margin = 0.05 * (reach.high - reach.low)
        axes.set_xlim(reach.low - margin, reach.high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))


def _scatter(
    axes: Axes,
    trials: Sequence[TrialPoint],
    places: Sequence[float],
    best: TrialPoint | None,
    scale: float,
) -> None:
    points = [(x, _value(one) * scale, one) for x, one in zip(places, trials, strict=True)]
    ended = [(x, y) for x, y, one in points if not one.finished]
    finished = [(x, y) for x, y, one in points if one.finished and one is not best]
    if finished:
        axes.scatter(
            [x for x, _ in finished],
            [y for _, y in finished],
            s=30,
            color=TRAIN_COLOR,
            edgecolor="white",
            linewidth=0.6,
            label="finished",
            zorder=3,
        )
    if ended:
        axes.scatter(
            [x for x, _ in ended],
            [y for _, y in ended],
            s=26,
            marker="x",
            color=MUTED_COLOR,
            linewidth=1.2,
            label="ended early, at its last evaluation",
            zorder=3,
        )
    for x, y, one in points:
        if one is best:
            axes.scatter(
                [x],
                [y],
                s=170,
                marker="*",
                color=VALIDATION_COLOR,
                edgecolor=TEXT_COLOR,
                linewidth=0.8,
                label=f"best: {y:.4g}, trial {one.number}",
                zorder=4,
            )


def _dress(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, color=TEXT_COLOR, fontsize=9.5)
    axes.set_ylabel(y_label, color=TEXT_COLOR, fontsize=9.5)
    axes.grid(True, which="major", color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=TEXT_COLOR, length=3, labelsize=8.5)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#999999")


def _to_word(value: Any) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
