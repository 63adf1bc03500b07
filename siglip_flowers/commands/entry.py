"""What every command does around its work: messages instead of tracebacks, and exit codes."""

import errno
import logging
import os
import re
import sys
from collections.abc import Callable

from safetensors import SafetensorError

from siglip_flowers.errors import EXIT_RUN_FAILED, InputError, RunError
from siglip_flowers.parsing import is_first_process

EXIT_INTERRUPTED = 130
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def _quieten_libraries() -> None:
    # Not at the top, since importing them takes a second, which --help does not need.
    import datasets
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_warning()
    datasets.utils.logging.set_verbosity_error()
    # Hides the bars of reading and writing weights, but not those of downloads.
    shown = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    if shown:
        enable_progress_bars()


def run_command(
    prog: str, command: Callable[[], None], *, check: Callable[[], None] | None = None
) -> int:
    """Run a command and return its exit code: 0, 1 (failed), 2 (bad usage) or 130 (Ctrl-C).

    Args:
        prog: The command's name, for messages.
        command: The work. What it needs of torch and datasets it should import itself.
        check: Looks at the command line before anything slow is imported.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        if check is not None:
            check()
        _quieten_libraries()
        command()
    except (InputError, RunError) as error:
        # Bad usage is found alike by every process of a launch; one of them says so.
        if isinstance(error, RunError) or is_first_process():
            message = str(error)
            end = "" if message.endswith((".", "?")) else "."
            print(f"{prog}: error: {message}{end}", file=sys.stderr)
        return error.exit_code
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _explain_write_failure(error)
        if reason is None:
            raise
        print(
            f"{prog}: error: A file could not be written ({reason}); make room or choose another "
            "--output_dir, since what was written before is whole.",
            file=sys.stderr,
        )
        return EXIT_RUN_FAILED
    except KeyboardInterrupt:
        print(f"{prog}: stopped; the same command goes on where it was.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _explain_write_failure(error: OSError | SafetensorError | RuntimeError) -> str | None:
    """Return why a file could not be written, or None if the error is another one."""
    if isinstance(error, OSError):
        if error.errno not in WRITE_ERRORS:
            return None
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    # The writers of safetensors and of torch.save pass the system's error on as text only.
    text = str(error)
    if isinstance(error, SafetensorError):
        number = re.search(r"os error (\d+)", text)
        if number is None or int(number[1]) not in WRITE_ERRORS:
            return None
        return os.strerror(int(number[1]))
    if "inline_container" in text or "PytorchStreamWriter" in text:
        return "the disk may be full"
    return None
