"""Compare arms over regimes and seeds: ``siglip-flowers experiment``."""

import os
import shlex

from siglip_flowers.base.errors import InputError
from siglip_flowers.commands.entry import Command, name_program, run_command
from siglip_flowers.experiment.options import ExperimentArguments, check_arms
from siglip_flowers.runtime.preemption import defer_signals

COMMAND = Command(
    name_program("experiment"),
    "Train every arm in every regime with every seed, and write a table, plots and a conclusion. "
    "The same command resumes a stopped experiment.",
    (ExperimentArguments,),
    examples=(
        "siglip-flowers experiment --config configs/experiment_siglip_vs_baseline.yaml --workers 2",
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Do the runs that are missing, then analyze all of them; return the exit code."""
    return run_command(COMMAND, _run, argv, parse=_parse, resumes=True)


def _parse(argv: list[str]) -> tuple[ExperimentArguments, str]:
    """Return the options, and the command line for the report."""
    options: ExperimentArguments = COMMAND.parse(argv)[0]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "The experiment starts its own processes (--workers); use python, not accelerate "
            "launch."
        )
    check_arms(options)
    return options, f"{COMMAND.prog} {shlex.join(argv)}"


def _run(parsed: tuple[ExperimentArguments, str]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from filelock import FileLock, Timeout

        from siglip_flowers.experiment.analysis import analyze
        from siglip_flowers.experiment.report import write_report
        from siglip_flowers.experiment.runs import check_runs, claim_directory, execute_runs

    options, command = parsed
    check_runs(options)
    options.directory.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(options.directory / ".lock", timeout=0):
            claim_directory(options)
            execute_runs(options)
            sentences = write_report(options, analyze(options), command)
    except Timeout as error:
        raise InputError(
            f"Another command is running the experiment in {options.directory}."
        ) from error
    print("\n".join(sentences))
    print(f"Everything is in {options.directory}; begin with {options.directory / 'table.md'}.")
