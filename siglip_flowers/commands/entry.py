"""What every command does around its work: messages instead of tracebacks, and exit codes."""

import logging
import sys
import warnings
from collections.abc import Callable

from safetensors import SafetensorError

from siglip_flowers.base.errors import EXIT_RUN_FAILED, InputError, RunError
from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.config.parsing import is_first_process
from siglip_flowers.runtime.failures import explain_write_failure, is_lost_process
from siglip_flowers.runtime.preemption import (
    EXIT_PREEMPTED,
    Preempted,
    defer_signals,
    stop_on_signals,
)

EXIT_INTERRUPTED = 130


class _PlainFormatter(logging.Formatter):
    """Writes what a terminal would obey, in the name of a file or class, as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_unprintable(super().format(record), keep="\n\t")


def _prepare_process() -> None:
    # Not at the top, since importing them takes a second, which --help does not need.
    with defer_signals():
        import datasets
        from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
        from transformers.utils import logging as transformers_logging

        from siglip_flowers.runtime.memory import keep_freed_memory

    keep_freed_memory()
    transformers_logging.set_verbosity_warning()
    datasets.utils.logging.set_verbosity_error()
    # Hides the bars of reading and writing weights, but not those of downloads.
    shown = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    if shown:
        enable_progress_bars()


def _end(message: str, goes_on: bool) -> str:
    if goes_on and "the same command" not in message:
        return f"{message}; the same command goes on where it was."
    return f"{message}."


def run_command(
    prog: str,
    command: Callable[[], None],
    *,
    check: Callable[[], None] | None = None,
    goes_on: bool = False,
) -> int:
    """Run a command and return its exit code: 0, 1 (failed), 2 (bad usage), 130 (Ctrl-C)
    or 143 (SIGTERM, SIGUSR1).

    Args:
        prog: The command's name, for messages.
        command: The work. What it needs of torch and datasets it should import itself.
        check: Looks at the command line before anything slow is imported.
        goes_on: Whether a command that was stopped goes on where it was when typed again.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    if not is_first_process():
        # What is worth a warning is so in every process of a launch; the first one says it.
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    try:
        with stop_on_signals():
            if check is not None:
                check()
            _prepare_process()
            command()
    except (InputError, RunError) as error:
        # Bad usage is found alike by every process of a launch; one of them says so.
        if isinstance(error, RunError) or is_first_process():
            message = str(error)
            end = "" if message.endswith((".", "?")) else "."
            print(f"{prog}: error: {escape_unprintable(message)}{end}", file=sys.stderr)
        return error.exit_code
    except (OSError, SafetensorError, RuntimeError) as error:
        if is_lost_process(error):
            print(
                f"{prog}: error: Another process of this run has ended or does not answer, and "
                "this one stops with it; what that one printed says why, and the same command "
                "goes on from the newest checkpoint.",
                file=sys.stderr,
            )
            return EXIT_RUN_FAILED
        reason = explain_write_failure(error)
        if reason is None:
            raise
        print(
            f"{prog}: error: A file could not be written ({reason}); make room or choose another "
            "--output_dir, since what was written before is whole.",
            file=sys.stderr,
        )
        return EXIT_RUN_FAILED
    except Preempted as stop:
        if is_first_process():
            print(f"{prog}: {_end(stop.message, goes_on)}", file=sys.stderr)
        return EXIT_PREEMPTED
    except KeyboardInterrupt:
        print(f"{prog}: {_end('stopped', goes_on)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0
