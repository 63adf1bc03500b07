"""Rank all finished runs below a directory, for each test set and split protocol."""

import itertools
from pathlib import Path

import numpy as np

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import METRICS_FILE
from siglip_flowers.base.text import align_columns, escape_unprintable
from siglip_flowers.compare.comparison import read_metrics
from siglip_flowers.metrics.bootstrap import accuracy_interval

COLUMNS = [
    *("rank", "run", "test accuracy", "95%", "F1 (macro)"),
    *("model", "parameters", "shots", "seed", "finished"),
]


# (split protocol, data, number of test images, their classes), in which runs are ranked; accuracy;
# cells.
Row = tuple[tuple[str, str, int, str], float, list[str]]


def rank_runs(directory: Path) -> list[Row]:
    """Return the runs by group, the best first.

    Raises:
        InputError: No such directory, or no run in it.
    """
    if not directory.is_dir():
        raise InputError(
            f"--leaderboard {directory} is not a directory. Name one that contains runs."
        )
    found: list[Row] = []
    for file in sorted(directory.rglob(METRICS_FILE)):
        try:
            found.append(_read_row(file, str(file.parent.relative_to(directory))))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # Reports and experiments have files of this name, too.
            continue
    if not found:
        raise InputError(
            f"There is no finished run with test figures below {directory}. Name another directory."
        )
    return sorted(found, key=lambda row: (row[0], -row[1]))


def _read_row(file: Path, run: str) -> Row:
    metrics = read_metrics(file)
    data, model, test = metrics["data"], metrics["model"], metrics["splits"]["test"]
    sizes = np.array([row["support"] for row in test["per_class"]])
    recall = np.array([row["recall"] for row in test["per_class"]])
    low, high = accuracy_interval(np.round(recall * sizes), sizes)
    shots = data["shots"]
    # Without the sizes of the splits and the number of shots, which concern training only.
    title = data["description"].rsplit(", ", 1)[0].removesuffix(f", {shots} per class")
    cells = [
        run, f"{100 * test['accuracy']:.2f}%", f"{100 * low:.1f} to {100 * high:.1f}",
        f"{100 * test['f1_macro']:.2f}%", Path(model["model_id"]).name,
        f"{model['parameters'] / 1e6:.1f} M", "all" if shots is None else str(shots),
        str(metrics["training"]["seed"]), str(metrics["finished"])[:10],
    ]  # fmt: skip
    # Folders of the same name can hold other data.
    classes = str([(row["name"], row["support"]) for row in test["per_class"]])
    group = (str(data["split_protocol"]), title, int(test["n"]), classes)
    return group, float(test["accuracy"]), cells


def format_leaderboard(rows: list[Row]) -> str:
    """Return a table for each group; runs of equal accuracy share a rank."""
    lines: list[str] = []
    for (_, data, n, _), group in itertools.groupby(rows, key=lambda row: row[0]):
        runs = list(group)
        accuracies = [accuracy for _, accuracy, _ in runs]
        table = [[str(1 + accuracies.index(value)), *cells] for _, value, cells in runs]
        lines += [f"{data}, {n} test images", "", align_columns([COLUMNS, *table]), ""]
    lines.append("To test whether two runs differ, use --compare.")
    return escape_unprintable("\n".join(lines), keep="\n")
