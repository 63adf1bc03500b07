"""Linear probe of a checkpoint: ``siglip-flowers probe``."""

import sys
from functools import partial

from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.commands.entry import run_command
from siglip_flowers.config import DataArguments
from siglip_flowers.config.parsing import parse_arguments
from siglip_flowers.probe.options import ProbeArguments
from siglip_flowers.runtime.preemption import defer_signals

PROG = "siglip-flowers probe"
DESCRIPTION = "Encode every image once and fit a grid of linear heads on the features."
KINDS = (ProbeArguments, DataArguments)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, fit the grid, and print the metrics of the chosen head."""
    given = sys.argv[1:] if argv is None else argv
    return run_command(PROG, lambda: _probe(given), check=lambda: _check(given))


def _check(argv: list[str]) -> None:
    parse_arguments(KINDS, argv, prog=PROG, description=DESCRIPTION)


def _probe(argv: list[str]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from accelerate import PartialState

        from siglip_flowers.evaluation.tables import format_metrics
        from siglip_flowers.probe.grid import fit_grid, make_run
        from siglip_flowers.training.run import run_training

    probe, data = parse_arguments(KINDS, argv, prog=PROG, description=DESCRIPTION)
    run = make_run(probe, data)
    result = run_training(run, partial(fit_grid, run))
    if PartialState().is_main_process:
        print(escape_unprintable(result.description))
        print(format_metrics(result.metrics))
        print(f"Everything is in {result.output_dir}.")
