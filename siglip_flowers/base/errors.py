"""The two errors a user is meant to read, and the exit codes that go with them."""

EXIT_RUN_FAILED = 1
EXIT_BAD_USAGE = 2


class InputError(ValueError):
    """Something the user asked for cannot be done as asked: exit code 2, no traceback.

    The message is one sentence: what is wrong, with the value and the file, and what to do.
    """

    exit_code = EXIT_BAD_USAGE


class RunError(RuntimeError):
    """A well-formed request that failed on the way (unreachable hub, broken file, full disk).

    Exit code 1, no traceback. The message follows the same rule as :class:`InputError`.
    """

    exit_code = EXIT_RUN_FAILED
