"""Linear probe of a checkpoint: ``siglip-flowers probe``."""

from functools import partial

from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.commands.entry import Command, name_program, run_command
from siglip_flowers.commands.models import check_sources
from siglip_flowers.config import DataArguments
from siglip_flowers.config.rules import DATA_RULES
from siglip_flowers.probe.options import ProbeArguments
from siglip_flowers.runtime.preemption import defer_signals

COMMAND = Command(
    name_program("probe"),
    "Encode every image once and fit a grid of linear heads on the features.",
    (ProbeArguments, DataArguments),
    DATA_RULES,
    (
        "siglip-flowers probe --config configs/linear_probe.yaml",
        "siglip-flowers probe --model_name_or_path google/siglip2-base-patch16-224 --shots 16",
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, fit the grid, and print the metrics of the chosen head."""
    return run_command(COMMAND, _probe, argv, parse=_parse)


def _parse(argv: list[str]) -> tuple[ProbeArguments, DataArguments]:
    """Check the options, and what they name, before seconds of imports."""
    probe, data = COMMAND.parse(argv)
    check_sources(probe.model_name_or_path, data)
    return probe, data


def _probe(parsed: tuple[ProbeArguments, DataArguments]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from accelerate import PartialState

        from siglip_flowers.evaluation.run import format_metrics
        from siglip_flowers.probe.grid import fit_grid, make_run
        from siglip_flowers.runtime.devices import set_cpu_threads
        from siglip_flowers.training.run import run_training

    set_cpu_threads(None)
    run = make_run(*parsed)
    result = run_training(run, partial(fit_grid, run))
    if PartialState().is_main_process:
        print(escape_unprintable(result.description))
        print(format_metrics(result.metrics))
        print(f"Everything is in {result.output_dir}.")
