"""The report as one HTML page that needs no other file."""

import base64
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from siglip_flowers.base.text import count, escape_unprintable
from siglip_flowers.plots.theme import (
    GRID_COLOR,
    MUTED_COLOR,
    TEXT_COLOR,
    TRAIN_COLOR,
    VALIDATION_COLOR,
    WRONG_COLOR,
    to_svg,
)
from siglip_flowers.report.contents import Report, UnknownRow
from siglip_flowers.report.figures import Drawing
from siglip_flowers.report.summary import (
    SCORE_NAMES,
    TRAINED_ON,
    clean_names,
    describe_rows,
    format_interval,
    format_metric,
    name_metric,
    percent,
)

_PACKAGE = "siglip_flowers.report"
# The first metrics are shown large.
LARGE = ("accuracy", "top5_accuracy", "f1_macro", "loss")
# Figures take the colors of the page, light or dark.
_COLORS = {
    "#000000": "ink",
    TEXT_COLOR: "ink",
    MUTED_COLOR: "muted",
    "#999999": "muted",
    GRID_COLOR: "rule",
    TRAIN_COLOR: "accent",
    VALIDATION_COLOR: "second",
    WRONG_COLOR: "wrong",
    "#ffffff": "paper",
}
_VARIABLES = {color.lower(): f"var(--{name})" for color, name in _COLORS.items()}
# Inches; wider figures scroll on small screens instead of shrinking.
_NARROW = 6.0


def render_page(report: Report, drawings: Mapping[str, Drawing]) -> str:
    """Return the page as HTML.

    Names of classes and files are shown as text whatever they contain: the template escapes
    everything, and a content security policy forbids the page all requests.
    """
    environment = Environment(
        loader=PackageLoader(_PACKAGE, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, uri=encode_image, clean=escape_unprintable, metric=name_metric
    )
    names, ids = clean_names(report)
    evaluation = report.evaluation
    marks = {
        key: {
            "labels": labels,
            "images": [encode_image(report.thumbnails[row]) for row in drawing.rows.get(key, [])],
        }
        for drawing in drawings.values()
        for key, labels in drawing.labels.items()
    }
    page: str = environment.get_template("report.html.jinja").render(
        report=report,
        result=report.result,
        evaluation=evaluation,
        robustness=evaluation.figures.get("robustness", {}).get("rows", []),
        augmented=evaluation.figures.get("augmented", []),
        names=names,
        ids=ids,
        captions=describe_rows(report),
        count=count,
        trained_on=TRAINED_ON,
        style=_read("report.css"),
        script=_read("report.js"),
        large=[name for name in LARGE if name in report.headline],
        format_metric=format_metric,
        format_interval=format_interval,
        figures={name: _embed(drawing) for name, drawing in drawings.items()},
        unknowns=tabulate_unknowns(report.unknowns),
        score_names=SCORE_NAMES,
        facts=list(_flatten(evaluation.environment)),
        marks=marks,
    )
    return page


def encode_image(jpeg: bytes) -> str:
    """Return the data URI of a JPEG."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"


def tabulate_unknowns(
    rows: Iterable[UnknownRow],
) -> tuple[list[str], dict[str, dict[str, UnknownRow]]]:
    """Return the scores, in order, and the rows by source and score."""
    table: dict[str, dict[str, UnknownRow]] = {}
    for row in rows:
        table.setdefault(row.source, {})[row.score] = row
    scores = list(dict.fromkeys(score for found in table.values() for score in found))
    return scores, table


def _embed(drawing: Drawing) -> Markup:
    """Return a figure as SVG in the colors of the page, with the ids of its marks only."""
    svg = re.sub(
        r"(fill|stroke): (#[0-9a-f]{6})",
        lambda found: f"{found[1]}: {_VARIABLES.get(found[2], found[2])}",
        to_svg(drawing.figure),
    )
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    kind = "narrow" if drawing.figure.get_figwidth() <= _NARROW else "wide"
    return Markup(svg.replace("<svg ", f'<svg class="plot {kind}" ', 1))


def _read(name: str) -> Markup:
    return Markup((files(_PACKAGE) / name).read_text(encoding="utf-8"))


def _flatten(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield the names and values of facts, nested ones included."""
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from _flatten(value)
        elif value is not None:
            yield key, escape_unprintable(str(value))
