"""Read the predictions of finished runs."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.run_dir import METRICS_FILE

_COLUMNS = ["image_id", "label_name", "top_names", "top_probabilities"]


@dataclass(frozen=True)
class RunPredictions:
    """The predictions of one run for a split of N images.

    Attributes:
        name: Of the run, unique among those that were read together.
        path: The predictions file.
        split: Name of the split, "" if the file does not say.
        protocol: How the data were split, "" if it is not known.
        ids: N image ids.
        true: (N,) names of classes.
        predicted: (N,) names of classes.
        confidence: (N,) probability of the predicted class.
    """

    name: str
    path: Path
    split: str
    protocol: str
    ids: list[str]
    true: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Which images are right: (N,) bool."""
        return np.asarray(self.true == self.predicted)


def read_runs(names: Sequence[str], split: str) -> list[RunPredictions]:
    """Read the predictions of several runs, in the order of the first one's images.

    Args:
        names: Directories with ``predictions_SPLIT.parquet``, or such files.
        split: The split.

    Raises:
        InputError: A run without predictions, a damaged file, or runs that differ in their split,
            images or labels.
    """
    paths = [_find_file(Path(name), split) for name in names]
    short = [path.parent.name for path in paths]
    unique = len(set(short)) == len(short)
    runs = [
        _read_run(path, brief if unique else str(path.parent))
        for path, brief in zip(paths, short, strict=True)
    ]
    return [runs[0], *(_align(run, runs[0]) for run in runs[1:])]


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the contents of a metrics file, empty if there is none that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _find_file(path: Path, split: str) -> Path:
    file = path / f"predictions_{split}.parquet" if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"{path} has no predictions_{split}.parquet. Name a finished run, or write the file "
            f"with 'eval.py --split {split} --output_dir {path}'."
        )
    return file


def _read_run(path: Path, name: str) -> RunPredictions:
    try:
        table = pyarrow.parquet.read_table(path, columns=_COLUMNS)
        rows = table.to_pydict()
        predicted = np.array([names[0] for names in rows["top_names"]])
        confidence = np.array([values[0] for values in rows["top_probabilities"]], dtype=float)
    except (OSError, ValueError, pyarrow.ArrowException, IndexError) as error:
        raise InputError(
            f"{path} holds no predictions ({error}). Write it again with 'eval.py --output_dir'."
        ) from error
    ids = rows["image_id"]
    if len(set(ids)) < len(ids):
        raise InputError(f"{path} lists an image twice. Write it again with 'eval.py'.")
    noted = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    split = noted.get("split", "")
    evaluated = read_metrics(path.with_name(f"metrics_{split or 'test'}.json"))
    data = read_metrics(path.with_name(METRICS_FILE)).get("data", {})
    protocol = evaluated.get("split_protocol") or data.get("split_protocol") or ""
    true = np.array(rows["label_name"])
    return RunPredictions(name, path, split, protocol, ids, true, predicted, confidence)


def _align(run: RunPredictions, first: RunPredictions) -> RunPredictions:
    """Return a run in the order of the first one's images."""
    for what in ("split", "protocol"):
        mine, theirs = getattr(run, what), getattr(first, what)
        if mine and theirs and mine != theirs:
            raise InputError(
                f"{run.name} has the {what} {mine!r} and {first.name} {theirs!r}. Evaluate both "
                "on the same split of the same data."
            )
    place = {name: number for number, name in enumerate(run.ids)}
    common = sum(name in place for name in first.ids)
    if not common == len(first.ids) == len(run.ids):
        raise InputError(
            f"{run.name} has {len(run.ids)} images and {first.name} {len(first.ids)}, "
            f"{common} of them the same. Evaluate both on the same split of the same data."
        )
    order = [place[name] for name in first.ids]
    aligned = dataclasses.replace(
        run,
        ids=first.ids,
        true=run.true[order],
        predicted=run.predicted[order],
        confidence=run.confidence[order],
    )
    for row in np.flatnonzero(aligned.true != first.true):
        raise InputError(
            f"The image {first.ids[row]} is labeled '{aligned.true[row]}' in {run.name} and "
            f"'{first.true[row]}' in {first.name}. Compare runs of one data set."
        )
    return aligned
