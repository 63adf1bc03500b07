"""A ranking of all finished runs below a directory, one for each test set and split protocol."""

import datetime
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import write_text
from siglip_flowers.base.run_dir import REPORT_DIRS
from siglip_flowers.base.text import (
    align_columns,
    escape_unprintable,
    format_csv,
    format_markdown_table,
)
from siglip_flowers.compare.runs import METRICS_FILE, read_metrics
from siglip_flowers.metrics.statistics import wilson_interval

# Folders below the directory that runs are looked for in.
DEPTH = 3


@dataclass(frozen=True)
class LeaderboardRow:
    """One run's figures on its test split, with Wilson's interval of the accuracy."""

    protocol: str
    data: str
    n: int
    rank: int
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


def rank_runs(directory: Path) -> tuple[list[LeaderboardRow], list[str]]:
    """Return the ranked runs, and the metrics files that hold no test figures.

    Runs are ranked by test accuracy among those of one data source, protocol and test size only;
    equal ones share a rank.

    Raises:
        InputError: No such directory, or no run in it.
    """
    if not directory.is_dir():
        raise InputError(f"--leaderboard {directory} is no directory; name one that holds runs.")
    files = sorted(
        {file for depth in range(DEPTH + 1) for file in directory.glob("*/" * depth + METRICS_FILE)}
    )
    found, left_out = [], []
    for file in files:
        try:
            found.append(_read_row(file, directory))
        except (KeyError, TypeError, ValueError, AttributeError):
            # A report has metrics of its own, and is none of the runs.
            if file.parent.name not in REPORT_DIRS.values():
                left_out.append(str(file.relative_to(directory)))
    if not found:
        raise InputError(
            f"There is no finished run with test figures below {directory}; train one, or name "
            "another directory with --leaderboard."
        )
    found.sort(key=lambda row: (row["protocol"], row["data"], row["n"], -row["accuracy"]))
    ranked: list[LeaderboardRow] = []
    for row in found:
        group = [
            each for each in ranked if _name_group(each) == (row["protocol"], row["data"], row["n"])
        ]
        equal = group and group[-1].accuracy == row["accuracy"]
        ranked.append(LeaderboardRow(rank=group[-1].rank if equal else len(group) + 1, **row))
    return ranked, left_out


def _name_group(row: LeaderboardRow) -> tuple[str, str, int]:
    return row.protocol, row.data, row.n


def _read_row(file: Path, directory: Path) -> dict[str, Any]:
    metrics = read_metrics(file)
    data, model, training = metrics["data"], metrics["model"], metrics.get("training", {})
    test = metrics["splits"]["test"]
    n, accuracy = int(test["n"]), float(test["accuracy"])
    low, high = wilson_interval(round(n * accuracy), n)
    moment = datetime.datetime.fromtimestamp(file.stat().st_mtime, tz=datetime.UTC)
    shots, seed, parameters = data.get("shots"), training.get("seed"), model.get("parameters")
    # Up to the sizes of the splits, and without what is about training alone.
    title = str(data["description"]).rsplit(", ", 1)[0].removesuffix(f", {shots} a class")
    return {
        "protocol": str(data["split_protocol"]),
        "data": title,
        "n": n,
        "run": str(file.parent.relative_to(directory)),
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "f1_macro": float(test["f1_macro"]),
        "model": Path(str(model["model_id"])).name,
        "parameters": None if parameters is None else int(parameters),
        "shots": None if shots is None else int(shots),
        "seed": None if seed is None else int(seed),
        "finished": f"{moment:%Y-%m-%d}",
    }


def format_leaderboard(rows: list[LeaderboardRow], left_out: list[str]) -> str:
    """Return a table for each test set."""
    return _format(rows, left_out, lambda title: title, lambda lines: [align_columns(lines)])


def write_leaderboard(rows: list[LeaderboardRow], left_out: list[str], directory: Path) -> None:
    """Write ``leaderboard.md`` and ``leaderboard.csv``."""
    text = _format(rows, left_out, lambda title: f"## {title}", format_markdown_table)
    write_text(directory / "leaderboard.md", f"# Runs by test accuracy\n\n{text}\n")
    values = [asdict(row) for row in rows]
    table = [list(values[0]), *(list(row.values()) for row in values)]
    empty = [["" if cell is None else cell for cell in row] for row in table]
    write_text(directory / "leaderboard.csv", format_csv(empty))


def _format(rows: list[LeaderboardRow], left_out: list[str], title: Any, tabulate: Any) -> str:
    lines: list[str] = []
    for group in dict.fromkeys(map(_name_group, rows)):
        _, data, n = group
        table = [
            ["rank", "run", "test accuracy", "95 %", "F1 (macro)", "model", "parameters", "shots"]
        ]
        table[0] += ["seed", "finished"]
        table += [_list_cells(row) for row in rows if _name_group(row) == group]
        lines += [title(f"{data}, {n} test images"), "", *tabulate(table), ""]
    if left_out:
        lines.append(f"Without test figures: {', '.join(left_out)}.")
    lines.append(
        "Intervals are Wilson's, 95 %; whether two runs differ is told by --compare, which is "
        "paired."
    )
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
