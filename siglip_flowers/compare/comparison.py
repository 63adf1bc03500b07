"""Compare runs that classified the same images with the first of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from siglip_flowers.compare.runs import RunPredictions
from siglip_flowers.metrics.statistics import (
    McNemarResult,
    PairedDifference,
    conclude,
    holm,
    mcnemar,
    paired_bootstrap,
    wilson_interval,
)

_CLASS_RESAMPLES = 2000


@dataclass(frozen=True)
class ClassDifference:
    """One class: its images, accuracies, their paired difference, and McNemar's exact test.

    ``corrected_p`` is after Holm over the classes. ``only_first`` and ``only_other`` count the
    images that one of the two alone gets right.
    """

    name: str
    support: int
    first_accuracy: float
    accuracy: float
    difference: float
    low: float
    high: float
    only_first: int
    only_other: int
    p_value: float
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
    """Several runs on N images; ``accuracies`` are (value, low, high) with Wilson's interval."""

    runs: list[str]
    paths: list[str]
    split: str
    protocol: str
    n: int
    accuracies: list[tuple[float, float, float]]
    differences: list[RunDifference]
    images: list[DifferingImage]


def compare_runs(
    runs: Sequence[RunPredictions], resamples: int = 10_000, seed: int = 0
) -> RunComparison:
    """Compare runs with the first of them, image by image.

    Args:
        runs: Two or more, with the images in one order, as ``read_runs`` gives them.
        resamples: Of the paired bootstrap of accuracy differences.
        seed: Of the bootstrap.
    """
    first, others = runs[0], runs[1:]
    tests = [mcnemar(run.correct, first.correct) for run in others]
    corrected = holm([test.p_value for test in tests])
    differences = []
    for run, test, p in zip(others, tests, corrected.tolist(), strict=True):
        accuracy = paired_bootstrap(run.correct[None], first.correct[None], resamples, seed=seed)
        measure = f"accuracy on {len(first.ids)} images"
        conclusion = conclude(accuracy, run.name, first.name, measure, corrected_p=p)
        per_class = _compare_classes(first, run, seed)
        differences.append(RunDifference(run.name, accuracy, test, p, conclusion, per_class))
    return RunComparison(
        runs=[run.name for run in runs],
        paths=[str(run.path) for run in runs],
        split=first.split,
        protocol=first.protocol,
        n=len(first.ids),
        accuracies=[_measure(run.correct) for run in runs],
        differences=differences,
        images=_find_differing(runs),
    )


def _measure(correct: np.ndarray) -> tuple[float, float, float]:
    right, n = int(correct.sum()), len(correct)
    return (right / n, *wilson_interval(right, n))


def _compare_classes(
    first: RunPredictions, other: RunPredictions, seed: int
) -> list[ClassDifference]:
    """Compare class by class, the largest difference first."""
    names = sorted(set(first.true.tolist()))
    pairs = [
        (other.correct[first.true == name], first.correct[first.true == name]) for name in names
    ]
    tests = [mcnemar(mine, theirs) for mine, theirs in pairs]
    corrected = holm([test.p_value for test in tests]).tolist()
    found = []
    for name, (mine, theirs), test, p in zip(names, pairs, tests, corrected, strict=True):
        difference = paired_bootstrap(mine[None], theirs[None], _CLASS_RESAMPLES, seed=seed)
        found.append(
            ClassDifference(
                name=name,
                support=len(mine),
                first_accuracy=float(theirs.mean()),
                accuracy=float(mine.mean()),
                difference=difference.difference,
                low=difference.low,
                high=difference.high,
                only_first=test.c,
                only_other=test.b,
                p_value=test.p_value,
                corrected_p=p,
            )
        )
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
