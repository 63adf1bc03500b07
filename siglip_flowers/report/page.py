"""The report as one page that needs nothing but itself."""

import base64
from collections.abc import Iterable
from functools import partial
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.report.contents import ReportContents, UnknownRow
from siglip_flowers.report.plots import (
    draw_class_recall,
    draw_confusion,
    draw_feature_map,
    draw_reliability,
    draw_risk_coverage,
)
from siglip_flowers.report.words import (
    SCORE_NAMES,
    TRAINED_ON,
    clean_names,
    format_ends,
    format_metric,
    name_metric,
    order_headline,
    percent,
)

_PACKAGE = "siglip_flowers.report"
# The first of the headline figures are shown large.
LARGE = ("accuracy", "top5_accuracy", "f1_macro", "loss")


def render_page(contents: ReportContents) -> str:
    """Return the page as HTML.

    Whatever names of classes and files hold is shown as text: the template escapes everything, and
    a content security policy allows the page no request at all.
    """
    environment = Environment(
        loader=PackageLoader("siglip_flowers.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names, ids = clean_names(contents)
    captions = [
        f"{ids[row]}: {names[label]}"
        + ("" if label == predicted else f", taken for {names[predicted]}")
        + f" ({percent(float(confidence), 1)})"
        for row, (label, predicted, confidence) in enumerate(
            zip(contents.labels, contents.predicted, contents.confidence, strict=True)
        )
    ]
    environment.filters.update(
        percent=percent, uri=encode_image, clean=escape_unprintable, metric=name_metric
    )
    images = contents.thumbnails
    page: str = environment.get_template("report.html.jinja").render(
        contents=contents,
        names=names,
        ids=ids,
        captions=captions,
        trained_on=TRAINED_ON,
        style=_read("report.css"),
        script=_read("report.js"),
        headline=order_headline(contents),
        large=[name for name in LARGE if name in contents.headline],
        format_metric=format_metric,
        format_ends=format_ends,
        draw_reliability=draw_reliability,
        risk_coverage=draw_risk_coverage(contents.selective),
        confusion=draw_confusion(contents, names),
        feature_map=draw_feature_map(contents, contents.feature_map, captions),
        class_recall=draw_class_recall(contents, names),
        unknowns=tabulate_unknowns(contents.unknowns),
        score_name=partial(_look_up, SCORE_NAMES),
        facts=list(_flatten(contents.environment)),
        map_images={
            row: encode_image(images[row])
            for row in contents.feature_map.rows.tolist()
            if row in images
        },
    )
    return page


def encode_image(jpeg: bytes) -> str:
    """Return the data URI of a JPEG."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"


def tabulate_unknowns(
    rows: Iterable[UnknownRow],
) -> tuple[list[str], dict[str, dict[str, UnknownRow]]]:
    """Return the scores, in order, and their figures by source and score."""
    table: dict[str, dict[str, UnknownRow]] = {}
    for row in rows:
        table.setdefault(row.source, {})[row.score] = row
    scores = list(dict.fromkeys(score for found in table.values() for score in found))
    return scores, table


def _read(name: str) -> Markup:
    return Markup((files(_PACKAGE) / name).read_text(encoding="utf-8"))


def _look_up(names: dict[str, str], key: str) -> str:
    return names.get(key, key)


def _flatten(facts: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield the names and values of facts, and of facts in them."""
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from _flatten(value)
        elif value is not None:
            yield key, escape_unprintable(str(value))
