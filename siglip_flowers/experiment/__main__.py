"""Compare arms over regimes and seeds.

python -m siglip_flowers.experiment --config configs/experiment_siglip_vs_baseline.yaml

trains every arm in every regime with every seed and writes table, plots and conclusion to
results/experiments/NAME/. A stopped experiment resumes with the same command.
"""

import argparse
import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import IO, Any, NoReturn

from siglip_flowers.base.errors import InputError
from siglip_flowers.commands.entry import run_command
from siglip_flowers.config.parsing import is_first_process
from siglip_flowers.experiment.settings import (
    ExperimentSettings,
    check_arms,
    claim_directory,
    read_settings,
)
from siglip_flowers.runtime.preemption import defer_signals


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[0].upper()}{message[1:].rstrip('.')}; see --help.")

    def print_help(self, file: IO[str] | None = None) -> None:  # type: ignore[override]
        if is_first_process():
            super().print_help(file)


def main(argv: list[str] | None = None) -> int:
    """Do the runs that are missing, then analyze all of them; return the exit code."""
    given = sys.argv[1:] if argv is None else argv
    return run_command(
        "experiment", lambda: _run(*_parse(given)), check=lambda: _check(given), goes_on=True
    )


def _check(argv: list[str]) -> None:
    check_arms(_parse(argv)[0])


def _parse(argv: list[str]) -> tuple[ExperimentSettings, str]:
    """Return the experiment and the name of its file."""
    parser = _Parser(prog="python -m siglip_flowers.experiment", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="The experiment, in YAML.")
    parser.add_argument("--output_dir", help="In place of the file's output_dir.")
    parser.add_argument("--workers", type=int, help="In place of the file's workers.")
    options = parser.parse_args(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "The experiment starts its own processes; call it with python, not accelerate launch."
        )
    settings = read_settings(Path(options.config))
    changes: dict[str, Any] = {}
    if options.output_dir is not None:
        changes["output_dir"] = options.output_dir
    if options.workers is not None:
        if options.workers < 0:
            raise InputError(f"--workers is {options.workers}; use a whole number from 0.")
        changes["workers"] = options.workers
    return dataclasses.replace(settings, **changes), options.config


def _run(settings: ExperimentSettings, config_file: str) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from filelock import FileLock, Timeout

        from siglip_flowers.experiment.analysis import analyze
        from siglip_flowers.experiment.plan import check_runs
        from siglip_flowers.experiment.report import write_report
        from siglip_flowers.experiment.runner import execute_runs

    check_runs(settings)
    settings.directory.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(settings.directory / ".lock", timeout=0):
            claim_directory(settings)
            execute_runs(settings)
            cells, comparisons = analyze(settings)
            command = f"python -m siglip_flowers.experiment --config {config_file}"
            sentences = write_report(settings, cells, comparisons, command)
    except Timeout as error:
        raise InputError(
            f"Another command is at work on the experiment in {settings.directory}; wait for it."
        ) from error
    print("\n".join(sentences))
    print(f"Everything is in {settings.directory}; begin with {settings.directory / 'table.md'}.")


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
