"""The figures of a report as plain JSON data and as tables, for papers and scripts."""

import dataclasses
from typing import Any

from siglip_flowers.base.text import format_csv
from siglip_flowers.report.contents import CalibrationFigures, ReportContents


def list_numbers(contents: ReportContents) -> dict[str, Any]:
    """Return everything but the images; rows are given by image id, classes by name."""
    names, ids = contents.class_names, contents.ids

    def describe(row: int) -> dict[str, Any]:
        return {
            "id": ids[row],
            "label": names[contents.labels[row]],
            "predicted": names[contents.predicted[row]],
            "confidence": float(contents.confidence[row]),
        }

    def describe_calibration(figures: CalibrationFigures | None) -> dict[str, Any] | None:
        return None if figures is None else dataclasses.asdict(figures)

    selective = contents.selective
    return {
        "title": contents.title,
        "model": contents.model,
        "split": contents.split,
        "description": contents.description,
        "n": len(ids),
        "headline": {
            name: dataclasses.asdict(figure) for name, figure in contents.headline.items()
        },
        "calibration": describe_calibration(contents.calibration),
        "calibrated": describe_calibration(contents.calibrated),
        "selective": {
            "aurc": selective.aurc,
            "best_aurc": selective.best_aurc,
            "coverage_at_5_percent_risk": selective.coverage_at_5_percent_risk,
        },
        "knn_accuracy": dataclasses.asdict(contents.knn_accuracy),
        "class_names": names,
        "class_order": contents.class_order.tolist(),
        "confusion": contents.confusion.tolist(),
        "per_class": [
            {"name": names[row.label], **dataclasses.asdict(row)} for row in contents.per_class
        ],
        "confused_pairs": [
            {
                "label": names[pair.label],
                "predicted": names[pair.predicted],
                "count": pair.count,
                "share": pair.share,
                "images": [ids[row] for row in pair.rows],
            }
            for pair in contents.confused_pairs
        ],
        "confident_mistakes": [describe(row) for row in contents.mistakes],
        "least_certain_hits": [describe(row) for row in contents.uncertain_hits],
        "label_suspects": [
            {
                **describe(suspect.row),
                "suggested": names[suspect.suggested],
                "label_quality": suspect.label_quality,
            }
            for suspect in contents.label_suspects
        ],
        "near_duplicates": [
            {
                "id": ids[pair.row],
                "label": names[contents.labels[pair.row]],
                "other_split": pair.other_split,
                "other_id": pair.other_id,
                "other_label": names[pair.other_label],
                "hash_distance": pair.hash_distance,
                "cosine": pair.cosine,
                "found_by": pair.found_by,
            }
            for pair in contents.near_duplicates
        ],
        "unknowns": [dataclasses.asdict(row) for row in contents.unknowns],
        "robustness": contents.robustness,
        "augmented": contents.augmented,
        "environment": contents.environment,
        "command": contents.command,
        "seconds": contents.seconds,
    }


def format_class_table(contents: ReportContents) -> str:
    """Return a row a class as CSV."""
    names = contents.class_names
    columns = (
        *("label", "name", "support", "predicted", "precision"),
        *("recall", "recall_low", "recall_high", "f1"),
    )
    rows = [
        (
            *(row.label, names[row.label], row.support, row.predicted, row.precision),
            *(row.recall.value, row.recall.low, row.recall.high, row.f1),
        )
        for row in contents.per_class
    ]
    return format_csv([columns, *rows])


def format_pair_table(contents: ReportContents) -> str:
    """Return a row a confused pair of classes as CSV."""
    names = contents.class_names
    rows = [
        (
            names[pair.label],
            names[pair.predicted],
            pair.count,
            pair.share,
            " ".join(contents.ids[row] for row in pair.rows),
        )
        for pair in contents.confused_pairs
    ]
    return format_csv([("label", "predicted", "count", "share", "images"), *rows])
