"""Read the predictions of finished runs, and compare the runs with the first of them."""

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
from siglip_flowers.base.files import METRICS_FILE
from siglip_flowers.metrics.bootstrap import accuracy_interval
from siglip_flowers.metrics.statistics import (
    McNemarResult,
    PairedDifference,
    conclude,
    holm,
    mcnemar,
    paired_bootstrap,
)

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


@dataclass(frozen=True)
class ClassDifference:
    """One class: its images, and the accuracies of the first run and of another one.

    ``only_first`` and ``only_other`` count the images that one of the two alone gets right;
    ``corrected_p`` is that of McNemar's test after Holm over the classes.
    """

    name: str
    support: int
    first_accuracy: float
    accuracy: float
    difference: float
    only_first: int
    only_other: int
    corrected_p: float


@dataclass(frozen=True)
class RunDifference:
    """One run minus the first; ``corrected_p`` is McNemar's p-value after Holm over the runs."""

    name: str
    accuracy: PairedDifference
    mcnemar: McNemarResult
    corrected_p: float
    conclusion: str
    per_class: list[ClassDifference]


@dataclass(frozen=True)
class DifferingImage:
    """An image on which the runs disagree: the prediction of each run, and whether it is right."""

    id: str
    true: str
    predicted: list[str]
    confidence: list[float]
    correct: list[bool]


@dataclass(frozen=True)
class RunComparison:
    """Several runs on N images.

    ``accuracies`` are (value, low, high) with the interval that the report has as well.
    """

    runs: list[str]
    paths: list[str]
    split: str
    protocol: str
    n: int
    accuracies: list[tuple[float, float, float]]
    differences: list[RunDifference]
    images: list[DifferingImage]


def compare_runs(runs: Sequence[RunPredictions]) -> RunComparison:
    """Compare two or more runs, as :func:`read_runs` gives them, with the first, by image."""
    first, others = runs[0], runs[1:]
    tests = [mcnemar(run.correct, first.correct) for run in others]
    corrected = holm([test.p_value for test in tests])
    differences = []
    for run, test, p in zip(others, tests, corrected.tolist(), strict=True):
        accuracy = paired_bootstrap(run.correct[None], first.correct[None])
        measure = f"accuracy on {len(first.ids)} images"
        conclusion = conclude(accuracy, run.name, first.name, measure, corrected_p=p)
        per_class = _compare_classes(first, run)
        differences.append(RunDifference(run.name, accuracy, test, p, conclusion, per_class))
    return RunComparison(
        runs=[run.name for run in runs],
        paths=[str(run.path) for run in runs],
        split=first.split,
        protocol=first.protocol,
        n=len(first.ids),
        accuracies=[_measure(run) for run in runs],
        differences=differences,
        images=_find_differing(runs),
    )


def _measure(run: RunPredictions) -> tuple[float, float, float]:
    _, labels, sizes = np.unique(run.true, return_inverse=True, return_counts=True)
    low, high = accuracy_interval(np.bincount(labels, weights=run.correct), sizes)
    return float(run.correct.mean()), low, high


def _compare_classes(first: RunPredictions, other: RunPredictions) -> list[ClassDifference]:
    """Compare class by class, the largest difference first."""
    names = np.unique(first.true).tolist()
    pairs = [
        (other.correct[first.true == name], first.correct[first.true == name]) for name in names
    ]
    tests = [mcnemar(mine, theirs) for mine, theirs in pairs]
    corrected = holm([test.p_value for test in tests]).tolist()
    found = []
    for name, (mine, theirs), test, p in zip(names, pairs, tests, corrected, strict=True):
        before, after = float(theirs.mean()), float(mine.mean())
        counts = (test.c, test.b)
        found.append(ClassDifference(name, len(mine), before, after, after - before, *counts, p))
    return sorted(found, key=lambda each: (-abs(each.difference), -each.support, each.name))


def _find_differing(runs: Sequence[RunPredictions]) -> list[DifferingImage]:
    """Return images with different predictions: first those that some run gets right.

    Among those the most confident answers come first, since they tell most about the runs.
    """
    predicted = np.stack([run.predicted for run in runs])
    confidence = np.stack([run.confidence for run in runs])
    found = []
    for row in np.flatnonzero((predicted != predicted[0]).any(axis=0)):
        names, true = predicted[:, row].tolist(), str(runs[0].true[row])
        correct = [name == true for name in names]
        values = confidence[:, row].tolist()
        found.append(DifferingImage(runs[0].ids[row], true, names, values, correct))
    return sorted(found, key=lambda each: (not any(each.correct), -sum(each.confidence), each.id))
