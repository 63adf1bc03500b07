"""What a fit of many heads found: the table of settings, the winner, and k-NN beside it."""

import csv
import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np

from siglip_flowers.base.files import atomic_path
from siglip_flowers.metrics.neighbors import NEIGHBORS, vote_neighbors
from siglip_flowers.probe.features import SplitFeatures
from siglip_flowers.probe.trainer import ProbeSetting, ProbeTrainer

GRID_COLUMNS = (
    *("pooling", "learning_rate", "weight_decay", "strength", "best_step", "best_epoch"),
    *("validation_accuracy", "validation_loss"),
)

logger = logging.getLogger(__name__)


def tabulate_settings(trainer: ProbeTrainer) -> list[dict[str, Any]]:
    """Return a row for each setting: what it is, and the validation figures of what was kept."""
    epochs = {entry["step"]: entry.get("epoch") for entry in trainer.state.log_history}
    rows = []
    for number, setting in enumerate(trainer.settings):
        step = int(trainer.grid.kept_step[number])
        figures = trainer.records[step]["validation"]
        rows.append(
            {
                **dataclasses.asdict(setting),
                "best_step": step,
                "best_epoch": epochs.get(step),
                "validation_accuracy": figures["accuracy"][number],
                "validation_loss": figures["loss"][number],
            }
        )
    return rows


def write_grid(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the settings as CSV."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, GRID_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def describe_winner(rows: list[dict[str, Any]], winner: int) -> str:
    """Return a line about the chosen setting."""
    row = rows[winner]
    names = ("pooling", "learning_rate", "weight_decay", "strength")
    shown = [f"{name} {row[name]}" for name in names if row[name] is not None]
    return (
        f"best of {len(rows)} on validation: {', '.join(shown)}; "
        f"accuracy {row['validation_accuracy']:.2%}, loss {row['validation_loss']:.3f}"
    )


def warn_at_edge(settings: list[ProbeSetting], winner: int) -> None:
    """Warn where a better setting may lie beyond those that were tried."""
    for name, option in (
        ("learning_rate", "the grid of --probe_learning_rates; add some beyond it"),
        ("strength", "the strengths of the penalty; --probe_solver adamw may do better"),
    ):
        pooling, chosen = settings[winner].pooling, getattr(settings[winner], name)
        values = {getattr(one, name) for one in settings if one.pooling == pooling} - {None}
        if len(values) > 1 and chosen in (min(values), max(values)):
            logger.warning("The best %s, %g, lies on the edge of %s.", name, chosen, option)


def measure_neighbors(
    features: SplitFeatures, pooling: str, num_classes: int, trainer: ProbeTrainer
) -> dict[str, Any]:
    """Return the accuracy of a vote of the nearest training images, as a sanity figure."""
    train, labels = features.get("train", pooling), features.labels
    figures: dict[str, Any] = {
        "neighbors": min(NEIGHBORS, len(train)),
        "pooling": pooling,
    }
    for split in ("validation", "test"):
        votes = vote_neighbors(
            train,
            labels["train"],
            features.get(split, pooling),
            num_classes,
            device=trainer.args.device,
        )
        figures[f"{split}_accuracy"] = float(np.mean(votes.argmax(axis=1) == labels[split]))
    return figures
