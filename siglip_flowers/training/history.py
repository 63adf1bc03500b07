"""The curve of a run, one row a step at which something was logged."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siglip_flowers.base.files import atomic_path
from siglip_flowers.evaluation.predict import SplitResult

COLUMNS = (
    "step",
    "epoch",
    "learning_rate",
    "grad_norm",
    "loss",
    "accuracy",
    "train_loss",
    "train_nll",
    "train_accuracy",
    "validation_loss",
    "validation_nll",
    "validation_accuracy",
    "validation_top5_accuracy",
    "validation_precision_macro",
    "validation_recall_macro",
    "validation_f1_macro",
)


def build_history(
    log_history: list[dict[str, Any]], start: dict[str, float] | None = None
) -> list[dict[str, float | None]]:
    """Merge the Trainer's log entries to one row a step, with the columns of ``COLUMNS``.

    ``loss`` and ``accuracy`` are means over the (augmented) training batches since the last row;
    ``train_*`` and ``validation_*`` are measured on unaugmented images. ``start`` are the
    validation metrics before the first step, where the model classified already: row 0.
    """
    rows: dict[int, dict[str, float | None]] = {}
    if start is not None:
        values = {f"validation_{key}": value for key, value in start.items()}
        rows[0] = {key: values.get(key) for key in COLUMNS} | {"step": 0, "epoch": 0.0}
    for entry in log_history:
        if "train_runtime" in entry:
            # The Trainer's closing summary has a train_loss of another meaning.
            continue
        values = {key.removeprefix("eval_"): value for key, value in entry.items()}
        row = rows.setdefault(int(entry["step"]), dict.fromkeys(COLUMNS))
        row.update({key: values[key] for key in COLUMNS if values.get(key) is not None})
    return [rows[step] for step in sorted(rows)]


def list_final_point(results: Mapping[str, SplitResult]) -> list[dict[str, Any]]:
    """Return a log with a single entry, for a model fitted in one go: its final figures."""
    figures = {
        f"eval_{split}_{name}": value
        for split in ("train", "validation")
        for name, value in results[split].metrics.items()
    }
    return [{"step": 0, "epoch": 0.0, **figures}]


def write_history(path: Path, history: list[dict[str, float | None]]) -> None:
    """Write the rows as CSV; a column that was not measured at a step is empty."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(history)
