"""The runs of an experiment: their folders, their options, and which are finished."""

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siglip_flowers.base.run_dir import CONFIG_FILE, METRICS_FILE, RUN_FILES
from siglip_flowers.config.parsing import parse_arguments
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.experiment.settings import (
    LIGHT_KINDS,
    ExperimentSettings,
    name_run,
    to_folder,
)
from siglip_flowers.training.build import RunArguments, check_arguments

HISTORY_FILE, PREDICTIONS_FILE, LOG_FILE = "history.csv", "predictions_test.parquet", "log.txt"
KEPT = (METRICS_FILE, CONFIG_FILE, HISTORY_FILE, PREDICTIONS_FILE)


@dataclass(frozen=True)
class Run:
    """One training run."""

    regime: str
    arm: str
    learning_rate: float
    seed: int

    def __str__(self) -> str:
        return (
            f"{self.arm} | {self.regime} | learning rate {self.learning_rate:g} | seed {self.seed}"
        )

    def directory(self, settings: ExperimentSettings) -> Path:
        """Return where the run is written."""
        return (
            settings.directory
            / "runs"
            / to_folder(self.regime)
            / to_folder(self.arm)
            / f"lr{self.learning_rate:g}_seed{self.seed}"
        )


def plan_trials(settings: ExperimentSettings, arm: str) -> list[Run]:
    """Return the runs that decide an arm's learning rate."""
    return [
        Run(settings.tuning_regime, arm, rate, settings.seeds[0])
        for rate in settings.learning_rates
    ]


def plan_runs(settings: ExperimentSettings, arm: str, learning_rate: float) -> list[Run]:
    """Return the runs that an arm is compared by; one of them is its winning trial."""
    return [
        Run(regime, arm, learning_rate, seed)
        for regime in settings.regimes
        for seed in settings.seeds
    ]


def count_runs(settings: ExperimentSettings) -> int:
    """Count the runs of the whole experiment, trials among them."""
    compared = len(settings.regimes) * len(settings.seeds)
    return len(settings.arms) * (compared + len(settings.learning_rates) - 1)


def run_options(settings: ExperimentSettings, run: Run) -> dict[str, Any]:
    """Return the options of ``train.py`` for a run.

    The seed decides the few-shot images, the initial weights and the order of the images, so
    that the runs of one seed are a pair whatever the arm.
    """
    return {
        "disable_tqdm": True,
        **settings.base,
        **settings.regimes[run.regime],
        **settings.arms[run.arm],
        "learning_rate": run.learning_rate,
        "head_learning_rate": run.learning_rate * settings.head_learning_rate_factor,
        "seed": run.seed,
        "shots_seed": run.seed,
        "data_seed": run.seed,
        "output_dir": str(run.directory(settings)),
    }


def build_run_arguments(options: dict[str, Any]) -> RunArguments:
    """Turn options into what ``run_training`` takes."""
    kinds = (*LIGHT_KINDS, SiglipTrainingArguments)
    parsed = parse_arguments(kinds, [], prog="experiment", description="One run.", defaults=options)
    return RunArguments(*parsed)


def check_runs(settings: ExperimentSettings) -> None:
    """Check what can be checked of every arm in every regime before the first run.

    Raises:
        InputError: Options that do not go together, or data or weights that are not there.
    """
    for arm in settings.arms:
        for regime in settings.regimes:
            run = Run(regime, arm, settings.learning_rates[0], settings.seeds[0])
            with name_run(arm, regime):
                check_arguments(build_run_arguments(run_options(settings, run)))


def is_finished(directory: Path) -> bool:
    """Return whether a run is complete: its metrics are written last."""
    return (directory / METRICS_FILE).is_file()


def prune(directory: Path) -> None:
    """Delete what the analysis of a finished run does not need; weights above all."""
    for name in RUN_FILES:
        path = directory / name
        if name in KEPT:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def read_metrics(settings: ExperimentSettings, run: Run) -> dict[str, Any]:
    """Return the contents of a finished run's metrics file."""
    text = (run.directory(settings) / METRICS_FILE).read_text(encoding="utf-8")
    metrics: dict[str, Any] = json.loads(text)
    return metrics


def read_history(settings: ExperimentSettings, run: Run) -> list[dict[str, float | None]]:
    """Return the rows of a finished run's curve; what was not measured is None."""
    path = run.directory(settings) / HISTORY_FILE
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {key: float(value) if value else None for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def validation_accuracy(settings: ExperimentSettings, run: Run) -> float:
    """Return the best validation accuracy that a finished run met: of the weights it kept."""
    value: float = read_metrics(settings, run)["training"]["best_validation_accuracy"]
    return value


def choose_learning_rate(settings: ExperimentSettings, arm: str) -> float | None:
    """Return the rate with the best validation accuracy, of equals the lowest.

    None while a trial is missing. The test split plays no part.
    """
    trials = plan_trials(settings, arm)
    if not all(is_finished(run.directory(settings)) for run in trials):
        return None
    best = max(trials, key=lambda run: (validation_accuracy(settings, run), -run.learning_rate))
    return best.learning_rate
