"""The files of a report: a page, and the same results as JSON, CSV and PNG, in one directory."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import atomic_directory, write_json, write_text
from siglip_flowers.base.text import format_csv
from siglip_flowers.plots.theme import save_figure
from siglip_flowers.report.contents import Report
from siglip_flowers.report.figures import draw_figures
from siglip_flowers.report.page import render_page

PAGE_FILE = "report.html"
NUMBERS_FILE = "metrics.json"
CLASSES_FILE, PAIRS_FILE = "per_class.csv", "confused_pairs.csv"
FIGURES = ("reliability", "risk_coverage", "confusion", "per_class", "feature_map")
REPORT_FILES = (
    *(PAGE_FILE, NUMBERS_FILE, CLASSES_FILE, PAIRS_FILE),
    *(f"{name}.png" for name in FIGURES),
)


def check_report_dir(directory: Path, title: str) -> None:
    """Raise InputError if a report would replace anything but an earlier report with its title."""
    if not directory.exists():
        return
    try:
        strange = sorted({path.name for path in directory.iterdir()} - set(REPORT_FILES))
        earlier = json.loads((directory / NUMBERS_FILE).read_text(encoding="utf-8"))["title"]
    except (OSError, ValueError, TypeError, KeyError):
        strange, earlier = [], None
    if strange or earlier != title:
        found = strange[0] if strange else "another report" if earlier else "other files"
        raise InputError(
            f"The report would be written to {directory}, which contains {found}. Choose another "
            "--output_dir, or remove it."
        )


def write_report(report: Report, directory: Path) -> Path:
    """Write all files of a report, or none, and return the path of the page.

    An earlier report in the directory is replaced; see :func:`check_report_dir`.
    """
    drawings = draw_figures(report)
    with atomic_directory(directory) as temporary:
        write_text(temporary / PAGE_FILE, render_page(report, drawings))
        write_json(temporary / NUMBERS_FILE, list_numbers(report))
        write_text(temporary / CLASSES_FILE, format_class_table(report))
        write_text(temporary / PAIRS_FILE, format_pair_table(report))
        for name, drawing in drawings.items():
            save_figure(drawing.figure, temporary / f"{name}.png")
    return directory / PAGE_FILE


def list_numbers(report: Report) -> dict[str, Any]:
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

    selective = {
        name: getattr(report.selective, name)
        for name in ("aurc", "best_aurc", "coverage_at_5_percent_risk")
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
        "selective": selective,
        "knn_accuracy": asdict(report.knn_accuracy),
        "class_names": names,
        "class_order": report.class_order.tolist(),
        "confusion": report.confusion.tolist(),
        "per_class": [{"name": names[row.label], **asdict(row)} for row in report.per_class],
        "class_groups": [asdict(group) for group in report.groups],
        "confused_pairs": [
            {
                "label": names[pair.label],
                "predicted": names[pair.predicted],
                "count": pair.count,
                "share": pair.share,
                "images": [ids[row] for row in pair.rows],
            }
            for pair in report.confused_pairs
        ],
        "confident_mistakes": [describe(row) for row in report.mistakes],
        "least_certain_hits": [describe(row) for row in report.uncertain_hits],
        "label_suspects": [
            {
                **describe(suspect.row),
                "suggested": names[suspect.suggested],
                "label_quality": suspect.label_quality,
            }
            for suspect in report.label_suspects
        ],
        "near_duplicates": [
            {
                "id": ids[pair.row],
                "label": names[labels[pair.row]],
                "other_split": pair.other_split,
                "other_id": pair.other_id,
                "other_label": names[pair.other_label],
                "hash_distance": pair.hash_distance,
                "cosine": pair.cosine,
                "found_by": pair.found_by,
            }
            for pair in report.near_duplicates
        ],
        "unknowns": [asdict(row) for row in report.unknowns],
        **evaluation.figures,
        "environment": evaluation.environment,
        "command": evaluation.command,
    }


def format_class_table(report: Report) -> str:
    """Return one row per class as CSV."""
    columns = (
        *("label", "name", "support", "trained", "predicted", "precision"),
        *("recall", "recall_low", "recall_high", "f1"),
    )
    rows = [
        (
            *(row.label, report.names[row.label], row.support, row.trained, row.predicted),
            *(row.precision, row.recall.value, row.recall.low, row.recall.high, row.f1),
        )
        for row in report.per_class
    ]
    return format_csv([columns, *rows])


def format_pair_table(report: Report) -> str:
    """Return one row per confused pair of classes as CSV."""
    rows = [
        (
            *(report.names[pair.label], report.names[pair.predicted], pair.count, pair.share),
            " ".join(report.result.ids[row] for row in pair.rows),
        )
        for pair in report.confused_pairs
    ]
    return format_csv([("label", "predicted", "count", "share", "images"), *rows])
