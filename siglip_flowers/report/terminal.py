"""The report's main figures as tables in the terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.report.contents import GIVEN, ReportContents
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

ROWS = 5


def print_report(contents: ReportContents, console: Console | None = None) -> None:
    """Print the report's figures, and the first rows of its lists.

    Robustness and augmentation are left to the tables that any evaluation prints of them.

    Names are shown as they are: markup and what a terminal would obey do nothing.
    """
    console = console or Console(emoji=False, highlight=False)
    names, ids = clean_names(contents)
    for table in _list_tables(contents, names, ids):
        if table.row_count:
            console.print(table)
            console.print()


def _list_tables(
    contents: ReportContents, names: Sequence[str], ids: Sequence[str]
) -> Iterable[Table]:
    yield _tabulate(
        escape_unprintable(contents.title),
        ("figure", "value", "95 % interval"),
        [
            *(
                (name_metric(name), format_metric(name, figure.value), format_ends(name, figure))
                for name, figure in order_headline(contents).items()
            ),
            (
                "Vote of the 5 nearest",
                percent(contents.knn_accuracy.value),
                format_ends("knn", contents.knn_accuracy),
            ),
        ],
    )
    shown = [contents.calibration, *([contents.calibrated] if contents.calibrated else [])]
    yield _tabulate(
        "Calibration",
        ("temperature", "ECE", "ECE, equal mass", "Brier", "loss"),
        [
            (
                f"{figures.temperature:.3f}",
                percent(figures.ece_equal_width),
                percent(figures.ece_equal_mass),
                f"{figures.brier:.4f}",
                f"{figures.loss:.4f}",
            )
            for figures in shown
        ],
    )
    selective = contents.selective
    yield _tabulate(
        "Selective prediction",
        ("AURC", "least possible", "kept at 5 % errors"),
        [
            (
                f"{selective.aurc:.4f}",
                f"{selective.best_aurc:.4f}",
                percent(selective.coverage_at_5_percent_risk, 1),
            )
        ],
    )
    yield _tabulate(
        "Most confused pairs",
        ("true class", "taken for", "images", "of the class"),
        [
            (names[pair.label], names[pair.predicted], str(pair.count), percent(pair.share, 1))
            for pair in contents.confused_pairs[:ROWS]
        ],
    )
    weakest = sorted(
        (row for row in contents.per_class if row.support), key=lambda row: row.recall.value
    )
    yield _tabulate(
        "Weakest classes",
        ("class", "images", "recall", "95 % interval", "precision"),
        [
            (
                names[row.label],
                str(row.support),
                percent(row.recall.value, 1),
                format_ends("recall", row.recall),
                percent(row.precision, 1),
            )
            for row in weakest[:ROWS]
        ],
    )
    for title, rows in (
        ("Confident mistakes", contents.mistakes),
        ("Least certain hits", contents.uncertain_hits),
    ):
        yield _tabulate(
            title,
            ("image", "true class", "predicted", "confidence"),
            [
                (
                    ids[row],
                    names[contents.labels[row]],
                    names[contents.predicted[row]],
                    percent(float(contents.confidence[row]), 1),
                )
                for row in rows[:ROWS]
            ],
        )
    yield _tabulate(
        f"Suspected label errors: {len(contents.label_suspects)} most suspect, the first of them"
        + (f". {TRAINED_ON}" if contents.trained_on else ""),
        ("image", "label", "perhaps", "label fits"),
        [
            (
                ids[suspect.row],
                names[contents.labels[suspect.row]],
                names[suspect.suggested],
                percent(suspect.label_quality, 1),
            )
            for suspect in contents.label_suspects[:ROWS]
        ],
    )
    yield _tabulate(
        f"Near-duplicates: {len(contents.near_duplicates)} nearest, the first of them",
        ("image", "looks like", "found by", "differing bits", "cosine"),
        [
            (
                ids[pair.row],
                f"{pair.other_split} {escape_unprintable(pair.other_id)}",
                pair.found_by,
                str(pair.hash_distance),
                f"{pair.cosine:.3f}",
            )
            for pair in contents.near_duplicates[:ROWS]
        ],
    )
    yield _tabulate(
        "Unknown images",
        ("images of", "score", "AUROC", "FPR95"),
        [
            (
                row.source,
                SCORE_NAMES.get(row.score, row.score),
                f"{row.auroc:.3f}",
                percent(row.fpr95, 1),
            )
            for row in contents.unknowns
            if row.source in (contents.unknowns[0].source, GIVEN)
        ],
    )


def _tabulate(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=escape(title), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table
