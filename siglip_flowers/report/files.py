"""Write a report: a page, and the same figures as JSON, CSV and PNG, in a directory of its own."""

import json
from pathlib import Path

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import atomic_directory, write_json, write_text
from siglip_flowers.plots.curves import save_figure
from siglip_flowers.report.contents import ReportContents
from siglip_flowers.report.figures import (
    draw_class_recall,
    draw_confusion,
    draw_feature_map,
    draw_reliability,
    draw_risk_coverage,
)
from siglip_flowers.report.numbers import format_class_table, format_pair_table, list_numbers
from siglip_flowers.report.page import render_page

PAGE_FILE = "report.html"
NUMBERS_FILE = "metrics.json"
TABLES = {"per_class.csv": format_class_table, "confused_pairs.csv": format_pair_table}
FIGURES = {
    "reliability.png": draw_reliability,
    "risk_coverage.png": draw_risk_coverage,
    "confusion.png": draw_confusion,
    "feature_map.png": draw_feature_map,
    "per_class.png": draw_class_recall,
}
REPORT_FILES = (PAGE_FILE, NUMBERS_FILE, *TABLES, *FIGURES)


def check_report_dir(directory: Path, title: str) -> None:
    """Raise InputError where a report would take the place of anything but an earlier one of it.

    title: the report's title, which names model and data.
    """
    if not directory.exists():
        return
    try:
        strange = sorted({path.name for path in directory.iterdir()} - set(REPORT_FILES))
        earlier = json.loads((directory / NUMBERS_FILE).read_text(encoding="utf-8"))["title"]
    except (OSError, ValueError, TypeError, KeyError):
        strange, earlier = [], None
    if strange or earlier != title:
        found = strange[0] if strange else "another report" if earlier else "something else"
        raise InputError(
            f"The report would be written to {directory}, which holds {found}; choose another "
            "--output_dir, or remove it."
        )


def write_report(contents: ReportContents, directory: Path) -> Path:
    """Write all files of a report, or none, and return the path of the page.

    An earlier report in the directory is replaced; see :func:`check_report_dir`.
    """
    with atomic_directory(directory) as temporary:
        write_text(temporary / PAGE_FILE, render_page(contents))
        write_json(temporary / NUMBERS_FILE, list_numbers(contents))
        for name, tabulate in TABLES.items():
            write_text(temporary / name, tabulate(contents))
        for name, draw in FIGURES.items():
            save_figure(draw(contents), temporary / name)
    return directory / PAGE_FILE
