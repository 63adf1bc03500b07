"""The runs of an experiment: what is planned, what is finished, and doing the rest.

First come the trials of each arm, then the other runs at the arm's best learning rate. Processes
do one run after another, since starting one costs more than a short run.
"""

import dataclasses
import json
import multiprocessing
import os
import shutil
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast, get_type_hints

import numpy as np
import yaml
from numpy.typing import NDArray

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.files import CONFIG_FILE, METRICS_FILE, RUN_FILES, write_text
from siglip_flowers.config.parsing import parse_arguments, read_yaml
from siglip_flowers.experiment.options import ExperimentArguments, to_folder
from siglip_flowers.runtime.devices import count_workers, share_machine
from siglip_flowers.runtime.processes import prepare_worker
from siglip_flowers.training.build import RunArguments, check_arguments
from siglip_flowers.training.run import run_training

STOP_SECONDS = 10
SETTINGS_FILE = "experiment.yaml"
HISTORY_FILE, PREDICTIONS_FILE, LOG_FILE = "history.csv", "predictions_test.parquet", "log.txt"
KEPT = (METRICS_FILE, CONFIG_FILE, HISTORY_FILE, PREDICTIONS_FILE)
# May differ when an experiment is resumed; of these, only additions.
FREE = ("workers", "output_dir", "contrasts", "steady_part")
GROWING = ("arms", "regimes", "seeds")


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
        return dict(json.loads(text))

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
    rates, seed = sorted(options.learning_rates), options.seeds[0]
    return [Run(options.tuning_regime, arm, rate, seed) for rate in rates]


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
    return RunArguments(*parse_arguments(kinds, [], defaults=values))


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
        parts: list[Any] = [
            list(value.items()) if isinstance(value, dict) else value for value in (old, new)
        ]
        if key in GROWING:
            parts[1] = parts[1][: len(parts[0])]
        if parts[0] != parts[1]:
            raise InputError(
                f"The experiment in {options.directory} has --{key} {old}, not {new}. Choose "
                "another --output_dir, or only add arms, regimes and seeds at the end."
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


def execute_run(values: dict[str, Any]) -> str | None:
    """Do a run and prune its directory; return None, or why it could not be done."""
    try:
        run_training(build_arguments(values))
    except (InputError, RunError) as error:
        return str(error)
    prune(Path(values["output_dir"]))
    return None


def execute_runs(options: ExperimentArguments) -> None:
    """Do every unfinished run, several at a time if there are workers.

    Raises:
        RunError: Some runs failed; the others were done.
    """
    progress = _Progress(options)
    workers = count_workers(options.workers)
    if workers == 0:
        while (run := progress.take()) is not None:
            progress.end(run, execute_run(make_options(options, run)))
    else:
        _execute_parallel(options, workers, progress)
    progress.raise_failures()


def _execute_parallel(options: ExperimentArguments, workers: int, progress: "_Progress") -> None:
    idle = [Worker(index, workers) for index in range(workers)]
    busy: dict[Connection, tuple[Worker, Run]] = {}
    try:
        while True:
            while idle and (run := progress.take()) is not None:
                worker = idle.pop()
                worker.send(make_options(options, run))
                busy[worker.connection] = (worker, run)
            if not busy:
                return
            for connection in wait(list(busy)):
                worker, run = busy.pop(cast(Connection, connection))
                progress.end(run, worker.receive())
                idle.append(worker)
    finally:
        for worker in (*idle, *(worker for worker, _ in busy.values())):
            worker.stop()


class _Progress:
    """Knows what was started, prints a line for each run that ended, and keeps the failures."""

    def __init__(self, options: ExperimentArguments) -> None:
        self.options = options
        self.total = count_runs(options)
        self.started: dict[Run, float] = {}
        self.failures: list[str] = []
        finished = [run for run in list_known(options) if run.is_finished(options)]
        for run in finished:
            # The command may have been stopped between the last file and the pruning.
            prune(run.directory(options))
        self.done = len(finished)
        if self.done:
            print(f"{self.done} of {self.total} runs were finished before", flush=True)

    def take(self) -> Run | None:
        """Return a run to start, or None if none is ready."""
        for run in list_known(self.options):
            if run not in self.started and not run.is_finished(self.options):
                self.started[run] = time.monotonic()
                return run
        return None

    def end(self, run: Run, failure: str | None) -> None:
        """Record that a run succeeded, or why it failed."""
        if failure is not None:
            log = run.directory(self.options) / LOG_FILE
            seen = f" (see {log})" if log.is_file() else ""
            self.failures.append(f"{run} failed: {failure.rstrip('.')}{seen}")
            print(self.failures[-1], flush=True)
            return
        self.done += 1
        accuracy = run.score(self.options)
        seconds = time.monotonic() - self.started[run]
        print(
            f"[{self.done}/{self.total}] {run}: validation accuracy {accuracy:.2%} after "
            f"{seconds:.0f} s",
            flush=True,
        )

    def raise_failures(self) -> None:
        """Raise RunError if a run failed."""
        if self.failures:
            missing = self.total - self.done
            raise RunError(
                f"{missing} of {self.total} runs are missing, first: {self.failures[0]}. Fix the "
                "cause and repeat the command, which does only the missing runs."
            )


class Worker:
    """A process that takes runs and answers each with None or a message.

    Args:
        index: Number of the worker.
        workers: How many there are; they share cores and devices.
    """

    def __init__(self, index: int, workers: int) -> None:
        self.index = index
        self.workers = workers
        self.process: Any = None
        self.busy = False

    def send(self, values: dict[str, Any]) -> None:
        """Start a run; ``connection`` becomes readable when it ended, or the process with it."""
        if self.process is None or not self.process.is_alive():
            context = multiprocessing.get_context("spawn")
            self.connection, other_end = context.Pipe()
            # Not a daemon, which could not have processes that load data.
            self.process = context.Process(target=_work, args=(other_end,))
            with share_machine(self.index, self.workers):
                self.process.start()
            other_end.close()
        self.connection.send(values)
        self.busy = True

    def receive(self) -> str | None:
        """Return None for a run that succeeded, else why it did not."""
        self.busy = False
        try:
            message: str | None = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            message = f"its process ended with exit code {self.process.exitcode}"
        return message

    def stop(self) -> None:
        """End the process; its run can be resumed."""
        if self.process is None:
            return
        # An idle process sees the closed connection and ends by itself.
        self.connection.close()
        if not self.busy:
            self.process.join(STOP_SECONDS)
        self.process.terminate()
        self.process.join(STOP_SECONDS)
        self.process.kill()
        self.process.join()


def _work(connection: Connection) -> None:
    prepare_worker()
    while True:
        try:
            values = connection.recv()
        except EOFError:
            return
        directory = Path(values["output_dir"])
        directory.mkdir(parents=True, exist_ok=True)
        # At the level of the file descriptors: a crash in native code is logged as well.
        log = os.open(directory / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log, stream.fileno())
        os.close(log)
        connection.send(execute_run(values))
