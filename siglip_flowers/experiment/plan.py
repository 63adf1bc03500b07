"""The runs of an experiment: their directories, their options, and which are finished."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import yaml
from numpy.typing import NDArray

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import write_text
from siglip_flowers.base.run_dir import CONFIG_FILE, METRICS_FILE, RUN_FILES
from siglip_flowers.config.parsing import parse_arguments, read_yaml
from siglip_flowers.experiment.options import ExperimentArguments, to_folder
from siglip_flowers.training.build import RunArguments, check_arguments

SETTINGS_FILE = "experiment.yaml"
HISTORY_FILE, PREDICTIONS_FILE, LOG_FILE = "history.csv", "predictions_test.parquet", "log.txt"
KEPT = (METRICS_FILE, CONFIG_FILE, HISTORY_FILE, PREDICTIONS_FILE)
# May differ when an experiment is resumed; of these, only additions.
FREE, GROWING = ("workers", "output_dir"), ("arms", "regimes", "seeds")


@dataclass(frozen=True)
class Run:
    """One training run."""

    regime: str
    arm: str
    learning_rate: float
    seed: int

    def __str__(self) -> str:
        rate = f"learning rate {self.learning_rate:g}"
        return f"{self.arm} | {self.regime} | {rate} | seed {self.seed}"

    def directory(self, options: ExperimentArguments) -> Path:
        """Return where the run is written."""
        name = f"lr{self.learning_rate:g}_seed{self.seed}"
        return options.directory / "runs" / to_folder(self.regime) / to_folder(self.arm) / name

    def is_finished(self, options: ExperimentArguments) -> bool:
        """Return whether the run is complete: its metrics are written last."""
        return (self.directory(options) / METRICS_FILE).is_file()

    def read_metrics(self, options: ExperimentArguments) -> dict[str, Any]:
        """Return the metrics of the finished run."""
        text = (self.directory(options) / METRICS_FILE).read_text(encoding="utf-8")
        metrics: dict[str, Any] = json.loads(text)
        return metrics

    def read_history(self, options: ExperimentArguments) -> NDArray[Any]:
        """Return the rows of the finished run's curve by column; nan is what was not measured."""
        path = self.directory(options) / HISTORY_FILE
        return np.atleast_1d(np.genfromtxt(path, delimiter=",", names=True, encoding="utf-8"))

    def score(self, options: ExperimentArguments) -> float:
        """Return the mean validation accuracy of the finished run's last three evaluations."""
        found = self.read_history(options)["validation_accuracy"]
        return float(found[np.isfinite(found)][-3:].mean())


def list_trials(options: ExperimentArguments, arm: str) -> list[Run]:
    """Return the runs that decide an arm's learning rate."""
    seed = options.seeds[0]
    return [Run(options.tuning_regime, arm, rate, seed) for rate in sorted(options.learning_rates)]


def choose_learning_rate(options: ExperimentArguments, arm: str) -> float | None:
    """Return the rate with the best score, of equals the lowest.

    None while a trial is missing. The test split plays no part.
    """
    trials = list_trials(options, arm)
    if not all(run.is_finished(options) for run in trials):
        return None
    return max(trials, key=lambda run: run.score(options)).learning_rate


def list_runs(options: ExperimentArguments, arm: str, learning_rate: float) -> list[Run]:
    """Return the runs that an arm is compared by; one of them is its best trial."""
    return [
        Run(regime, arm, learning_rate, seed)
        for seed in options.seeds
        for regime in options.regimes
    ]


def list_known(options: ExperimentArguments) -> list[Run]:
    """Return all trials and then the runs of arms whose trials are finished, the arms in turn."""
    trials = [list_trials(options, arm) for arm in options.arms]
    rates = {arm: choose_learning_rate(options, arm) for arm in options.arms}
    compared = [list_runs(options, arm, rate) for arm, rate in rates.items() if rate is not None]
    turns = [*zip(*trials, strict=True), *zip(*compared, strict=True)]
    return list(dict.fromkeys(run for turn in turns for run in turn))


def count_runs(options: ExperimentArguments) -> int:
    """Return the number of runs of the whole experiment, with its trials."""
    compared = len(options.regimes) * len(options.seeds)
    return len(options.arms) * (compared + len(options.learning_rates) - 1)


def make_options(options: ExperimentArguments, run: Run) -> dict[str, Any]:
    """Return the options of ``train.py`` for a run.

    The seed decides the few-shot images, the initial weights and the order of the images, so
    that the runs of one seed are a pair whatever the arm.
    """
    return {
        "disable_tqdm": True,
        **options.base,
        **options.regimes[run.regime],
        **options.arms[run.arm],
        "learning_rate": run.learning_rate,
        "head_learning_rate": run.learning_rate * options.head_learning_rate_factor,
        "seed": run.seed,
        "shots_seed": run.seed,
        "data_seed": run.seed,
        "output_dir": str(run.directory(options)),
    }


def build_arguments(values: dict[str, Any]) -> RunArguments:
    """Return options as ``run_training`` takes them."""
    kinds = tuple(get_type_hints(RunArguments).values())
    return RunArguments(*parse_arguments(kinds, [], prog="", description="", defaults=values))


def check_runs(options: ExperimentArguments) -> None:
    """Check every arm in every regime before the first run.

    Raises:
        InputError: Data or weights that are not there, or that an arm cannot use.
    """
    for arm in options.arms:
        for regime in options.regimes:
            run = Run(regime, arm, options.learning_rates[0], options.seeds[0])
            try:
                check_arguments(build_arguments(make_options(options, run)))
            except InputError as error:
                raise InputError(f"The arm {arm!r} in the regime {regime!r}: {error}") from error


def claim_directory(options: ExperimentArguments) -> None:
    """Claim the output directory, or resume the same experiment in it.

    Raises:
        InputError: It holds an experiment that differs in more than additions.
    """
    path, now = options.directory / SETTINGS_FILE, dataclasses.asdict(options)
    before = read_yaml(path) if path.is_file() else now
    for key in now.keys() - set(FREE):
        old, new = before.get(key), now[key]
        if key in GROWING and isinstance(old, dict):
            same = all(new.get(name) == value for name, value in old.items())
        else:
            same = old == (new[: len(old)] if key in GROWING and isinstance(old, list) else new)
        if not same:
            raise InputError(
                f"The experiment in {options.directory} has --{key} {old}, not {new}; choose "
                "another --output_dir, or restore it (arms, regimes and seeds may be added)."
            )
    write_text(path, yaml.safe_dump(now, sort_keys=False, allow_unicode=True))


def prune(directory: Path) -> None:
    """Delete what the analysis of a finished run does not need; weights above all."""
    for name in set(RUN_FILES) - set(KEPT):
        path = directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
