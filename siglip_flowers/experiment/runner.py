"""Run an experiment: first the trials, then the other runs at each arm's best learning rate.

Processes do one run after another, since starting one costs more than a short run.
"""

import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.experiment.options import ExperimentArguments
from siglip_flowers.experiment.plan import (
    LOG_FILE,
    Run,
    build_arguments,
    count_runs,
    list_known,
    make_options,
    prune,
)
from siglip_flowers.runtime.devices import count_workers, share_machine
from siglip_flowers.runtime.processes import prepare_worker
from siglip_flowers.training.run import run_training

STOP_SECONDS = 10


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
