"""Rank all finished runs below a directory, for each test set and split protocol."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import METRICS_FILE
from siglip_flowers.base.text import align_columns, escape_unprintable
from siglip_flowers.compare.comparison import read_metrics
from siglip_flowers.metrics.bootstrap import accuracy_interval

COLUMNS = [
    *("rank", "run", "test accuracy", "95 %", "F1 (macro)"),
    *("model", "parameters", "shots", "seed", "finished"),
]


@dataclass(frozen=True)
class LeaderboardRow:
    """One run: the accuracy on its test split with its interval, and what else the table shows.

    Runs are ranked in one ``group``: (split protocol, data, number of test images).
    """

    group: tuple[str, str, int]
    run: str
    accuracy: float
    low: float
    high: float
    facts: tuple[str, ...]


def rank_runs(directory: Path) -> list[LeaderboardRow]:
    """Return the runs by group, the best first.

    Raises:
        InputError: No such directory, or no run in it.
    """
    if not directory.is_dir():
        raise InputError(f"--leaderboard {directory} is no directory. Name one that holds runs.")
    found: list[LeaderboardRow] = []
    for file in sorted(directory.rglob(METRICS_FILE)):
        try:
            found.append(_read_row(file, str(file.parent.relative_to(directory))))
        except (KeyError, TypeError):
            # Reports and experiments have files of this name, too.
            continue
    if not found:
        raise InputError(
            f"There is no finished run with test figures below {directory}. Name another directory."
        )
    return sorted(found, key=lambda row: (row.group, -row.accuracy))


def _read_row(file: Path, run: str) -> LeaderboardRow:
    metrics = read_metrics(file)
    data, model, test = metrics["data"], metrics["model"], metrics["splits"]["test"]
    sizes = np.array([row["support"] for row in test["per_class"]])
    recall = np.array([row["recall"] for row in test["per_class"]])
    low, high = accuracy_interval(np.round(recall * sizes), sizes)
    shots = data["shots"]
    # Without the sizes of the splits and the number of shots, which concern training only.
    title = data["description"].rsplit(", ", 1)[0].removesuffix(f", {shots} per class")
    facts = (
        f"{100 * test['f1_macro']:.2f} %",
        Path(model["model_id"]).name,
        f"{model['parameters'] / 1e6:.1f} M",
        "all" if shots is None else str(shots),
        str(metrics["training"]["seed"]),
        metrics["finished"][:10],
    )
    group = (data["split_protocol"], title, test["n"])
    return LeaderboardRow(group, run, test["accuracy"], low, high, facts)


def format_leaderboard(rows: list[LeaderboardRow]) -> str:
    """Return a table for each group; runs of equal accuracy share a rank."""
    lines: list[str] = []
    for (_, data, n), group in itertools.groupby(rows, key=lambda row: row.group):
        runs = list(group)
        accuracies = [row.accuracy for row in runs]
        table = [
            [
                str(1 + accuracies.index(row.accuracy)),
                row.run,
                f"{100 * row.accuracy:.2f} %",
                f"{100 * row.low:.1f} to {100 * row.high:.1f}",
                *row.facts,
            ]
            for row in runs
        ]
        lines += [f"{data}, {n} test images", "", align_columns([COLUMNS, *table]), ""]
    lines.append("To test whether two runs differ, use --compare.")
    return escape_unprintable("\n".join(lines), keep="\n")
