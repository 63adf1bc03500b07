"""What a report leaves: a page, its results as JSON, its figures as PNG, a summary to print."""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import atomic_directory, write_json, write_text
from siglip_flowers.base.text import count, escape_unprintable
from siglip_flowers.plots import theme
from siglip_flowers.report import contents
from siglip_flowers.report.figures import Drawing, draw_figures

PAGE_FILE = "report.html"
NUMBERS_FILE = "metrics.json"
FIGURES = ("reliability", "risk_coverage", "confusion", "feature_map")
REPORT_FILES = (PAGE_FILE, NUMBERS_FILE, *(f"{name}.png" for name in FIGURES))
# Of version 0.1; its reports are replaced too.
FORMER_FILES = ("per_class.csv", "confused_pairs.csv", "per_class.png")
TRAINED_ON = (
    "The model was trained on these images and has learned wrong labels with them, so it doubts "
    "fewer than on images that are new to it."
)
SCORE_NAMES = {
    "max_probability": "highest probability",
    "max_logit": "highest logit (sigmoid score)",
    "energy": "energy",
    "class_mean": "nearest class mean",
    "neighbors": "10th nearest neighbor",
}
# The first metrics are shown large.
LARGE = ("accuracy", "top5_accuracy", "f1_macro", "loss")
# Figures take the colors of the page, light or dark.
_VARIABLES = {
    "#000000": "ink",
    theme.TEXT_COLOR: "ink",
    theme.MUTED_COLOR: "muted",
    "#999999": "muted",
    theme.GRID_COLOR: "rule",
    theme.TRAIN_COLOR: "accent",
    theme.VALIDATION_COLOR: "second",
    theme.WRONG_COLOR: "wrong",
    "#ffffff": "paper",
}
# Inches; wider figures scroll on small screens instead of shrinking.
_NARROW = 6.0


def check_report_dir(directory: Path, title: str) -> None:
    """Raise InputError if a report would replace anything but an earlier report with its title."""
    if not directory.exists():
        return
    try:
        strange = {path.name for path in directory.iterdir()} - {*REPORT_FILES, *FORMER_FILES}
        earlier = json.loads((directory / NUMBERS_FILE).read_text(encoding="utf-8"))["title"]
    except (OSError, ValueError, TypeError, KeyError):
        strange, earlier = set(), None
    if strange or earlier != title:
        found = min(strange) if strange else "another report" if earlier else "other files"
        raise InputError(
            f"The report would be written to {directory}, which contains {found}. Choose another "
            "--output_dir, or remove it."
        )


def write_report(report: contents.Report, directory: Path) -> Path:
    """Write all files of a report, or none, and return the path of the page.

    An earlier report in the directory is replaced; see :func:`check_report_dir`.
    """
    drawings = draw_figures(report)
    with atomic_directory(directory) as temporary:
        write_text(temporary / PAGE_FILE, render_page(report, drawings))
        write_json(temporary / NUMBERS_FILE, list_numbers(report))
        for name, drawing in drawings.items():
            theme.save_figure(drawing.figure, temporary / f"{name}.png")
    return directory / PAGE_FILE


