"""Runs that classified the same images, each compared with the first."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

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
    """An image that the runs do not all name alike: predictions by run, and who is right."""

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

    def to_json(self) -> dict[str, Any]:
        """Return everything as what JSON has."""
        return asdict(self)


def compare_runs(
    runs: Sequence[RunPredictions], resamples: int = 10_000, seed: int = 0
) -> RunComparison:
    """Compare runs with the first of them, image by image.

    Args:
        runs: Two or more, with the images in one order, as ``read_runs`` gives them.
        resamples: Of the paired bootstrap of accuracy differences.
        seed: Of its drawing.

    Raises:
        ValueError: Fewer than two runs.
    """
    if len(runs) < 2:
        raise ValueError(f"A comparison takes two runs or more, not {len(runs)}.")
    first, others = runs[0], runs[1:]
    correct = [run.correct for run in runs]
    tests = [mcnemar(each, correct[0]) for each in correct[1:]]
    corrected = holm([test.p_value for test in tests])
    differences = []
    for number, run in enumerate(others):
        right = correct[number + 1]
        accuracy = paired_bootstrap(right[None], correct[0][None], resamples, seed=seed)
        p = float(corrected[number])
        differences.append(
            RunDifference(
                name=run.name,
                accuracy=accuracy,
                mcnemar=tests[number],
                corrected_p=p,
                conclusion=conclude(
                    accuracy,
                    run.name,
                    first.name,
                    f"accuracy on {len(first.ids)} images",
                    corrected_p=p,
                ),
                per_class=_compare_classes(first.true, correct[0], right, seed),
            )
        )
    return RunComparison(
        runs=[run.name for run in runs],
        paths=[str(run.path) for run in runs],
        split=next((run.split for run in runs if run.split), ""),
        protocol=next((run.protocol for run in runs if run.protocol), ""),
        n=len(first.ids),
        accuracies=[_measure(each) for each in correct],
        differences=differences,
        images=_find_differing(runs),
    )


def _measure(correct: np.ndarray) -> tuple[float, float, float]:
    right, n = int(correct.sum()), len(correct)
    return (right / n, *wilson_interval(right, n))


def _compare_classes(
    true: Sequence[str], first: np.ndarray, other: np.ndarray, seed: int
) -> list[ClassDifference]:
    """Compare class by class, the largest difference first."""
    labels = np.array(true)
    names = sorted(set(true))
    chosen = [labels == name for name in names]
    tests = [mcnemar(other[rows], first[rows]) for rows in chosen]
    corrected = holm([test.p_value for test in tests])
    found = []
    for name, rows, test, p in zip(names, chosen, tests, corrected, strict=True):
        difference = paired_bootstrap(
            other[rows][None], first[rows][None], _CLASS_RESAMPLES, seed=seed
        )
        found.append(
            ClassDifference(
                name=name,
                support=int(rows.sum()),
                first_accuracy=float(first[rows].mean()),
                accuracy=float(other[rows].mean()),
                difference=difference.difference,
                low=difference.low,
                high=difference.high,
                only_first=test.c,
                only_other=test.b,
                p_value=test.p_value,
                corrected_p=float(p),
            )
        )
    return sorted(found, key=lambda each: (-abs(each.difference), -each.support, each.name))


def _find_differing(runs: Sequence[RunPredictions]) -> list[DifferingImage]:
    """Return images that are not named alike: first where some are right and others not.

    Among those the surest answers come first, since they tell most about the runs.
    """
    found = []
    for row, (image, true) in enumerate(zip(runs[0].ids, runs[0].true, strict=True)):
        predicted = [run.predicted[row] for run in runs]
        if len(set(predicted)) > 1:
            found.append(
                DifferingImage(
                    id=image,
                    true=true,
                    predicted=predicted,
                    confidence=[float(run.confidence[row]) for run in runs],
                    correct=[name == true for name in predicted],
                )
            )
    return sorted(found, key=lambda each: (not any(each.correct), -sum(each.confidence), each.id))
