"""What the finished runs show: figures of every arm and regime, and differences to the baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from siglip_flowers.base.errors import RunError
from siglip_flowers.experiment.curves import loss_rise, overfitting_gap, steadiness
from siglip_flowers.experiment.plan import (
    PREDICTIONS_FILE,
    Run,
    choose_learning_rate,
    plan_runs,
    read_history,
    read_metrics,
)
from siglip_flowers.experiment.settings import ExperimentSettings
from siglip_flowers.metrics.statistics import (
    Interval,
    PairedDifference,
    holm,
    is_shown,
    mean_interval,
    paired_bootstrap,
)

# The measures of a run that get a mean and an interval over seeds.
MEASURES = (
    "test_accuracy",
    "test_f1",
    "validation_accuracy",
    "train_accuracy",
    "overfitting_gap",
    "loss_rise",
    "steadiness",
)


@dataclass(frozen=True)
class RunFigures:
    """One run as the analysis sees it.

    Attributes:
        seed: The run's seed.
        values: One number for each of ``MEASURES``.
        start_accuracy: Validation accuracy before the first step; None where there is none.
        image_ids: The N test images, sorted.
        correct: (N,) bool, in the order of ``image_ids``.
        history: The rows of the curve.
    """

    seed: int
    values: dict[str, float]
    start_accuracy: float | None
    image_ids: tuple[str, ...]
    correct: NDArray[np.bool_]
    history: list[dict[str, float | None]]


@dataclass(frozen=True)
class Cell:
    """One arm in one regime: its rate, its runs by seed, and each measure over the seeds."""

    learning_rate: float
    runs: tuple[RunFigures, ...]
    over_seeds: dict[str, Interval]


@dataclass(frozen=True)
class Comparison:
    """One arm minus the baseline in one regime.

    Attributes:
        accuracy: Test accuracy, bootstrapped over images and seeds.
        over_seeds: Student's t interval of the same difference, one value a seed.
        corrected_p: The bootstrap's p after Holm, over all comparisons of the experiment.
        shown: Whether a difference in accuracy may be claimed.
        steadiness: Interval of the difference in steadiness, one value a seed.
    """

    accuracy: PairedDifference
    over_seeds: Interval
    corrected_p: float
    shown: bool
    steadiness: Interval


# By regime, then by arm.
Cells = dict[str, dict[str, Cell]]
Comparisons = dict[str, dict[str, Comparison]]


def analyze(settings: ExperimentSettings) -> tuple[Cells, Comparisons]:
    """Read every finished run of the experiment and compare the arms.

    Raises:
        RunError: A run is missing or its files do not fit to those of the others.
    """
    cells: Cells = {regime: {} for regime in settings.regimes}
    for arm in settings.arms:
        rate = choose_learning_rate(settings, arm)
        if rate is None:
            raise RunError(f"A trial of the arm {arm!r} is missing; repeat the command.")
        runs = plan_runs(settings, arm, rate)
        for regime in settings.regimes:
            figures = [read_run(settings, run) for run in runs if run.regime == regime]
            cells[regime][arm] = summarize(rate, figures)
    return cells, compare(cells, settings.baseline)


def read_run(settings: ExperimentSettings, run: Run) -> RunFigures:
    """Read the figures of one finished run."""
    path = run.directory(settings) / PREDICTIONS_FILE
    try:
        table = pyarrow.parquet.read_table(path, columns=["image_id", "correct"])
        metrics, history = read_metrics(settings, run), read_history(settings, run)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise RunError(
            f"The files of the run {run} cannot be read ({error}); delete "
            f"{run.directory(settings)} and repeat the command."
        ) from error
    ids = np.asarray(table["image_id"].to_pylist(), dtype=str)
    order = np.argsort(ids, kind="stable")
    return RunFigures(
        seed=run.seed,
        values=measure_run(metrics, history),
        start_accuracy=None if metrics["start"] is None else metrics["start"]["accuracy"],
        image_ids=tuple(ids[order].tolist()),
        correct=table["correct"].to_numpy(zero_copy_only=False).astype(np.bool_)[order],
        history=history,
    )


def measure_run(
    metrics: Mapping[str, Any], history: Sequence[Mapping[str, float | None]]
) -> dict[str, float]:
    """Return the values of ``MEASURES`` for a run.

    The curve counts from the first evaluation after a step: only some arms have one before it,
    and curves of different lengths are not comparable in steadiness.
    """
    splits = metrics["splits"]
    losses = [
        row["validation_nll"]
        for row in history
        if row["validation_nll"] is not None and (row["step"] or 0) > 0
    ]
    train, validation = splits["train"]["accuracy"], splits["validation"]["accuracy"]
    return {
        "test_accuracy": splits["test"]["accuracy"],
        "test_f1": splits["test"]["f1_macro"],
        "validation_accuracy": validation,
        "train_accuracy": train,
        "overfitting_gap": overfitting_gap(train, validation),
        "loss_rise": loss_rise(losses),
        "steadiness": steadiness(losses, unit="loss"),
    }


def summarize(learning_rate: float, runs: Sequence[RunFigures]) -> Cell:
    """Put the runs of an arm in a regime together."""
    over_seeds = {name: _interval([run.values[name] for run in runs]) for name in MEASURES}
    return Cell(learning_rate, tuple(runs), over_seeds)


def compare(cells: Cells, baseline: str) -> Comparisons:
    """Compare every other arm to the baseline, in every regime, paired by seed and image.

    Raises:
        RunError: Runs that were not tested on the same images.
    """
    pairs = [
        (regime, arm, cell, row[baseline])
        for regime, row in cells.items()
        for arm, cell in row.items()
        if arm != baseline
    ]
    differences = []
    for regime, arm, cell, other in pairs:
        ids = {run.image_ids for run in (*cell.runs, *other.runs)}
        if len(ids) > 1 or [run.seed for run in cell.runs] != [run.seed for run in other.runs]:
            raise RunError(
                f"The arm {arm!r} and the baseline were tested on different images or seeds in "
                f"the regime {regime!r}; start the experiment anew in another output_dir."
            )
        differences.append(paired_bootstrap(_stack(cell), _stack(other)))
    corrected = holm([difference.p_value for difference in differences])
    comparisons: Comparisons = {regime: {} for regime in cells}
    for (regime, arm, cell, other), difference, p in zip(
        pairs, differences, corrected.tolist(), strict=True
    ):
        over_seeds = mean_interval(difference.seed_differences)
        comparisons[regime][arm] = Comparison(
            accuracy=difference,
            over_seeds=over_seeds,
            corrected_p=p,
            shown=is_shown(difference, p, over_seeds=over_seeds),
            steadiness=_interval(
                [
                    a.values["steadiness"] - b.values["steadiness"]
                    for a, b in zip(cell.runs, other.runs, strict=True)
                ]
            ),
        )
    return comparisons


def _stack(cell: Cell) -> NDArray[np.bool_]:
    return np.stack([run.correct for run in cell.runs])


def _interval(values: list[float]) -> Interval:
    # A curve of fewer than four evaluations has no steadiness.
    if not np.isfinite(values).all():
        return Interval(np.nan, np.nan, np.nan, np.nan, len(values))
    return mean_interval(values)
