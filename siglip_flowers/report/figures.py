"""The figures of a report: each is drawn once, for the page and as PNG for papers."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from siglip_flowers.base.text import count, escape_unprintable
from siglip_flowers.metrics.calibration import risk_coverage
from siglip_flowers.plots import figures, theme
from siglip_flowers.report.analysis import RISK, Report

# More names of classes would fill the figure.
_LEGEND_CLASSES, _LEGEND_LETTERS = 20, 24


def percent(value: float, digits: int = 2) -> str:
    """Return a share as text."""
    return f"{100 * value:.{digits}f}%"


def draw_figures(report: Report) -> dict[str, Figure]:
    """Return all figures by name; the PNG files have the same names."""
    return {
        "reliability": draw_reliability(report),
        "risk_coverage": draw_risk_coverage(report),
        "confusion": draw_confusion(report),
        "feature_map": draw_feature_map(report),
    }


def describe_marks(report: Report) -> dict[str, list[str]]:
    """Return what the marks of the figures tell in the page, by the id of their collection.

    The texts are in drawing order; those of ``map`` are the captions of its images.
    """
    captions = report.captions
    shown, counts = _order_confusion(report)
    support = counts.sum(axis=1)
    return {
        "confusion": [
            escape_unprintable(
                f"{shown[row]} → {shown[column]}: {counts[row, column]} of "
                f"{count(int(support[row]), 'image')} "
                f"({percent(counts[row, column] / support[row], 1)})"
            )
            for row, column in np.argwhere(counts).tolist()
        ],
        "map": [captions[report.result.ids[row]] for row in report.map_rows],
    }


def draw_reliability(report: Report) -> Figure:
    """Draw accuracy by confidence, before and after temperature scaling."""
    both = (report.numbers["calibration"], report.numbers["calibrated"])
    shown = [values for values in both if values is not None]
    figure = theme.make_figure(4.2 * len(shown), 4.2)
    for number, values in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), number)
        _draw_bins(axes, values["bins"])
        title = "as trained" if number == 1 else f"temperature {values['temperature']:.3g}"
        _set_title(axes, f"{title}: ECE {percent(values['ece_equal_width'])}")
    # Not inside, where bars may be anywhere.
    figure.legend(handles=axes.lines[:1], loc="outside lower left", frameon=False, fontsize=9)
    return figure


def _draw_bins(axes: Axes, bins: list[dict[str, float]]) -> None:
    theme.style_axes(axes)
    lows, widths = [row["low"] for row in bins], [row["high"] - row["low"] for row in bins]
    heights = [row["accuracy"] for row in bins]
    axes.bar(lows, heights, widths, align="edge", color=theme.TRAIN_COLOR, edgecolor="white")
    means = [row["confidence"] for row in bins]
    axes.plot(means, means, "_", color=theme.VALIDATION_COLOR, label="mean confidence")
    axes.lines[-1].set(markersize=12, markeredgewidth=2)
    axes.plot([0, 1], [0, 1], color=theme.MUTED_COLOR, linewidth=1, linestyle="--")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))


def _set_title(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=theme.TEXT_COLOR)


def draw_risk_coverage(report: Report) -> Figure:
    """Draw the share of errors among the images that are kept, by how many are kept."""
    figure = theme.make_figure(4.8, 4.2)
    axes = figure.add_subplot()
    theme.style_axes(axes)
    selective = report.numbers["selective"]
    coverage, risk = risk_coverage(
        report.confidence, report.result.predicted == report.result.labels
    )
    axes.plot(100 * coverage, 100 * risk, color=theme.TRAIN_COLOR, linewidth=2)
    axes.axhline(100 * RISK, color=theme.MUTED_COLOR, linewidth=1, linestyle="--")
    axes.set(xlabel="coverage: images kept, %", ylabel="risk: errors among them, %", xlim=(0, 101))
    axes.set_ylim(bottom=0)
    aurc, lowest = selective["aurc"], selective["best_aurc"]
    _set_title(axes, f"AURC {aurc:.4f} (lowest possible {lowest:.4f})")
    return figure


def _order_confusion(report: Report) -> tuple[list[str], np.ndarray]:
    """Return class names and confusion matrix with confused classes side by side."""
    order = report.numbers["class_order"]
    counts = np.asarray(report.numbers["confusion"])[np.ix_(order, order)]
    return [report.numbers["class_names"][label] for label in order], counts


def draw_confusion(report: Report) -> Figure:
    """Draw the confusion matrix with confused classes side by side."""
    shown, counts = _order_confusion(report)
    return figures.draw_confusion(counts, shown)


def draw_feature_map(report: Report) -> Figure:
    """Draw images as points by their features, with a legend; ringed points are mistakes."""
    figure = theme.make_figure(9, 6.2)
    axes = figure.add_subplot()
    rows, order = report.map_rows, report.numbers["class_order"]
    labels = report.result.labels[rows]
    colors = matplotlib.colormaps["hsv"](np.argsort(order) / len(order))
    wrong = report.result.predicted[rows] != labels
    x, y = report.map_places.T
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
    _set_title(axes, f"{count(len(rows), 'image')} by their features (t-SNE)")
    _add_legend(figure, report, [label for label in order if label in labels], colors)
    return figure


def _add_legend(figure: Figure, report: Report, classes: list[int], colors: np.ndarray) -> None:
    """Explain rings and colors: of few classes each, of many only what similar colors mean."""
    ring = Line2D([], [], marker="o", linestyle="", color="#999999", label="mistake")
    ring.set(markeredgecolor=theme.TEXT_COLOR, markeredgewidth=1.2)
    handles = [ring]
    if len(classes) <= _LEGEND_CLASSES:
        for label in classes:
            name = theme.shorten(report.numbers["class_names"][label], _LEGEND_LETTERS)
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
