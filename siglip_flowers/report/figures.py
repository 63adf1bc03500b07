"""The figures of a report: each is drawn once, for the page and as PNG for papers."""

from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from siglip_flowers.base.text import count
from siglip_flowers.metrics.calibration import ReliabilityBin
from siglip_flowers.plots import figures, theme
from siglip_flowers.report.contents import Report, describe_rows, percent

# More names of classes would fill the figure.
_LEGEND_CLASSES, _LEGEND_LETTERS = 20, 24


@dataclass(frozen=True)
class Drawing:
    """A figure, and what its marks tell in the page.

    Attributes:
        figure: The figure.
        labels: One text per mark of each collection, by the collection's id, in drawing order.
        rows: The images that the marks of a collection stand for, by its id.
    """

    figure: Figure
    labels: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)


def draw_figures(report: Report) -> dict[str, Drawing]:
    """Return all figures by name; the PNG files have the same names."""
    return {
        "reliability": draw_reliability(report),
        "risk_coverage": draw_risk_coverage(report),
        "confusion": draw_confusion(report),
        "feature_map": draw_feature_map(report),
    }


def draw_reliability(report: Report) -> Drawing:
    """Draw accuracy by confidence, before and after temperature scaling."""
    shown = [("as trained", report.calibration)]
    if report.calibrated is not None:
        shown.append((f"temperature {report.calibrated.temperature:.3g}", report.calibrated))
    figure = theme.make_figure(4.2 * len(shown), 4.2)
    labels = {}
    for number, (title, calibration) in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), number + 1)
        labels[f"reliability-{number}"] = _draw_bins(axes, calibration.bins, number)
        ece = percent(calibration.ece_equal_width)
        axes.set_title(f"{title}: ECE {ece}", loc="left", fontsize=10, color=theme.TEXT_COLOR)
    return Drawing(figure, labels)


def _draw_bins(axes: Axes, bins: list[ReliabilityBin], number: int) -> list[str]:
    theme.style_axes(axes)
    bars = PolyCollection(
        [
            [(row.low, 0), (row.high, 0), (row.high, row.accuracy), (row.low, row.accuracy)]
            for row in bins
        ],
        facecolors=theme.TRAIN_COLOR,
        edgecolors="white",
    )
    bars.set_gid(f"reliability-{number}")
    axes.add_collection(bars)
    means = [row.confidence for row in bins]
    axes.plot(means, means, "_", color=theme.VALIDATION_COLOR, label="mean confidence")
    axes.lines[-1].set(markersize=12, markeredgewidth=2)
    axes.plot([0, 1], [0, 1], color=theme.MUTED_COLOR, linewidth=1, linestyle="--")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.legend(facecolor="white", edgecolor="none", loc="upper left", labelcolor=theme.TEXT_COLOR)
    return [
        f"confidence {percent(row.low, 1)} to {percent(row.high, 1)}: {count(row.n, 'image')}, "
        f"mean confidence {percent(row.confidence, 1)}, accuracy {percent(row.accuracy, 1)}"
        for row in bins
    ]


def draw_risk_coverage(report: Report) -> Drawing:
    """Draw the share of errors among the images that are kept, by how many are kept."""
    figure = theme.make_figure(4.8, 4.2)
    axes = figure.add_subplot()
    theme.style_axes(axes)
    selective = report.selective
    axes.plot(100 * selective.coverage, 100 * selective.risk, color=theme.TRAIN_COLOR, linewidth=2)
    axes.axhline(5, color=theme.MUTED_COLOR, linewidth=1, linestyle="--")
    axes.set(xlabel="coverage: images kept, %", ylabel="risk: errors among them, %", xlim=(0, 101))
    axes.set_ylim(bottom=0)
    title = f"AURC {selective.aurc:.4f} (lowest possible {selective.best_aurc:.4f})"
    axes.set_title(title, loc="left", fontsize=10, color=theme.TEXT_COLOR)
    return Drawing(figure)


def draw_confusion(report: Report) -> Drawing:
    """Draw the confusion matrix with confused classes side by side."""
    order, names = report.class_order, report.names
    counts = report.confusion[np.ix_(order, order)]
    shown = [names[label] for label in order]
    figure = figures.draw_confusion(counts, shown)
    support = np.maximum(counts.sum(axis=1), 1)
    labels = [
        f"{shown[row]} → {shown[column]}: {counts[row, column]} of "
        f"{count(int(support[row]), 'image')} ({percent(counts[row, column] / support[row], 1)})"
        for row, column in np.argwhere(counts).tolist()
    ]
    return Drawing(figure, {"confusion": labels})


def draw_feature_map(report: Report) -> Drawing:
    """Draw images as points by their features, with a legend; ringed points are mistakes."""
    figure = theme.make_figure(9, 6.2)
    axes = figure.add_subplot()
    rows = report.feature_map.rows
    labels, order = report.result.labels[rows], report.class_order
    colors = matplotlib.colormaps["hsv"](np.argsort(order) / len(order))
    wrong = report.predicted[rows] != labels
    x, y = report.feature_map.places.T
    points = axes.scatter(
        x,
        y,
        s=30,
        c=colors[labels],
        alpha=0.85,
        edgecolors=theme.TEXT_COLOR,
        linewidths=np.where(wrong, 1.2, 0.0).tolist(),
    )
    points.set_gid("map")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    title = f"{count(len(rows), 'image')} by their features ({report.feature_map.method})"
    axes.set_title(title, loc="left", fontsize=10, color=theme.TEXT_COLOR)
    _add_legend(figure, report, [int(label) for label in order if label in labels], colors)
    captions = describe_rows(report)
    chosen = rows.tolist()
    return Drawing(figure, {"map": [captions[row] for row in chosen]}, {"map": chosen})


def _add_legend(figure: Figure, report: Report, classes: list[int], colors: np.ndarray) -> None:
    """Explain rings and colors: of few classes each, of many only what similar colors mean."""
    ring = Line2D([], [], marker="o", linestyle="", color="#999999", label="mistake")
    ring.set(markeredgecolor=theme.TEXT_COLOR, markeredgewidth=1.2)
    handles = [ring]
    if len(classes) <= _LEGEND_CLASSES:
        for label in classes:
            name = theme.shorten(report.names[label], _LEGEND_LETTERS)
            handles.append(
                Line2D([], [], marker="o", linestyle="", color=colors[label], label=name)
            )
    else:
        about = f"{count(len(classes), 'class')}, often confused ones in similar colors"
        handles.append(Line2D([], [], linestyle="", label=about))
    legend = figure.legend(
        handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
