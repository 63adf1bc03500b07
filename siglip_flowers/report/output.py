"""What a report leaves: a page, its results as JSON, its figures as PNG, a summary to print."""

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import atomic_directory, write_json, write_text
from siglip_flowers.base.text import count, escape_unprintable
from siglip_flowers.evaluation.run import HEADLINE
from siglip_flowers.plots import theme
from siglip_flowers.report.analysis import Report
from siglip_flowers.report.figures import describe_marks, draw_figures, percent

PAGE_FILE = "report.html"
NUMBERS_FILE = "metrics.json"
FIGURES = ("reliability", "risk_coverage", "confusion", "feature_map")
REPORT_FILES = (PAGE_FILE, NUMBERS_FILE, *(f"{name}.png" for name in FIGURES))
# The first metrics are shown large.
LARGE = ("accuracy", "top5_accuracy", "f1_macro", "loss")
# Inches; wider figures scroll on small screens instead of shrinking.
_NARROW = 6.0


def check_report_dir(directory: Path, title: str) -> None:
    """Raise InputError if a report would replace anything but an earlier report with its title."""
    try:
        present = {path.name for path in directory.iterdir()} if directory.exists() else set()
        if not present:
            return
        strange = present - {*REPORT_FILES}
        earlier = json.loads((directory / NUMBERS_FILE).read_text(encoding="utf-8"))["title"]
    except (OSError, ValueError, TypeError, KeyError):
        strange, earlier = set(), None
    if strange or earlier != title:
        raise InputError(
            f"The report would be written to {directory}, which contains "
            f"{min(strange, default='something else')}. Choose another --output_dir, or remove it."
        )


def write_report(report: Report, directory: Path) -> Path:
    """Write all files of a report, or none, and return the path of the page.

    An earlier report in the directory is replaced; see :func:`check_report_dir`.
    """
    figures = draw_figures(report)
    with atomic_directory(directory) as temporary:
        write_text(temporary / PAGE_FILE, render_page(report, figures))
        write_json(temporary / NUMBERS_FILE, report.numbers)
        for name, figure in figures.items():
            theme.save_figure(figure, temporary / f"{name}.png")
    return directory / PAGE_FILE


def render_page(report: Report, figures: Mapping[str, Figure]) -> str:
    """Return the page as HTML.

    Names of classes and files are shown as text whatever they contain: the template escapes
    everything, and a content security policy forbids the page all requests.
    """
    environment = Environment(
        loader=PackageLoader("siglip_flowers.report", ""),
        autoescape=True,
        finalize=_show_unprintable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, metric=_name_metric)
    images = {key: encode_image(jpeg) for key, jpeg in report.thumbnails.items()}
    split, ids = report.result.split, report.result.ids
    page: str = environment.get_template("report.html.jinja").render(
        numbers=report.numbers,
        zero_shot=report.evaluation.options.zero_shot,
        images=images,
        captions=report.captions,
        count=count,
        large=[name for name in LARGE if name in report.numbers["headline"]],
        format_metric=_format_metric,
        format_interval=_format_interval,
        figures={name: _embed(figure) for name, figure in figures.items()},
        environment=json.dumps(report.numbers["environment"], indent=2),
        labels=describe_marks(report),
        map_images=[images[split, ids[row]] for row in report.map_rows],
    )
    return page


def _show_unprintable(value: Any) -> Any:
    """Return what the page shows of a value: no characters that a browser obeys."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return escape_unprintable(value, keep="\n") if is_text else value


def _format_metric(name: str, value: float) -> str:
    """Return a metric as text: in percent, except for a loss."""
    return f"{value:.4f}" if name == "loss" else percent(value)


def _format_interval(name: str, metric: Mapping[str, float]) -> str:
    low, high = metric["low"], metric["high"]
    if name == "loss":
        return ""
    return f"{100 * low:.2f} to {percent(high)}" if low < high else "none"


def _name_metric(name: str) -> str:
    title = HEADLINE.get(name, name)
    return title[0].upper() + title[1:]


def encode_image(jpeg: bytes) -> str:
    """Return the data URI of a JPEG."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"


def _embed(figure: Figure) -> Markup:
    """Return a figure as SVG with the ids of its marks only."""
    svg = re.sub(r' id="[\w.]+_\d+"', "", theme.to_svg(figure))
    kind = "narrow" if figure.get_figwidth() <= _NARROW else "wide"
    return Markup(svg.replace("<svg ", f'<svg class="plot {kind}" ', 1))


def summarize_report(report: Report) -> str:
    """Return what the report found, as plain text; the command prints the metrics itself."""
    numbers = report.numbers
    errors = [
        f"{percent(each['ece_equal_width'])} at temperature {each['temperature']:.3g}"
        for each in (numbers["calibration"], numbers["calibrated"])
        if each is not None
    ]
    kept = percent(numbers["selective"]["coverage_at_5_percent_risk"], 1)
    return (
        f"Calibration error: {', '.join(errors)}.\n"
        f"Coverage at 5% errors: {kept} of the images.\n"
        f"The report shows {count(len(numbers['label_suspects']), 'suspected label error')} and "
        f"{count(len(numbers['near_duplicates']), 'near-duplicate')}."
    )
