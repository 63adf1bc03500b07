"""SIGTERM and SIGUSR1: training ends after a step with a checkpoint, everything else at once.

Without torch, so that a command can watch for signals before it imports anything slow.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What a shell reports for a process that SIGTERM ended; SIGUSR1 leads to the same.
EXIT_PREEMPTED = 143
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
# The two names of the module that imports: before and after the package importlib is imported.
IMPORT_MODULES = ("_frozen_importlib", "importlib._bootstrap")
# Seconds after which a signal that could not end the process where it came is looked at again.
RECHECK = 0.05
# Seconds that a process that loads data works on after SIGTERM, for the last step of its parent.
LOADER_GRACE = 60


class Preempted(SystemExit):
    """The process was asked to end and leaves whole files; not an ``Exception``, as Ctrl-C."""

    def __init__(self, message: str = "stopped by a signal", number: int | None = None) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.message, self.number = message, number


class _Watch:
    """What has been asked of this process; there is one, as signals are the process's."""

    def __init__(self) -> None:
        self.process = 0
        self.requested = False
        self.held = False
        self.recheck: threading.Timer | None = None
        self.hook_before = sys.unraisablehook

    def handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            # A fork of the process that watches: it ends as if nobody watched.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if _is_importing(frame):
            # An exception there would cross native code that is being initialized, which aborts.
            self.send_again(number)
            return
        repeated, self.requested = self.requested, True
        # Launchers pass on what the process has got already: the second must not disturb the end.
        if not self.held and not repeated:
            raise Preempted(number=number)

    def send_again(self, number: int) -> None:
        """Send the signal to this process a moment later."""
        self.recheck = threading.Timer(RECHECK, os.kill, (self.process, number))
        self.recheck.daemon = True
        self.recheck.start()

    def catch_lost(self, lost: "sys.UnraisableHookArgs") -> None:
        """Send a signal again whose exception came up where Python drops every exception.

        That is in a ``__del__``, a callback of the garbage collector or of native code.
        """
        stop = lost.exc_value
        if not isinstance(stop, Preempted) or stop.number is None:
            self.hook_before(lost)
            return
        self.requested = False
        self.send_again(stop.number)


_watch = _Watch()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") in IMPORT_MODULES:
            return True
        frame = frame.f_back
    return False


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise :class:`Preempted` in the block on SIGTERM or SIGUSR1; see :func:`defer_signals`."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may set handlers; whoever runs a command in another has its own.
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    _watch.hook_before = sys.unraisablehook
    _watch.process, _watch.requested, _watch.held = os.getpid(), False, False
    for number in STOP_SIGNALS:
        signal.signal(number, _watch.handle)
    sys.unraisablehook = _watch.catch_lost
    try:
        yield
    finally:
        sys.unraisablehook = _watch.hook_before
        if _watch.recheck is not None:
            _watch.recheck.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        _watch.requested = _watch.held = False


@contextmanager
def defer_signals() -> Iterator[None]:
    """Only note a signal in the block, which asks :func:`is_stop_requested`; raise after it."""
    _raise_if_requested()
    _watch.held = True
    try:
        yield
    finally:
        _watch.held = False
    _raise_if_requested()


def is_stop_requested() -> bool:
    """Return whether this process has got SIGTERM or SIGUSR1."""
    return _watch.requested


def _raise_if_requested() -> None:
    if _watch.requested:
        raise Preempted()


def outlive_signals(worker: int) -> None:
    """Let a process that loads data work on for a while when all processes get the signal.

    Its parent needs the data to finish its step. For ``worker_init_fn`` of a ``DataLoader``.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: signal.alarm(LOADER_GRACE))