def list_numbers(report: contents.Report) -> dict[str, Any]:
    """Return everything but the images as JSON data; rows are image ids, classes are names."""
    names, result, evaluation = report.names, report.result, report.evaluation
    ids, labels = result.ids, result.labels

    def describe(row: int) -> dict[str, Any]:
        return {
            "id": ids[row],
            "label": names[labels[row]],
            "predicted": names[report.predicted[row]],
            "confidence": float(report.confidence[row]),
        }

    return {
        "title": evaluation.title,
        "model": evaluation.name,
        "split": result.split,
        "description": evaluation.data.description,
        "dtype": evaluation.options.dtype,
        "n": len(ids),
        "headline": {name: asdict(estimate) for name, estimate in report.headline.items()},
        "calibration": asdict(report.calibration),
        "calibrated": report.calibrated and asdict(report.calibrated),
        "selective": _pick(report.selective, "aurc", "best_aurc", "coverage_at_5_percent_risk"),
        "class_names": names,
        "class_order": report.class_order.tolist(),
        "confusion": report.confusion.tolist(),
        "per_class": report.per_class,
        "class_groups": [asdict(group) for group in report.groups],
        "confused_pairs": [
            {"label": names[pair.label], "predicted": names[pair.predicted]}
            | _pick(pair, "count", "share")
            | {"images": [ids[row] for row in pair.rows]}
            for pair in report.confused_pairs
        ],
        "confident_mistakes": [describe(row) for row in report.mistakes],
        "least_certain_hits": [describe(row) for row in report.uncertain_hits],
        "label_suspects": [
            describe(each.row) | {"suggested": names[each.suggested]} | _pick(each, "label_quality")
            for each in report.label_suspects
        ],
        "near_duplicates": [
            describe(pair.row)
            | _pick(pair, "other_split", "other_id", "hash_distance", "cosine", "found_by")
            | {"other_label": names[pair.other_label]}
            for pair in report.near_duplicates
        ],
        "unknowns": report.unknowns,
        **evaluation.figures,
        "environment": evaluation.environment,
        "command": evaluation.command,
    }


def _pick(found: Any, *fields: str) -> dict[str, Any]:
    return {name: getattr(found, name) for name in fields}


def render_page(report: contents.Report, drawings: Mapping[str, Drawing]) -> str:
    """Return the page as HTML.

    Names of classes and files are shown as text whatever they contain: the template escapes
    everything, and a content security policy forbids the page all requests.
    """
    environment = Environment(
        loader=PackageLoader("siglip_flowers.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=contents.percent,
        uri=encode_image,
        clean=escape_unprintable,
        metric=contents.name_metric,
    )
    names, ids = contents.clean_names(report)
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
        captions=contents.describe_rows(report),
        count=count,
        trained_on=TRAINED_ON,
        large=[name for name in LARGE if name in report.headline],
        format_metric=contents.format_metric,
        format_interval=contents.format_interval,
        figures={name: _embed(drawing) for name, drawing in drawings.items()},
        score_names=SCORE_NAMES,
        facts=list(_flatten(evaluation.environment)),
        marks=marks,
    )
    return page


def encode_image(jpeg: bytes) -> str:
    """Return the data URI of a JPEG."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"


def _embed(drawing: Drawing) -> Markup:
    """Return a figure as SVG in the colors of the page, with the ids of its marks only."""
    variables = {color.lower(): f"var(--{name})" for color, name in _VARIABLES.items()}
    svg = re.sub(
        r"(fill|stroke): (#[0-9a-f]{6})",
        lambda found: f"{found[1]}: {variables.get(found[2], found[2])}",
        theme.to_svg(drawing.figure),
    )
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    kind = "narrow" if drawing.figure.get_figwidth() <= _NARROW else "wide"
    return Markup(svg.replace("<svg ", f'<svg class="plot {kind}" ', 1))


def _flatten(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield the names and values of facts, nested ones included."""
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from _flatten(value)
        elif value is not None:
            yield key, escape_unprintable(str(value))


def summarize_report(report: contents.Report) -> str:
    """Return what the report found, as plain text; the command prints the metrics itself."""
    lines = [
        f"Calibration error: {contents.percent(each.ece_equal_width)} at temperature "
        f"{each.temperature:.3g}."
        for each in (report.calibration, report.calibrated)
        if each is not None
    ]
    kept = contents.percent(report.selective.coverage_at_5_percent_risk, 1)
    lines += [
        f"{kept} of the images can be kept at 5 % errors.",
        f"{count(len(report.label_suspects), 'suspected label error')} and "
        f"{count(len(report.near_duplicates), 'near-duplicate')} are shown in the report.",
    ]
    if report.trained_on and report.label_suspects:
        lines.append(TRAINED_ON)
    return "\n".join(lines)
