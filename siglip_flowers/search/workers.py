"""Processes that do the trials of one study beside each other, one a device."""

import logging
import multiprocessing
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.runtime.devices import share_machine
from siglip_flowers.runtime.memory import keep_freed_memory
from siglip_flowers.runtime.preemption import stop_on_signals
from siglip_flowers.runtime.processes import end_with_parent
from siglip_flowers.search.setup import read_search
from siglip_flowers.search.trials import run_trials

# Seconds in which a trial that is asked to stop writes its checkpoint.
STOP_SECONDS = 60


def run_in_workers(argv: list[str], workers: int, trials: int) -> list[str]:
    """Do a number of trials in several processes; return why some of these ended before that.

    Args:
        argv: The command line of the search, which every process reads for itself.
        workers: How many processes.
        trials: How many trials there are to do, by all of them together.
    """
    context = multiprocessing.get_context("spawn")
    # Each trial is taken once, by whoever is free.
    tickets = context.Semaphore(trials)
    started = []
    try:
        for index in range(min(workers, trials)):
            ours, theirs = context.Pipe(duplex=False)
            # No daemon, which may not have the child processes that decode images.
            process = context.Process(target=_work, args=(argv, tickets, theirs))
            with share_machine(index, workers):
                process.start()
            theirs.close()
            started.append((process, ours))
        return [reason for one in started if (reason := _wait(*one)) is not None]
    finally:
        _stop([process for process, _ in started])


def _wait(process: Any, answers: Connection) -> str | None:
    """Wait for the end of a process; return None for a good one, else what it said."""
    try:
        reason: str | None = answers.recv()
    except EOFError:
        process.join()
        return f"a process ended with exit code {process.exitcode}"
    process.join()
    return reason


def _stop(processes: list[Any]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _work(argv: list[str], tickets: Any, answers: Connection) -> None:
    # Ctrl-C reaches every process of the terminal; the main process ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    keep_freed_memory()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    with stop_on_signals():
        try:
            search = read_search(argv, prog="search", description="")
            run_trials(search, lambda: bool(tickets.acquire(block=False)), parallel=True)
        except (InputError, RunError) as error:
            answers.send(str(error))
        else:
            answers.send(None)
