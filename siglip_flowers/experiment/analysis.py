"""What the finished runs show: figures of every arm and regime, and differences to the baseline."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from siglip_flowers.base.errors import RunError
from siglip_flowers.experiment.options import ExperimentArguments
from siglip_flowers.experiment.runs import PREDICTIONS_FILE, Run, choose_learning_rate, list_runs
from siglip_flowers.experiment.statistics import (
    CLAIMED_GAIN,
    Finding,
    assess_accuracy,
    assess_steadiness,
    loss_rise,
    simulate_power,
    steadiness,
)
from siglip_flowers.metrics.statistics import (
    Interval,
    crossed_bootstrap,
    holm,
    mean_interval,
    paired_bootstrap,
)


@dataclass(frozen=True)
class RunFigures:
    """One run as the analysis sees it.

    Attributes:
        seed: The run's seed.
        values: One number for each measure.
        image_ids: The N test images, sorted.
        correct: (N,) bool, in the order of ``image_ids``.
        history: The evaluations of the run, a column per measure.
    """

    seed: int
    values: dict[str, float]
    image_ids: tuple[str, ...]
    correct: NDArray[np.bool_]
    history: NDArray[Any]


@dataclass(frozen=True)
class Cell:
    """One arm in one regime: its rate, its runs by seed, and each measure over the seeds."""

    learning_rate: float
    runs: tuple[RunFigures, ...]
    over_seeds: dict[str, Interval]

    def list_values(self, measure: str) -> list[float]:
        """Return a measure of each run."""
        return [run.values[measure] for run in self.runs]

    def stack_correct(self) -> NDArray[np.bool_]:
        """Return whether each run is right on each test image: (S, N)."""
        return np.stack([run.correct for run in self.runs])


@dataclass(frozen=True)
class Comparison:
    """One arm minus the baseline in one regime."""

    accuracy: Finding
    seed_differences: tuple[float, ...]
    steadiness: Finding


# By regime, then by arm.
Cells = dict[str, dict[str, Cell]]
Comparisons = dict[str, dict[str, Comparison]]


@dataclass(frozen=True)
class Analysis:
    """What an experiment found.

    Attributes:
        cells: Figures by regime and arm.
        comparisons: Differences to the baseline by regime and arm.
        contrasts: Contrasts of arms in the claim's regime: one family of tests, corrected (Holm).
        power: How often the rule would show the claimed gain at the spread of these runs.
    """

    cells: Cells
    comparisons: Comparisons
    contrasts: dict[str, Finding]
    power: float


def analyze(options: ExperimentArguments) -> Analysis:
    """Read every finished run of the experiment and compare the arms.

    Raises:
        RunError: A run is missing or its files do not match those of the others.
    """
    cells: Cells = {regime: {} for regime in options.regimes}
    for arm in options.arms:
        rate = choose_learning_rate(options, arm)
        if rate is None:
            raise RunError(f"A trial of the arm {arm!r} is missing; repeat the command.")
        figures = [(run.regime, read_run(options, run)) for run in list_runs(options, arm, rate)]
        for regime, row in cells.items():
            runs = tuple(found for where, found in figures if where == regime)
            over_seeds = {
                name: summarize([run.values[name] for run in runs]) for name in runs[0].values
            }
            row[arm] = Cell(rate, runs, over_seeds)
    comparisons = {
        regime: {
            arm: compare(arm, regime, cell, row[options.baseline])
            for arm, cell in row.items()
            if arm != options.baseline
        }
        for regime, row in cells.items()
    }
    row = cells[options.claim_regime]
    claim = row[options.siglip_arm], row[options.baseline]
    return Analysis(cells, comparisons, assess_contrasts(options, row), estimate_power(*claim))


def read_run(options: ExperimentArguments, run: Run) -> RunFigures:
    """Read the figures of one finished run."""
    path = run.directory(options) / PREDICTIONS_FILE
    try:
        table = pyarrow.parquet.read_table(path, columns=["image_id", "correct"])
        metrics, history = run.read_metrics(options), run.read_history(options)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise RunError(
            f"The files of the run {run} cannot be read ({error}). Delete "
            f"{run.directory(options)} and repeat the command."
        ) from error
    ids = np.asarray(table["image_id"].to_pylist(), dtype=str)
    order = np.argsort(ids, kind="stable")
    history = history[np.isfinite(history["validation_nll"])]
    return RunFigures(
        seed=run.seed,
        values=measure_run(metrics["splits"], history, options.steady_part),
        image_ids=tuple(ids[order].tolist()),
        correct=table["correct"].to_numpy(zero_copy_only=False).astype(np.bool_)[order],
        history=history,
    )


def measure_run(
    splits: dict[str, dict[str, Any]], history: NDArray[Any], steady_part: Sequence[float]
) -> dict[str, float]:
    """Return the measures of a run.

    The curve counts from the first evaluation after a step: only some arms have one before it,
    and curves of different lengths are not comparable in steadiness.

    Args:
        splits: Metrics of each split.
        history: The evaluations of the run.
        steady_part: Shares of the training between which steadiness is measured.
    """
    curve = history[history["step"] > 0]
    first, last = (share * curve["epoch"].max(initial=0.0) for share in steady_part)
    steady = curve[(curve["epoch"] >= first) & (curve["epoch"] <= last)]
    return {
        "test_accuracy": splits["test"]["accuracy"],
        "test_macro_accuracy": splits["test"]["recall_macro"],
        "validation_accuracy": splits["validation"]["accuracy"],
        "train_accuracy": splits["train"]["accuracy"],
        "gap": splits["train"]["recall_macro"] - splits["validation"]["recall_macro"],
        "loss_rise": loss_rise(curve["validation_nll"]),
        "steadiness": steadiness(steady["validation_nll"]),
    }


def compare(arm: str, regime: str, cell: Cell, baseline: Cell) -> Comparison:
    """Compare an arm to the baseline, paired by seed and image.

    Raises:
        RunError: Runs that were not tested on the same images.
    """
    if len({run.image_ids for run in (*cell.runs, *baseline.runs)}) > 1:
        raise RunError(
            f"The arm {arm!r} and the baseline were tested on different images in the regime "
            f"{regime!r}. Repeat the experiment in another --output_dir."
        )
    difference = paired_bootstrap(cell.stack_correct(), baseline.stack_correct())
    return Comparison(
        accuracy=assess_accuracy(difference),
        seed_differences=difference.seed_differences,
        steadiness=assess_steadiness(
            cell.list_values("steadiness"), baseline.list_values("steadiness")
        ),
    )


def assess_contrasts(options: ExperimentArguments, row: dict[str, Cell]) -> dict[str, Finding]:
    """Test weighted sums of the arms' accuracies as one family."""
    differences = [
        crossed_bootstrap(
            np.sum([weight * row[arm].stack_correct() for arm, weight in weights.items()], axis=0)
        )
        for weights in options.contrasts.values()
    ]
    corrected = holm([difference.p_value for difference in differences]).tolist()
    # No size is claimed for them, so that they are shown, the opposite, or not shown.
    return {
        name: assess_accuracy(dataclasses.replace(difference, p_value=p), claimed=-np.inf)
        for name, difference, p in zip(options.contrasts, differences, corrected, strict=True)
    }


def estimate_power(siglip: Cell, baseline: Cell) -> float:
    """Simulate the power for the claimed gain at the spread of the runs; one seed shows nothing."""
    arms = [cell.over_seeds["test_accuracy"] for cell in (siglip, baseline)]
    if arms[1].n == 1:
        return 0.0
    spread = float(np.mean([arm.std**2 for arm in arms])) ** 0.5
    images = len(baseline.runs[0].image_ids)
    return simulate_power(CLAIMED_GAIN, spread, arms[1].mean, arms[1].n, images)


def summarize(values: list[float]) -> Interval:
    """Return the mean and interval over seeds; all nan if a value is."""
    if not np.isfinite(values).all():
        return Interval(np.nan, np.nan, np.nan, np.nan, len(values))
    return mean_interval(values)
