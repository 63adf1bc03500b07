"""A report in words: how numbers and names are written, and the summary in the terminal."""

import math

from siglip_flowers.base.text import align_columns, count, escape_unprintable
from siglip_flowers.evaluation.tables import HEADLINE
from siglip_flowers.report.contents import GIVEN, Estimate, Report

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
_ROWS = 5


def percent(value: float, digits: int = 2) -> str:
    """Return a share as text."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "none"


def format_metric(name: str, value: float) -> str:
    """Return a metric as text: in percent, except for a loss."""
    return f"{value:.4f}" if name == "loss" else percent(value)


def format_interval(name: str, estimate: Estimate) -> str:
    """Return the two ends of an interval as text."""
    if name == "loss":
        return f"{estimate.low:.4f} to {estimate.high:.4f}"
    return f"{100 * estimate.low:.2f} to {percent(estimate.high)}"


def name_metric(name: str) -> str:
    """Return the title of a metric."""
    title = HEADLINE.get(name, name.replace("_", " "))
    return title[0].upper() + title[1:]


def clean_names(report: Report) -> tuple[list[str], list[str]]:
    """Return class names and image ids without characters that a terminal or page obeys."""
    return (
        [escape_unprintable(name) for name in report.names],
        [escape_unprintable(name) for name in report.result.ids],
    )


def describe_rows(report: Report) -> list[str]:
    """Return a caption for every image of the split."""
    names, ids = clean_names(report)
    rows = zip(ids, report.result.labels, report.predicted, report.confidence, strict=True)
    return [
        f"{image}: {names[label]}"
        + ("" if label == predicted else f", predicted {names[predicted]}")
        + f" ({percent(float(confidence), 1)})"
        for image, label, predicted, confidence in rows
    ]


def summarize_report(report: Report) -> str:
    """Return the main results as tables of plain text; names contain nothing a terminal obeys."""
    names, _ = clean_names(report)
    estimates = {**report.headline, "knn": report.knn_accuracy}
    shown = [report.calibration, *([report.calibrated] if report.calibrated else [])]
    weakest = sorted(
        (row for row in report.per_class if row.support), key=lambda row: row.recall.value
    )
    unknowns = report.unknowns
    tables: list[tuple[tuple[str, ...], list[tuple[str, ...]]]] = [
        (
            ("metric", "value", "95 % interval"),
            [
                (
                    "5 nearest neighbors" if name == "knn" else name_metric(name),
                    format_metric(name, estimate.value),
                    format_interval(name, estimate),
                )
                for name, estimate in estimates.items()
            ],
        ),
        (
            ("calibration at temperature", "ECE", "Brier score", "loss"),
            [
                (
                    f"{each.temperature:.3f}",
                    percent(each.ece_equal_width),
                    f"{each.brier:.4f}",
                    f"{each.loss:.4f}",
                )
                for each in shown
            ],
        ),
        (
            ("most confused: true class", "predicted", "images", "of the class"),
            [
                (names[pair.label], names[pair.predicted], str(pair.count), percent(pair.share, 1))
                for pair in report.confused_pairs[:_ROWS]
            ],
        ),
        (
            ("lowest recall", "images", "recall", "95 % interval"),
            [
                (
                    names[row.label],
                    str(row.support),
                    percent(row.recall.value, 1),
                    format_interval("recall", row.recall),
                )
                for row in weakest[:_ROWS]
            ],
        ),
        (
            ("classes", "number", "images", "mean recall", "mean F1"),
            [
                (
                    group.name,
                    str(group.classes),
                    str(group.support),
                    percent(group.recall),
                    percent(group.f1),
                )
                for group in report.groups
            ],
        ),
        (
            ("unknown images", "score", "AUROC", "FPR95"),
            [
                (
                    row.source,
                    SCORE_NAMES.get(row.score, row.score),
                    f"{row.auroc:.3f}",
                    percent(row.fpr95, 1),
                )
                for row in unknowns
                if row.source in (unknowns[0].source, GIVEN)
            ],
        ),
    ]
    parts = [align_columns([columns, *rows]) for columns, rows in tables if rows]
    return "\n\n".join([*parts, _count_findings(report)])


def _count_findings(report: Report) -> str:
    kept = percent(report.selective.coverage_at_5_percent_risk, 1)
    lines = [
        f"{kept} of the images can be kept at 5 % errors.",
        f"{count(len(report.label_suspects), 'suspected label error')} and "
        f"{count(len(report.near_duplicates), 'near-duplicate')} are shown in the report.",
    ]
    if report.trained_on and report.label_suspects:
        lines.append(TRAINED_ON)
    return "\n".join(lines)
