"""Run an experiment: first the trials, then the other runs at each arm's best learning rate."""

import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import cast

from siglip_flowers.base.errors import RunError
from siglip_flowers.experiment.plan import (
    LOG_FILE,
    Run,
    choose_learning_rate,
    count_runs,
    is_finished,
    plan_runs,
    plan_trials,
    prune,
    run_options,
    validation_accuracy,
)
from siglip_flowers.experiment.settings import ExperimentSettings
from siglip_flowers.experiment.workers import Worker, execute_run
from siglip_flowers.runtime.devices import count_workers


def execute_runs(settings: ExperimentSettings) -> None:
    """Do every unfinished run, several at a time if there are workers.

    Raises:
        RunError: Some runs failed; the others were done.
    """
    progress = _Progress(settings)
    workers = count_workers(settings.workers)
    if workers == 0:
        queue = _Queue(settings)
        while (run := queue.take()) is not None:
            progress.start(run)
            progress.end(run, execute_run(run_options(settings, run)))
            queue.put_back(run)
    else:
        _execute_parallel(settings, workers, progress)
    progress.raise_failures()


def _execute_parallel(settings: ExperimentSettings, workers: int, progress: "_Progress") -> None:
    queue = _Queue(settings)
    idle: list[Worker] = []
    busy: dict[Connection, tuple[Worker, Run]] = {}
    started: list[Worker] = []
    try:
        while True:
            while len(busy) < workers and (run := queue.take()) is not None:
                if not idle:
                    idle.append(Worker(len(started), workers))
                    started.append(idle[-1])
                worker = idle.pop()
                progress.start(run)
                worker.send(run_options(settings, run))
                busy[worker.connection] = (worker, run)
            if not busy:
                return
            for connection in wait(list(busy)):
                worker, run = busy.pop(cast(Connection, connection))
                progress.end(run, worker.receive())
                queue.put_back(run)
                idle.append(worker)
    finally:
        for worker in started:
            worker.stop()


class _Queue:
    """Queue of runs; those of an arm are added once its trials are finished."""

    def __init__(self, settings: ExperimentSettings) -> None:
        self.settings = settings
        self._ready: deque[Run] = deque()
        self._untuned = set(settings.arms)
        for run in _interleave([plan_trials(settings, arm) for arm in settings.arms]):
            self._add(run)
        self._tune(list(settings.arms))

    def take(self) -> Run | None:
        """Return the next run, or None if none is ready."""
        return self._ready.popleft() if self._ready else None

    def put_back(self, run: Run) -> None:
        """Record that a run ended; it may have been the last trial of an arm."""
        self._tune([run.arm])

    def _tune(self, arms: list[str]) -> None:
        plans = []
        for arm in arms:
            if arm not in self._untuned:
                continue
            rate = choose_learning_rate(self.settings, arm)
            if rate is None:
                continue
            self._untuned.remove(arm)
            if len(self.settings.learning_rates) > 1:
                print(f"{arm}: learning rate {rate:g} was best on the validation split", flush=True)
            plans.append(plan_runs(self.settings, arm, rate))
        for run in _interleave(plans):
            self._add(run)

    def _add(self, run: Run) -> None:
        directory = run.directory(self.settings)
        if is_finished(directory):
            # A command may have been stopped between the last file and the tidying.
            prune(directory)
        else:
            self._ready.append(run)


def _interleave(plans: list[list[Run]]) -> Iterator[Run]:
    for row in zip(*plans, strict=True):
        yield from row


class _Progress:
    """Prints a line for each finished run and keeps the failures."""

    def __init__(self, settings: ExperimentSettings) -> None:
        self.settings = settings
        self.total = count_runs(settings)
        self.done = sum(1 for _ in (settings.directory / "runs").glob("*/*/*/metrics.json"))
        self._starts: dict[Run, float] = {}
        self._failures: list[str] = []
        if self.done:
            print(f"{self.done} of {self.total} runs were finished before", flush=True)

    def start(self, run: Run) -> None:
        self._starts[run] = time.monotonic()

    def end(self, run: Run, failure: str | None) -> None:
        if failure is not None:
            log = run.directory(self.settings) / LOG_FILE
            seen = f" (see {log})" if log.is_file() else ""
            self._failures.append(f"{run} failed: {failure.rstrip('.')}{seen}")
            print(self._failures[-1], flush=True)
            return
        self.done += 1
        accuracy = validation_accuracy(self.settings, run)
        seconds = time.monotonic() - self._starts[run]
        print(
            f"[{self.done}/{self.total}] {run}: validation accuracy {accuracy:.2%} after "
            f"{seconds:.0f} s",
            flush=True,
        )

    def raise_failures(self) -> None:
        if self._failures:
            missing = self.total - self.done
            raise RunError(
                f"{missing} of {self.total} runs are missing, first: {self._failures[0]}; fix the "
                "cause and repeat the command, which does only the missing runs."
            )
