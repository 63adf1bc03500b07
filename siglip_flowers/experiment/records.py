"""The record of a finished run: all that the analysis needs, in a file small enough to commit."""

import base64
import dataclasses
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siglip_flowers.base.files import read_json, reading, write_text
from siglip_flowers.evaluation.predict import SplitResult

# Columns of a curve: one row per evaluation.
CURVE = (
    *("step", "epoch", "train_nll", "train_accuracy", "validation_loss", "validation_nll"),
    *("validation_fitted_nll", "validation_accuracy"),
)
SCORED_EVALUATIONS = 3


@dataclass(frozen=True)
class Record:
    """What is kept of a run.

    Attributes:
        facts: Data, device, versions, seconds.
        curve: The columns of ``CURVE``.
        last: Figures of the last weights, as ``test_accuracy``.
        best: Those of the weights with the highest validation accuracy; empty in a run that
            chooses something.
        images: Digest of the ids and classes of the test images.
        predicted: The class of each test image in the order of the ids, packed.
        correct: Whether it is right, packed.
    """

    facts: dict[str, Any]
    curve: dict[str, list[float]]
    last: dict[str, float]
    best: dict[str, float] = field(default_factory=dict)
    images: str = ""
    predicted: str = ""
    correct: str = ""

    @property
    def score(self) -> float:
        """The mean validation accuracy of the last three evaluations."""
        return float(np.mean(self.curve["validation_accuracy"][-SCORED_EVALUATIONS:]))

    def unpack_correct(self) -> NDArray[np.bool_]:
        """Return whether each test image is right, in the order of the ids: (N,)."""
        return np.frombuffer(_unpack(self.correct), dtype=np.bool_)


def read_curve(log: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the evaluations in a Trainer's log by column."""
    rows: dict[int, dict[str, float]] = {}
    for entry in log:
        values = {key.removeprefix("eval_"): value for key, value in entry.items()}
        rows.setdefault(entry["step"], {}).update(values)
    evaluations = [rows[step] for step in sorted(rows) if "validation_accuracy" in rows[step]]
    return {name: [round(float(row[name]), 6) for row in evaluations] for name in CURVE}


def list_figures(results: Mapping[str, SplitResult]) -> dict[str, float]:
    """Return accuracy, class-balanced accuracy and NLL of each split."""
    names = {"accuracy": "accuracy", "recall_macro": "macro", "nll": "nll"}
    return {
        f"{split}_{short}": result.metrics[name]
        for split, result in results.items()
        for name, short in names.items()
    }


def pack_test(result: SplitResult) -> dict[str, str]:
    """Return the packed predictions for the test split, as fields of a record."""
    order = np.argsort(np.asarray(result.ids, dtype=str), kind="stable")
    predicted, labels = result.logits.argmax(axis=1)[order], result.labels[order]
    named = "\n".join(f"{result.ids[row]} {result.labels[row]}" for row in order)
    return {
        "images": hashlib.sha256(named.encode()).hexdigest(),
        "predicted": _pack(predicted.astype(np.uint16)),
        "correct": _pack(predicted == labels),
    }


def write_record(path: Path, record: Record) -> None:
    """Write a record, whole or not at all."""
    write_text(path, json.dumps(dataclasses.asdict(record), allow_nan=False) + "\n")


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        RunError: The file is damaged.
    """
    with reading(path, "Delete the record and repeat the command"):
        record = Record(**read_json(path))
        curve = np.array([record.curve[name] for name in CURVE], dtype=float)
        figures = [record.facts["seconds"], *record.last.values(), *record.best.values()]
        correct = record.unpack_correct() if record.correct else ()
        if not np.isfinite([*figures, *curve[:, -1], *correct]).all():
            raise ValueError("it has figures that are not finite")
    return record


def _pack(values: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()


def _unpack(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))
