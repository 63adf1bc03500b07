"""Predictions of finished runs, as their files hold them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from siglip_flowers.base.errors import InputError

METRICS_FILE = "metrics.json"
_COLUMNS = ("image_id", "label_name", "top_names", "top_probabilities")


@dataclass(frozen=True)
class RunPredictions:
    """What one run made of a split of N images.

    Attributes:
        name: Of the run, unique among those that were read together.
        path: The predictions file.
        split: Name of the split, "" where the file does not say.
        protocol: How the data were split, "" where it is not known.
        class_names: All classes, empty where they are not known.
        ids: N image ids.
        true: N names of classes.
        predicted: N names of classes.
        confidence: (N,) probability of the predicted class.
    """

    name: str
    path: Path
    split: str
    protocol: str
    class_names: tuple[str, ...]
    ids: list[str]
    true: list[str]
    predicted: list[str]
    confidence: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Which images are right: (N,) bool."""
        return np.array(
            [a == b for a, b in zip(self.true, self.predicted, strict=True)], dtype=bool
        )


def read_runs(names: Sequence[str], split: str) -> list[RunPredictions]:
    """Read the predictions of several runs, in the order of the first one's images.

    Args:
        names: Directories with ``predictions_SPLIT.parquet``, or such files.
        split: The split.

    Raises:
        InputError: A run without predictions, a damaged file, or runs that differ in their split,
            images, labels or classes.
    """
    paths = [_find_file(Path(name), split) for name in names]
    short = [path.parent.name for path in paths]
    unique = len(set(short)) == len(short) and all(short)
    runs = [
        _read_run(path, brief if unique else str(name).rstrip("/"))
        for path, brief, name in zip(paths, short, names, strict=True)
    ]
    return [runs[0], *(_align(run, runs[0]) for run in runs[1:])]


def _find_file(path: Path, split: str) -> Path:
    file = path / f"predictions_{split}.parquet" if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"The run {path} has no {file.name if path.is_dir() else 'such file'}; name a finished "
            f"run's directory, or write one with 'eval.py --split {split} --output_dir'."
        )
    return file


def _read_run(path: Path, name: str) -> RunPredictions:
    try:
        table = pyarrow.parquet.read_table(path, columns=list(_COLUMNS))
        rows = table.to_pydict()
        top = rows["top_names"]
        predicted = [str(names[0]) for names in top]
        confidence = np.array([float(values[0]) for values in rows["top_probabilities"]])
        ids = [str(each) for each in rows["image_id"]]
    except (OSError, pyarrow.ArrowException, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"The file {path} holds no predictions ({type(error).__name__}); write them again with "
            "'eval.py --output_dir'."
        ) from error
    if not ids or len(set(ids)) < len(ids):
        problem = "no image" if not ids else "an image twice"
        raise InputError(f"The file {path} names {problem}; write it again with 'eval.py'.")
    noted = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    split = noted.get("split", "")
    protocol, class_names = _read_facts(path.parent, split or "test")
    return RunPredictions(
        name=name,
        path=path,
        split=split,
        protocol=protocol,
        class_names=class_names,
        ids=ids,
        true=[str(each) for each in rows["label_name"]],
        predicted=predicted,
        confidence=confidence,
    )


def read_metrics(path: Path) -> dict[str, Any]:
    """Return a metrics file's mapping, empty where there is none or it holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _read_facts(directory: Path, split: str) -> tuple[str, tuple[str, ...]]:
    """Return protocol and class names, from the metrics of a training or of an evaluation."""
    trained = read_metrics(directory / METRICS_FILE)
    evaluated = read_metrics(directory / f"metrics_{split}.json")
    try:
        per_class = evaluated.get("per_class") or trained["splits"][split]["per_class"]
        names = tuple(str(row["name"]) for row in per_class)
    except (KeyError, TypeError):
        names = ()
    data = trained.get("data")
    protocol = evaluated.get("split_protocol") or (
        data.get("split_protocol") if isinstance(data, dict) else None
    )
    return str(protocol or ""), names


def _align(run: RunPredictions, first: RunPredictions) -> RunPredictions:
    """Return a run in the order of the first one's images."""
    for what, mine, theirs in (
        ("the split", run.split, first.split),
        ("the split protocol", run.protocol, first.protocol),
    ):
        if mine and theirs and mine != theirs:
            raise InputError(
                f"{run.name} was evaluated on {what} {mine!r} and {first.name} on {theirs!r}, so "
                "they cannot be compared; evaluate both alike."
            )
    place = {name: number for number, name in enumerate(run.ids)}
    common = sum(name in place for name in first.ids)
    if not common == len(first.ids) == len(run.ids):
        raise InputError(
            f"{run.name} was evaluated on {len(run.ids)} images and {first.name} on "
            f"{len(first.ids)}, {common} of them the same, so they cannot be compared; evaluate "
            "both on one split."
        )
    known, other_known = set(run.class_names), set(first.class_names)
    if known and other_known and known != other_known:
        odd = min(known ^ other_known)
        raise InputError(
            f"{run.name} and {first.name} do not know the same classes ({odd!r} for one), so they "
            "cannot be compared; compare runs of one data set."
        )
    order = [place[name] for name in first.ids]
    true = [run.true[number] for number in order]
    for image, one, other in zip(first.ids, true, first.true, strict=True):
        if one != other:
            raise InputError(
                f"The image {image} is labeled {one!r} in {run.name} and {other!r} in "
                f"{first.name}, so they cannot be compared; compare runs of one data set."
            )
    return RunPredictions(
        name=run.name,
        path=run.path,
        split=run.split,
        protocol=run.protocol,
        class_names=run.class_names,
        ids=list(first.ids),
        true=true,
        predicted=[run.predicted[number] for number in order],
        confidence=run.confidence[order],
    )
