"""Rank all finished runs below a directory, for each test set and split protocol."""

import dataclasses
import datetime
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import METRICS_FILE, REPORT_DIRS
from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.compare.comparison import read_metrics
from siglip_flowers.metrics.bootstrap import accuracy_interval

# Runs are at most this many folders below the directory.
DEPTH = 3
Tabulate = Callable[[list[list[str]]], list[str]]
COLUMNS = [
    *("rank", "run", "test accuracy", "95 %", "F1 (macro)"),
    *("model", "parameters", "shots", "seed", "finished"),
]


@dataclass(frozen=True)
class LeaderboardRow:
    """One run's figures on its test split, with the interval of the accuracy.

    ``group`` is (split protocol, data, number of test images); ``rank`` is among its runs.
    """

    group: tuple[str, str, int]
    run: str
    accuracy: float
    low: float
    high: float
    f1_macro: float
    model: str
    parameters: int | None
    shots: int | None
    seed: int | None
    finished: str
    rank: int = 0


def rank_runs(directory: Path) -> tuple[list[LeaderboardRow], list[str]]:
    """Return the ranked runs, and the metrics files that hold no test figures.

    Only runs of one data source, split protocol and test size are ranked against each other; equal
    accuracies share a rank.

    Raises:
        InputError: No such directory, or no run in it.
    """
    if not directory.is_dir():
        raise InputError(f"--leaderboard {directory} is no directory. Name one that holds runs.")
    files = {
        path for depth in range(DEPTH + 1) for path in directory.glob("*/" * depth + METRICS_FILE)
    }
    found: list[LeaderboardRow] = []
    left_out = []
    for file in sorted(files):
        try:
            found.append(_read_row(file, directory))
        except (KeyError, TypeError):
            # The metrics of a report belong to its run.
            if file.parent.name not in REPORT_DIRS.values():
                left_out.append(str(file.relative_to(directory)))
    if not found:
        raise InputError(
            f"There is no finished run with test figures below {directory}. Name another directory."
        )
    found.sort(key=lambda row: (row.group, -row.accuracy))
    ranked = []
    for _, rows in itertools.groupby(found, key=lambda row: row.group):
        group = list(rows)
        for row in group:
            rank = 1 + sum(other.accuracy > row.accuracy for other in group)
            ranked.append(dataclasses.replace(row, rank=rank))
    return ranked, left_out


def _read_row(file: Path, directory: Path) -> LeaderboardRow:
    metrics = read_metrics(file)
    data, test = metrics["data"], metrics["splits"]["test"]
    model, training = metrics["model"], metrics.get("training", {})
    sizes = np.array([row["support"] for row in test["per_class"]])
    recall = np.array([row["recall"] for row in test["per_class"]])
    low, high = accuracy_interval(np.round(recall * sizes), sizes)
    moment = datetime.datetime.fromtimestamp(file.stat().st_mtime, tz=datetime.UTC)
    shots = data.get("shots")
    # Without the sizes of the splits and the number of shots, which concern training only.
    title = data["description"].rsplit(", ", 1)[0].removesuffix(f", {shots} a class")
    return LeaderboardRow(
        group=(data["split_protocol"], title.removesuffix(f", {shots} per class"), test["n"]),
        run=str(file.parent.relative_to(directory)),
        accuracy=test["accuracy"],
        low=low,
        high=high,
        f1_macro=test["f1_macro"],
        model=Path(model["model_id"]).name,
        parameters=model.get("parameters"),
        shots=shots,
        seed=training.get("seed"),
        finished=metrics.get("finished", f"{moment:%Y-%m-%d}")[:10],
    )


def format_leaderboard(
    rows: list[LeaderboardRow], left_out: list[str], heading: str, tabulate: Tabulate
) -> str:
    """Return a table for each test set as text: to print, or for a Markdown file.

    Args:
        rows: Ranked.
        left_out: Metrics files without test figures.
        heading: What a heading starts with.
        tabulate: Returns the lines of a table.
    """
    lines: list[str] = []
    for (_, data, n), group in itertools.groupby(rows, key=lambda row: row.group):
        table = tabulate([COLUMNS, *map(_list_cells, group)])
        lines += [f"{heading}{data}, {n} test images", "", *table, ""]
    if left_out:
        lines.append(f"Without test figures: {', '.join(left_out)}.")
    lines.append("To test whether two runs differ, use --compare.")
    return escape_unprintable("\n".join(lines), keep="\n")


def _list_cells(row: LeaderboardRow) -> list[str]:
    return [
        str(row.rank),
        row.run,
        f"{100 * row.accuracy:.2f} %",
        f"{100 * row.low:.1f} to {100 * row.high:.1f}",
        f"{100 * row.f1_macro:.2f} %",
        row.model,
        "" if row.parameters is None else f"{row.parameters / 1e6:.1f} M",
        "all" if row.shots is None else str(row.shots),
        "" if row.seed is None else str(row.seed),
        row.finished,
    ]
