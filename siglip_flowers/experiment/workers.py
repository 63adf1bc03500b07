"""Processes that do one run after another, since starting one costs more than a short run."""

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.experiment.plan import LOG_FILE, build_run_arguments, prune
from siglip_flowers.runtime.devices import share_machine
from siglip_flowers.runtime.processes import prepare_worker
from siglip_flowers.training.run import run_training

STOP_SECONDS = 10


def execute_run(options: dict[str, Any]) -> str | None:
    """Do a run and prune its folder; return None, or why it could not be done."""
    try:
        run_training(build_run_arguments(options))
    except (InputError, RunError) as error:
        return str(error)
    prune(Path(options["output_dir"]))
    return None


class Worker:
    """A process that takes runs and answers each with None or a message.

    Args:
        index: Number of the worker.
        workers: How many there are; they share cores and devices.
    """

    def __init__(self, index: int, workers: int) -> None:
        self.index = index
        self.workers = workers
        self.busy = False
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other_end = context.Pipe()
        # No daemon, which may not have the child processes that decode images.
        self.process = context.Process(target=_work, args=(other_end,))
        with share_machine(self.index, self.workers):
            self.process.start()
        other_end.close()

    def send(self, options: dict[str, Any]) -> None:
        """Start a run; ``connection`` becomes readable when it ended, or the process with it."""
        if not self.process.is_alive():
            self._start()
        self.connection.send(options)
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
        """End the process; a run on the way can be resumed."""
        # An idle process sees the closed connection and ends by itself, tidily.
        self.connection.close()
        if not self.busy:
            self.process.join(STOP_SECONDS)
        self.process.terminate()
        self.process.join(STOP_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(connection: Connection) -> None:
    prepare_worker()
    while True:
        try:
            options = connection.recv()
        except EOFError:
            return
        directory = Path(options["output_dir"])
        directory.mkdir(parents=True, exist_ok=True)
        # At the level of the file descriptors: a crash in native code is logged as well.
        log = os.open(directory / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log, stream.fileno())
        os.close(log)
        connection.send(execute_run(options))
