"""The interactive plots of the page, as SVG that takes its colors from the page."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from siglip_flowers.metrics.calibration import ReliabilityBin
from siglip_flowers.report.contents import FeatureMap, ReportContents, Selective
from siglip_flowers.report.svg import drawing, element, mark, text
from siglip_flowers.report.words import percent

_SIDE, _LEFT, _TOP, _BOTTOM = 300.0, 46.0, 26.0, 44.0
_CELL, _NAMES = 12.0, 150.0
_COLUMN, _COLUMN_HEIGHT = 11.0, 200.0
_MAP_WIDTH, _MAP_HEIGHT = 900.0, 620.0
_POINTS = 60
# Of the axis of errors: quarters of them are round.
_ENDS = (0.08, 0.2, 0.4, 0.6, 0.8, 1.0)


def draw_reliability(bins: Sequence[ReliabilityBin], title: str) -> Markup:
    """Draw the accuracy of each group of confidences; the diagonal is what it should be."""
    parts = _draw_axes("confidence", "accuracy", 1.0)
    for row in bins:
        low, high = _x(row.low), _x(row.high)
        top, aim = _y(row.accuracy), _y(row.confidence)
        width, gap = high - low, abs(top - aim)
        parts.append(
            mark(
                "g",
                f"confidence {percent(row.low, 1)} to {percent(row.high, 1)}: {row.n} images, "
                f"mean confidence {percent(row.confidence, 1)}, "
                f"accuracy {percent(row.accuracy, 1)}",
                # The whole column answers to the pointer, however low its bar.
                element("rect", class_="hit", x=low, y=_TOP, width=width, height=_SIDE),
                element("rect", class_="gap", x=low, y=min(top, aim), width=width, height=gap),
                element(
                    "rect", class_="bar", x=low + 1, y=top, width=width - 2, height=_y(0) - top
                ),
            )
        )
    parts.append(element("line", class_="aim", x1=_x(0), y1=_y(0), x2=_x(1), y2=_y(1)))
    return drawing(_LEFT + _SIDE + 22, _TOP + _SIDE + _BOTTOM, title, parts)


def draw_risk_coverage(selective: Selective) -> Markup:
    """Draw the share of errors among the images that are kept, by how many are kept."""
    highest = float(selective.risk.max())
    top = next(end for end in _ENDS if end >= highest or end == 1.0)
    parts = _draw_axes("coverage: share of images kept", "risk: errors among them", top)
    n = len(selective.coverage)
    # More points than pixels would only make the page longer.
    shown = np.unique(np.linspace(0, n - 1, min(n, 400)).round().astype(int))
    line = " ".join(
        f"{_x(selective.coverage[row]):.1f},{_y(selective.risk[row] / top):.1f}" for row in shown
    )
    parts.append(
        element("line", class_="aim", x1=_x(0), x2=_x(1), y1=_y(0.05 / top), y2=_y(0.05 / top))
    )
    parts.append(text(_x(1) - 4, _y(0.05 / top) - 5, "5 %", class_="tick", text_anchor="end"))
    parts.append(element("polyline", class_="line", points=line))
    for row in np.unique(np.linspace(0, n - 1, min(n, _POINTS)).round().astype(int)):
        coverage, risk = float(selective.coverage[row]), float(selective.risk[row])
        parts.append(
            mark(
                "circle",
                f"{percent(coverage, 1)} of the images kept: {percent(risk, 2)} of them wrong",
                cx=_x(coverage),
                cy=_y(risk / top),
                r=4,
            )
        )
    return drawing(_LEFT + _SIDE + 22, _TOP + _SIDE + _BOTTOM, "Risk and coverage", parts)


def draw_confusion(contents: ReportContents, names: Sequence[str]) -> Markup:
    """Draw how many images of each true class (row) got each class (column)."""
    order = contents.class_order
    place = np.argsort(order)
    classes = len(order)
    side, edge = _CELL * classes, _NAMES
    parts = [element("rect", class_="paper", x=edge, y=edge, width=side, height=side)]
    for position, label in enumerate(order):
        middle = edge + (position + 0.5) * _CELL + 3.2
        short = _shorten(names[label], 24)
        parts.append(text(edge - 4, middle, short, class_="name", text_anchor="end"))
        turned = f"rotate(-90 {middle:g} {edge - 4:g})"
        parts.append(text(middle, edge - 4, short, class_="name", transform=turned))
    support = np.maximum(contents.confusion.sum(axis=1), 1)
    rows, columns = np.nonzero(contents.confusion)
    # The largest first, so that the arrow keys start with what matters; right ones come last.
    cells = sorted(
        zip(rows.tolist(), columns.tolist(), strict=True),
        key=lambda cell: (cell[0] == cell[1], -contents.confusion[cell]),
    )
    for label, predicted in cells:
        count = int(contents.confusion[label, predicted])
        share = count / support[label]
        parts.append(
            mark(
                "rect",
                f"{names[label]} → {names[predicted]}: {count} of {support[label]} images "
                f"({percent(share, 1)})",
                x=edge + place[predicted] * _CELL,
                y=edge + place[label] * _CELL,
                width=_CELL,
                height=_CELL,
                data_kind="right" if label == predicted else "wrong",
                fill_opacity=round(0.2 + 0.8 * share**0.5, 2),
            )
        )
    whole = edge + side + 2
    return drawing(
        whole, whole, "Confusion matrix: true classes in rows, predicted in columns", parts
    )


def draw_feature_map(
    contents: ReportContents, feature_map: FeatureMap, captions: Sequence[str]
) -> Markup:
    """Draw images as points; classes that are confused have similar colors."""
    place = np.argsort(contents.class_order)
    classes = max(len(place), 1)
    parts = []
    for (x, y), row in zip(feature_map.places.tolist(), feature_map.rows.tolist(), strict=True):
        label = int(contents.labels[row])
        right = contents.predicted[row] == label
        parts.append(
            mark(
                "circle",
                captions[row],
                cx=14 + x * (_MAP_WIDTH - 28),
                cy=14 + y * (_MAP_HEIGHT - 28),
                r=6,
                data_row=row,
                data_kind="right" if right else "wrong",
                style=f"--hue:{360 * place[label] / classes:.0f}",
            )
        )
    return drawing(_MAP_WIDTH, _MAP_HEIGHT, "Map of the images' features", parts)


def draw_class_recall(contents: ReportContents, names: Sequence[str]) -> Markup:
    """Draw the recall of each class with its interval, the lowest first."""
    rows = sorted(
        (row for row in contents.per_class if row.support),
        key=lambda row: (row.recall.value, row.recall.high, row.label),
    )
    width = _COLUMN * len(rows)
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _TOP + (1 - share) * _COLUMN_HEIGHT
        parts.append(element("line", class_="grid", x1=_LEFT, x2=_LEFT + width, y1=y, y2=y))
        parts.append(text(_LEFT - 6, y + 4, f"{share:.0%}", class_="tick", text_anchor="end"))
    for number, row in enumerate(rows):
        x = _LEFT + (number + 0.5) * _COLUMN
        low, high, middle = (
            _TOP + (1 - value) * _COLUMN_HEIGHT
            for value in (row.recall.low, row.recall.high, row.recall.value)
        )
        label = (
            f"{names[row.label]}: recall {percent(row.recall.value, 1)} "
            f"({percent(row.recall.low, 1)} to {percent(row.recall.high, 1)}), "
            f"{row.support} images"
        )
        parts.append(
            mark(
                "g",
                label,
                element(
                    "rect",
                    class_="hit",
                    x=x - _COLUMN / 2,
                    y=_TOP,
                    width=_COLUMN,
                    height=_COLUMN_HEIGHT,
                ),
                element("line", class_="whisker", x1=x, x2=x, y1=low, y2=high),
                element("circle", class_="dot", cx=x, cy=middle, r=3.5),
            )
        )
    return drawing(
        _LEFT + width + 6,
        _TOP + _COLUMN_HEIGHT + 14,
        "Recall of each class with its interval",
        parts,
    )


def _draw_axes(x_label: str, y_label: str, top: float) -> list[Markup]:
    parts = []
    for step in range(5):
        share = step / 4
        parts.append(element("line", class_="grid", x1=_x(0), x2=_x(1), y1=_y(share), y2=_y(share)))
        parts.append(element("line", class_="grid", x1=_x(share), x2=_x(share), y1=_y(0), y2=_y(1)))
        parts.append(
            text(_x(share), _y(0) + 17, f"{share:.0%}", class_="tick", text_anchor="middle")
        )
        digits = 0 if round(25 * top, 6).is_integer() else 1
        parts.append(
            text(
                _x(0) - 6,
                _y(share) + 4,
                f"{share * top:.{digits}%}",
                class_="tick",
                text_anchor="end",
            )
        )
    parts.append(text(_x(0.5), _y(0) + 37, x_label, class_="axis", text_anchor="middle"))
    parts.append(text(_x(0), 14, y_label, class_="axis"))
    return parts


def _x(share: float) -> float:
    return _LEFT + float(share) * _SIDE


def _y(share: float) -> float:
    return _TOP + (1 - float(share)) * _SIDE


def _shorten(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
