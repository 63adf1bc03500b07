"""Compare two losses as ways to fine-tune: ``siglip-flowers experiment``."""

import shlex

from siglip_flowers.base.errors import InputError
from siglip_flowers.commands.entry import Command, name_program, refuse_launch, run_command
from siglip_flowers.experiment.options import PARTS, ExperimentArguments
from siglip_flowers.runtime.preemption import defer_signals

COMMAND = Command(
    name_program("experiment"),
    "Tune and train every arm of a comparison of two losses, and write a table, figures and a "
    "conclusion. The same command resumes it, also in a clone that has its records.",
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
    refuse_launch("experiment")
    return options, f"{COMMAND.prog} {shlex.join(argv)}"


def _run(parsed: tuple[ExperimentArguments, str]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from siglip_flowers.experiment import runs
        from siglip_flowers.experiment.analysis import analyze
        from siglip_flowers.experiment.plan import Plan
        from siglip_flowers.experiment.report import write_report

    options, command = parsed
    runs.check_runs(options)
    runs.claim_directory(options)
    plan = Plan(options)
    conclusion: list[str] = []
    for part in PARTS:
        if part in options.parts:
            runs.execute_part(plan, part)
        elif not plan.is_finished(part):
            if set(options.parts) & set(PARTS[PARTS.index(part) :]):
                raise InputError(f"The part {part} is not finished. Add it to --parts.")
            break
        # After the others, and before those that are missing, which may fail.
        if part == "others" or (part == "claim" and not plan.is_finished("others")):
            conclusion = write_report(plan, analyze(plan), command)
    if not conclusion:
        print("There is no conclusion until the part claim is finished.")
        return
    print(*conclusion, sep="\n")
    print(f"Everything is in {options.directory}; begin with {options.directory / 'table.md'}.")
