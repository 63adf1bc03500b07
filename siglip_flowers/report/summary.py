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

# Its first row is the heading.
Table = list[tuple[str, ...]]


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
    tables = (*_tabulate_metrics(report), *_tabulate_classes(report), _tabulate_unknowns(report))
    parts = [align_columns(table) for table in tables if len(table) > 1]
    return "\n\n".join([*parts, _count_findings(report)])


def _tabulate_metrics(report: Report) -> list[Table]:
    metrics: Table = [("metric", "value", "95 % interval")]
    for name, estimate in {**report.headline, "knn": report.knn_accuracy}.items():
        title = "5 nearest neighbors" if name == "knn" else name_metric(name)
        values = format_metric(name, estimate.value), format_interval(name, estimate)
        metrics.append((title, *values))
    calibration: Table = [("calibration at temperature", "ECE", "Brier score", "loss")]
    for each in (report.calibration, report.calibrated):
        if each is not None:
            scores = f"{each.brier:.4f}", f"{each.loss:.4f}"
            ece = percent(each.ece_equal_width)
            calibration.append((f"{each.temperature:.3f}", ece, *scores))
    return [metrics, calibration]


def _tabulate_classes(report: Report) -> list[Table]:
    names, _ = clean_names(report)
    pairs: Table = [("most confused: true class", "predicted", "images", "of the class")]
    for pair in report.confused_pairs[:_ROWS]:
        counts = str(pair.count), percent(pair.share, 1)
        pairs.append((names[pair.label], names[pair.predicted], *counts))
    lowest: Table = [("lowest recall", "images", "recall", "95 % interval")]
    present = [row for row in report.per_class if row.support]
    for row in sorted(present, key=lambda row: row.recall.value)[:_ROWS]:
        recall = percent(row.recall.value, 1), format_interval("recall", row.recall)
        lowest.append((names[row.label], str(row.support), *recall))
    groups: Table = [("classes", "number", "images", "mean recall", "mean F1")]
    for group in report.groups:
        means = percent(group.recall), percent(group.f1)
        groups.append((group.name, str(group.classes), str(group.support), *means))
    return [pairs, lowest, groups]


def _tabulate_unknowns(report: Report) -> Table:
    unknowns: Table = [("unknown images", "score", "AUROC", "FPR95")]
    for row in report.unknowns:
        if row.source in (report.unknowns[0].source, GIVEN):
            score = SCORE_NAMES.get(row.score, row.score)
            unknowns.append((row.source, score, f"{row.auroc:.3f}", percent(row.fpr95, 1)))
    return unknowns


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
