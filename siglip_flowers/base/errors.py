"""The two errors a user is meant to read, with their exit codes; and failures of the machine.

Without torch, since every command imports this module first.
"""

import errno
import os
import re

from safetensors import SafetensorError

EXIT_RUN_FAILED = 1
EXIT_BAD_USAGE = 2
EXIT_INTERRUPTED = 130
# Of a disk, if the system names no file; others may be those of a connection.
WRITE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO),
    errno.ENOENT,  # no directory for temporary files
)
# Classes of torch.distributed, and words in the messages of gloo and NCCL.
PROCESS_ERRORS = ("DistBackendError", "DistNetworkError", "DistStoreError")
PROCESS_WORDS = ("gloo", "NCCL", "ProcessGroup", "monitoredBarrier")


class InputError(ValueError):
    """An input or an option cannot be used as given: exit code 2, no traceback.

    The message says what is wrong, with the value and the file, and what to do.
    """

    exit_code = EXIT_BAD_USAGE


class RunError(RuntimeError):
    """A well-formed request that failed on the way (unreachable hub, broken file, full disk).

    Exit code 1, no traceback. The message follows the same rule as :class:`InputError`.
    """

    exit_code = EXIT_RUN_FAILED


def explain_write_failure(error: BaseException) -> str | None:
    """Return why a file could not be opened or written, or None for any other error."""
    if isinstance(error, OSError):
        if error.filename and error.strerror:
            return f"{error.filename}: {error.strerror}"
        return error.strerror if error.errno in WRITE_ERRORS else None
    # safetensors and torch.save report the system's error only as text.
    text = str(error)
    if isinstance(error, SafetensorError):
        number = re.search(r"os error (\d+)", text)
        return None if number is None else os.strerror(int(number[1]))
    if isinstance(error, RuntimeError) and (
        "inline_container" in text or "PytorchStreamWriter" in text
    ):
        return "the disk may be full"
    return None


def is_lost_process(error: BaseException) -> bool:
    """Return whether an error means that another process of the run no longer responds."""
    if type(error).__name__ in PROCESS_ERRORS:
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in PROCESS_WORDS)
