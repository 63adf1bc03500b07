"""What every command does around its work: messages instead of tracebacks, and exit codes."""

import atexit
import gc
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from siglip_flowers.base.errors import (
    EXIT_INTERRUPTED,
    EXIT_RUN_FAILED,
    InputError,
    RunError,
    explain_write_failure,
    is_lost_process,
)
from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.config.parsing import Command, is_first_process
from siglip_flowers.runtime.allocator import keep_freed_memory
from siglip_flowers.runtime.preemption import (
    EXIT_PREEMPTED,
    Preempted,
    defer_signals,
    stop_on_signals,
)


class _PlainFormatter(logging.Formatter):
    """Writes characters of names that a terminal would act on as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_unprintable(super().format(record), keep="\n\t")


def name_program(command: str) -> str:
    """Return what the user typed to run a command: ``train.py`` or ``siglip-flowers train``."""
    script = Path(sys.argv[0]).name
    return script if script == f"{command}.py" else f"siglip-flowers {command}"


def name_call(program: str) -> str:
    """Return how a program of :func:`name_program` is typed, where there may be no script."""
    return f"python {program}" if program.endswith(".py") else program


def refuse_launch(what: str) -> None:
    """Raise InputError in a process of a launch, for a command that starts its own processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"The {what} starts its own processes (--workers); use python, not accelerate launch."
        )


def _prepare_process() -> None:
    # Before a library starts threads, each of which would get memory of its own.
    keep_freed_memory()
    # Imports make a million objects that stay, and looking through them takes a second: less often
    # now, and not once more at the end of the process.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    # Not at the top, since importing them takes a second, which --help does not need.
    with defer_signals():
        import datasets
        import PIL.Image
        from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
        from transformers.utils import logging as transformers_logging

    # Memory for pixels is bounded where images are read.
    warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
    transformers_logging.set_verbosity_warning()
    datasets.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    # Hides the bars of reading and writing weights, but not those of downloads.
    shown = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    if shown:
        enable_progress_bars()


def _end(message: str, resumes: bool) -> str:
    if resumes and "the same command" not in message:
        return f"{message}; the same command resumes it."
    return f"{message}."


def run_command(
    command: Command,
    work: Callable[[Any], None],
    argv: list[str] | None = None,
    *,
    parse: Callable[[list[str]], Any] | None = None,
    resumes: bool = False,
) -> int:
    """Run a command and return its exit code: 0, 1 (failed), 2 (bad usage), 130 (Ctrl-C)
    or 143 (SIGTERM, SIGUSR1).

    Args:
        command: The command.
        work: Called with what ``parse`` returns. It should import torch and datasets itself.
        argv: The command line without the program's name; default: that of this process.
        parse: Reads and checks it before anything slow is imported; default: ``command.parse``.
        resumes: Whether a command that was stopped resumes when it is run again.
    """
    prog, read = command.prog, parse or command.parse
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    if not is_first_process():
        # A warning is the same in every process of a launch; the first one shows it.
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names may have letters that its encoding lacks; stderr does this by default.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with stop_on_signals():
            parsed = read(sys.argv[1:] if argv is None else argv)
            _prepare_process()
            work(parsed)
            sys.stdout.flush()
    except (InputError, RunError, OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader of the results, such as head, has enough. What is left in the buffer must
            # not raise the error again when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not resumes:
                return 0
        message = _explain(error)
        if message is None:
            raise
        # Every process of a launch finds the same bad usage; the first one prints it.
        if not isinstance(error, InputError) or is_first_process():
            end = "" if message.endswith((".", "?")) else "."
            print(f"{prog}: error: {escape_unprintable(message)}{end}", file=sys.stderr)
        return getattr(error, "exit_code", EXIT_RUN_FAILED)
    except Preempted as stop:
        if is_first_process():
            print(f"{prog}: {_end(stop.message, resumes)}", file=sys.stderr)
        return EXIT_PREEMPTED
    except KeyboardInterrupt:
        print(f"{prog}: {_end('stopped', resumes)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _explain(error: Exception) -> str | None:
    """Return what to tell about an error, or None if it deserves its traceback."""
    if isinstance(error, (InputError, RunError)):
        return str(error)
    if isinstance(error, BrokenPipeError):
        return "What reads the output has ended. The same command resumes."
    if is_lost_process(error):
        return (
            "Another process of this run ended or does not answer. See what it printed; the same "
            "command resumes from the newest checkpoint."
        )
    reason = explain_write_failure(error)
    return reason and (
        f"A file could not be read or written ({reason}). Check its permissions and the free "
        "space; files that were written before are complete."
    )
