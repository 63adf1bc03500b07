"""Search for the options that train best: ``python -m siglip_flowers.search``."""

import sys

from siglip_flowers.commands.entry import run_command
from siglip_flowers.runtime.preemption import defer_signals
from siglip_flowers.search.line import check_line

PROG = "search"
DESCRIPTION = (
    "Try options of train.py, each trial a short training judged on the validation split, and "
    "write the best ones down for train.py."
)


def main(argv: list[str] | None = None) -> int:
    """Do the trials that are missing, and print the best; return the exit code."""
    given = sys.argv[1:] if argv is None else argv
    return run_command(
        PROG,
        lambda: _search(given),
        check=lambda: check_line(given, prog=PROG, description=DESCRIPTION),
        goes_on=True,
    )


def _search(argv: list[str]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from siglip_flowers.search.run import run_search

    outcome = run_search(argv, prog=PROG, description=DESCRIPTION)
    print(outcome.table)
    print(
        f"The best trial is in {outcome.best}; train it with: "
        f"python train.py --config {outcome.best}"
    )
