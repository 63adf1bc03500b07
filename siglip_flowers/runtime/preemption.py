"""SIGTERM and SIGUSR1: training stops after a step with a checkpoint, everything else at once.

Only commands install the handler. Without torch, so that a command can watch for signals before it
imports anything slow.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

# What a shell reports for a process that SIGTERM ended; used for SIGUSR1 as well.
EXIT_PREEMPTED = 143
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
# Launchers pass on a signal that the process has received already. Within this time, a repeated
# signal does not interrupt the work of stopping.
REPEAT_SECONDS = 5
# How long a data loading process keeps working after SIGTERM, for the last step of its parent.
LOADER_GRACE_SECONDS = 60


class Preempted(SystemExit):
    """The process was asked to stop. Like ``KeyboardInterrupt``, it is not an ``Exception``."""

    def __init__(self, message: str = "stopped by a signal") -> None:
        super().__init__(EXIT_PREEMPTED)
        self.message = message


class _StopRequest:
    """Whether this process was asked to stop; signals belong to the process, so there is one."""

    process = 0
    time: float | None = None
    deferred = False


def _handle(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _StopRequest.process:
        # A fork of the process that installed the handler ends as it would without one.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    before, _StopRequest.time = _StopRequest.time, time.monotonic()
    repeated = before is not None and _StopRequest.time - before < REPEAT_SECONDS
    if not _StopRequest.deferred and not repeated:
        raise Preempted()


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise :class:`Preempted` in the block on SIGTERM or SIGUSR1; see :func:`defer_signals`."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may install handlers.
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    _StopRequest.process, _StopRequest.time, _StopRequest.deferred = os.getpid(), None, False
    for number in STOP_SIGNALS:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _StopRequest.time = None


@contextmanager
def defer_signals() -> Iterator[None]:
    """Let the block finish on a signal: :func:`is_stop_requested` reports it, and the end raises.

    For steps that must be completed, and for imports, where an exception inside the initialization
    of native code aborts the process.
    """
    before = _StopRequest.deferred
    _raise_if_requested()
    _StopRequest.deferred = True
    try:
        yield
    finally:
        _StopRequest.deferred = before
    _raise_if_requested()


def is_stop_requested() -> bool:
    """Return whether this process received SIGTERM or SIGUSR1."""
    return _StopRequest.time is not None


def _raise_if_requested() -> None:
    if is_stop_requested() and not _StopRequest.deferred:
        raise Preempted()


def shield_workers(loader: Any) -> Any:
    """Let the data loading processes of a ``DataLoader`` work a little longer after a signal.

    They receive it together with their parent, which needs their data to finish its step.
    """
    initialize = loader.worker_init_fn
    # A loader whose workers persist comes here at every evaluation.
    shielded = isinstance(initialize, partial) and initialize.func is _outlive_signals
    if loader.num_workers and not shielded:
        loader.worker_init_fn = partial(_outlive_signals, initialize)
    return loader


def _outlive_signals(initialize: Callable[[int], None] | None, worker: int) -> None:
    if initialize is not None:
        initialize(worker)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: signal.alarm(LOADER_GRACE_SECONDS))
