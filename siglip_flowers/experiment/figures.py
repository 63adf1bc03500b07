"""Figures of an experiment: losses with bands, accuracies, the effect, and the factorial."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from siglip_flowers.experiment.analysis import Analysis
from siglip_flowers.experiment.plan import Plan
from siglip_flowers.experiment.statistics import CLAIMED_GAIN
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
# Column of a curve, its label, color and line. An arm's own loss is drawn, and never compared.
LOSSES = (
    ("train_nll", "training", TRAIN_COLOR, "-"),
    ("validation_nll", "validation", VALIDATION_COLOR, "-"),
    ("validation_loss", "validation, in the loss it is trained with", MUTED_COLOR, ":"),
)
# By column: (seeds, evaluations).
Curves = dict[str, np.ndarray]


def draw_figures(plan: Plan, analysis: Analysis) -> None:
    """Draw every figure into the directory of the experiment."""
    directory = plan.options.directory
    found = [plan.get(plan.list_runs(name)) for name in analysis.claim]
    curves = [
        {column: np.array([each.curve[column] for each in records]) for column in records[0].curve}
        for records in found
    ]
    limits = share_limits(curves)
    for kind, name, each in zip(("baseline", "siglip"), analysis.claim, curves, strict=True):
        plot_loss_band(each, directory / f"loss_{kind}.png", f"Loss of {name}", limits)
    rows = {}
    for name, arm in analysis.arms.items():
        interval = arm.over_seeds["test_accuracy"]
        rows[name] = (arm.values["test_accuracy"], interval.low, interval.high)
    note = "seeds, mean and 95% interval"
    plot_intervals(rows, directory / "accuracy.png", f"Test accuracy: {note}", "accuracy, %")
    effects = {
        f"{name} minus {each.minus}": (each.seed_differences, each.accuracy.low, each.accuracy.high)
        for name, each in analysis.comparisons.items()
    }
    title = f"Difference in test accuracy: {note}; dashed: 0 and the claimed +1.5"
    marks = (0.0, 100 * CLAIMED_GAIN)
    plot_intervals(effects, directory / "effect.png", title, "points", marks)
    if analysis.contrasts:
        plot_factorial(plan, analysis, directory / "factorial.png")


def plot_loss_band(curves: Curves, path: Path, title: str, limits: tuple[float, float]) -> None:
    """Draw an arm's losses by epoch: mean line and min-to-max band over the seeds."""
    figure, axes = _start(HEIGHT, title)
    axes.set(xlabel="epoch", ylabel="loss, nats", ylim=limits)
    epochs = curves["epoch"][0]
    for column, label, color, line in LOSSES:
        losses = curves[column]
        if column == "validation_loss" and np.allclose(losses, curves["validation_nll"]):
            continue
        axes.plot(epochs, losses.mean(axis=0), line, color=color, label=label)
        low, high = losses.min(axis=0), losses.max(axis=0)
        axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
    axes.legend(title=f"mean, lowest and highest of {len(losses)} seeds", frameon=False)
    save_figure(figure, path)


def share_limits(curves: Sequence[Curves]) -> tuple[float, float]:
    """Return a loss axis that holds every loss, with a small margin."""
    losses = np.concatenate([each[column].ravel() for each in curves for column, *_ in LOSSES])
    low, high = float(losses.min()), float(losses.max())
    margin = 0.05 * (high - low) or 0.5
    return max(0.0, low - margin), high + margin


def plot_intervals(
    rows: Mapping[str, tuple[Sequence[float], float, float]],
    path: Path,
    title: str,
    label: str,
    marks: Sequence[float] = (),
) -> None:
    """Draw a row per name: a hollow point per seed, their mean, and an interval, in percent.

    Args:
        rows: Values of the seeds and the two ends of the interval, which may be nan: fractions.
        path: The PNG file.
        title: The title.
        label: What is measured, and its unit.
        marks: Values with a vertical line, in percent.
    """
    figure, axes = _start(1.2 + ROW_HEIGHT * len(rows), title)
    axes.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
    names = [wrap(name, LABEL_LETTERS, 2) for name in rows]
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    for mark in marks:
        axes.axvline(mark, color=MUTED_COLOR, linestyle="--", linewidth=1)
    for number, (fractions, *ends) in enumerate(rows.values()):
        values = 100 * np.asarray(fractions)
        if np.isfinite(ends).all():
            axes.plot(100 * np.asarray(ends), [number, number], color=TRAIN_COLOR, linewidth=2)
        axes.plot(values, [number] * len(values), "o", color=TRAIN_COLOR, fillstyle="none")
        axes.plot([values.mean()], [number], "D", color=VALIDATION_COLOR, zorder=3)
    save_figure(figure, path)


def plot_factorial(plan: Plan, analysis: Analysis, path: Path) -> None:
    """Draw mean test accuracy by head, a line per loss, with 95% intervals over the seeds."""
    losses, heads = plan.options.losses, list(plan.options.heads)
    figure, axes = _start(HEIGHT, "Test accuracy by loss and head: mean and 95% interval")
    # The lines beside each other, so that their intervals are seen.
    styles = zip(losses, (TRAIN_COLOR, VALIDATION_COLOR), (-0.02, 0.02), strict=True)
    for loss, color, shift in styles:
        names = [name for name, pair in plan.options.factorial.items() if pair[0] == loss]
        found = [analysis.arms[name].over_seeds["test_accuracy"] for name in names]
        means = [100 * each.mean for each in found]
        reach = [100 * (each.high - each.mean) for each in found]
        places = np.arange(len(heads)) + shift
        axes.errorbar(places, means, reach, color=color, marker="o", capsize=4, label=loss)
    axes.set(ylabel="test accuracy, %")
    axes.set_xticks(range(len(heads)), heads, parse_math=False)
    axes.legend(frameon=False)
    save_figure(figure, path)


def _start(height: float, title: str) -> tuple[Figure, Axes]:
    figure = make_figure(WIDTH, height, title)
    axes = figure.add_subplot()
    style_axes(axes)
    return figure, axes
