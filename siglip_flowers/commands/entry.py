"""What every command does around its work: messages instead of tracebacks, and exit codes."""

import errno
import logging
import os
import sys
from collections.abc import Callable

import datasets
from transformers.utils import logging as transformers_logging

from siglip_flowers.errors import EXIT_RUN_FAILED, InputError, RunError

EXIT_INTERRUPTED = 130


def run_command(prog: str, command: Callable[[], None]) -> int:
    """Run a command and return its exit code: 0, 1 (failed), 2 (bad usage) or 130 (Ctrl-C)."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    transformers_logging.set_verbosity_warning()
    transformers_logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    try:
        command()
    except (InputError, RunError) as error:
        # Bad usage is found alike by every process of a launch; one of them says so.
        if isinstance(error, RunError) or os.environ.get("RANK", "0") == "0":
            print(f"{prog}: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"{prog}: error: A file could not be written{where}: {error.strerror}; make room or "
            "choose another --output_dir. What was written before is whole.",
            file=sys.stderr,
        )
        return EXIT_RUN_FAILED
    except KeyboardInterrupt:
        print(f"{prog}: stopped; the same command goes on where it was.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0
