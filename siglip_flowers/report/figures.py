"""Figures of a report as PNG files for papers."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from siglip_flowers.metrics.calibration import ReliabilityBin
from siglip_flowers.plots.curves import (
    MUTED_COLOR,
    TEXT_COLOR,
    TRAIN_COLOR,
    VALIDATION_COLOR,
)
from siglip_flowers.report.contents import ReportContents


def draw_reliability(contents: ReportContents) -> Figure:
    """Draw accuracy by confidence, before and after temperature scaling."""
    shown = [("as trained", contents.calibration)]
    if contents.calibrated is not None:
        shown.append((f"temperature {contents.calibrated.temperature:.3g}", contents.calibrated))
    figure = _start(4.2 * len(shown), 4.2)
    for number, (title, figures) in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), number)
        _draw_bins(axes, figures.bins)
        axes.set_title(f"{title}: ECE {100 * figures.ece_equal_width:.2f} %", loc="left")
    return figure


def draw_risk_coverage(contents: ReportContents) -> Figure:
    """Draw the share of errors among the images kept."""
    figure = _start(4.8, 4.2)
    axes = figure.add_subplot()
    selective = contents.selective
    axes.plot(selective.coverage, 100 * selective.risk, color=TRAIN_COLOR, linewidth=2)
    axes.axhline(5, color=MUTED_COLOR, linewidth=1, linestyle="--")
    axes.set(xlabel="coverage", ylabel="risk, %", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    axes.set_title(f"AURC {selective.aurc:.4f} (least possible {selective.best_aurc:.4f})")
    return figure


def draw_confusion(contents: ReportContents) -> Figure:
    """Draw the confusion matrix with every class named, confused classes side by side."""
    order = contents.class_order
    classes = len(order)
    inches = max(4.0, 0.15 * classes)
    figure = _start(inches + 2, inches + 2)
    axes = figure.add_subplot()
    counts = contents.confusion[np.ix_(order, order)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # By the root, since single errors in a large class would be white.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    names = [contents.class_names[label] for label in order]
    size = 6 if classes > 30 else 9
    axes.set_xticks(range(classes), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(classes), names, fontsize=size, parse_math=False)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title("Share of the true class's images (shade: square root)", loc="left")
    return figure


def draw_feature_map(contents: ReportContents) -> Figure:
    """Draw images as points by their features; rings are mistakes."""
    figure = _start(8, 6.5)
    axes = figure.add_subplot()
    rows = contents.feature_map.rows
    place = np.argsort(contents.class_order)
    wrong = contents.predicted[rows] != contents.labels[rows]
    x, y = contents.feature_map.places.T
    axes.scatter(x, y, c=place[contents.labels[rows]], cmap="hsv", s=16, linewidths=0)
    axes.scatter(
        x[wrong], y[wrong], s=30, facecolors="none", edgecolors=TEXT_COLOR, linewidths=0.8,
        label="mistakes",
    )  # fmt: skip
    axes.set(xticks=[], yticks=[])
    # As in the page, whose second coordinate grows downwards.
    axes.invert_yaxis()
    axes.set_title(f"Features of {len(rows)} images, {contents.feature_map.method}", loc="left")
    if wrong.any():
        axes.legend(frameon=True, loc="best")
    return figure


def draw_class_recall(contents: ReportContents) -> Figure:
    """Draw the recall of each class with its 95 % interval, the lowest at the top."""
    rows = sorted(
        (row for row in contents.per_class if row.support),
        key=lambda row: (-row.recall.value, -row.recall.high, row.label),
    )
    figure = _start(6, max(2.0, 0.14 * len(rows) + 1))
    axes = figure.add_subplot()
    places = np.arange(len(rows))
    axes.hlines(
        places,
        [100 * row.recall.low for row in rows],
        [100 * row.recall.high for row in rows],
        color=MUTED_COLOR,
        linewidth=1.2,
    )
    axes.plot([100 * row.recall.value for row in rows], places, "o", color=TRAIN_COLOR, ms=3.5)
    names = [f"{contents.class_names[row.label]} ({row.support})" for row in rows]
    axes.set_yticks(places, names, fontsize=6 if len(rows) > 30 else 9, parse_math=False)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set(xlabel="recall, %", xlim=(-2, 102))
    axes.grid(True, axis="x", color="#E3E3E3")
    return figure


def _draw_bins(axes: Axes, bins: Sequence[ReliabilityBin]) -> None:
    axes.bar(
        [row.low for row in bins],
        [row.accuracy for row in bins],
        width=[row.high - row.low for row in bins],
        align="edge",
        color=TRAIN_COLOR,
        edgecolor="white",
    )
    axes.plot(
        [row.confidence for row in bins],
        [row.confidence for row in bins],
        "_",
        color=VALIDATION_COLOR,
        markersize=12,
        markeredgewidth=2,
        label="mean confidence",
    )
    axes.plot([0, 1], [0, 1], color=MUTED_COLOR, linewidth=1, linestyle="--")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, loc="upper left")


def _start(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure
