"""Evaluate a saved classifier: ``eval.py`` and ``siglip-flowers eval``."""

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from siglip_flowers.base.paths import find_run
from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.commands.entry import Command, name_call, name_program, run_command
from siglip_flowers.commands.main import (
    list_extension_options,
    list_extension_rules,
    load_extensions,
)
from siglip_flowers.commands.models import check_sources, follow_run
from siglip_flowers.config import DataArguments, EvaluationArguments
from siglip_flowers.config.rules import EVAL_RULES
from siglip_flowers.runtime.preemption import defer_signals

_PROGRAM = name_program("eval")
_CALL = name_call(_PROGRAM)
COMMAND = Command(
    _PROGRAM,
    "Evaluate a classifier on a split and print its metrics.",
    (EvaluationArguments, DataArguments, *list_extension_options("eval")),
    (*EVAL_RULES, *list_extension_rules("eval")),
    (
        f"{_CALL} --model results/my-run --split test",
        f"{_CALL} --model results/my-run --data_dir other-images --output_dir results/other",
        f"{_CALL} --zero_shot --model_name_or_path google/siglip2-base-patch16-224",
    ),
)


@dataclass(frozen=True)
class EvaluationResult:
    """What :func:`evaluate` returns.

    Attributes:
        metrics: Of the split: ``n``, shares in [0, 1] and losses, by name.
        intervals: The two ends of the 95% interval of a metric, by its name.
        output_dir: Where files were written; the directory of the run without --output_dir.
        description: Model and data in a line.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    output_dir: Path | None
    description: str


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, evaluate, and print the metrics table."""
    return run_command(COMMAND, _evaluate, argv, parse=_parse)


def evaluate(
    *, config: str | os.PathLike[str] | None = None, **options: Any
) -> EvaluationResult | None:
    """Evaluate a classifier as ``eval.py`` does, and return its metrics.

    The process is left as it is: no handler of signals is installed.

    Args:
        config: As ``--config``.
        options: Those of ``eval.py`` by name, such as ``model="results/my-run"``.

    Returns:
        The metrics; None for options that do something else, such as ``compare``.

    Raises:
        InputError: An option is unknown or cannot be carried out.
        RunError: Something failed on the way.
    """
    call = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return _run(partial(COMMAND.build, options, config), f"siglip_flowers.evaluate({call})")


def _parse(argv: list[str]) -> list[str]:
    """Check the options, and what they name, before seconds of imports."""
    options, data, *_ = COMMAND.parse(argv)
    check_sources(options.model_name_or_path if options.zero_shot else options.model, data)
    return argv


def _evaluate(argv: list[str]) -> None:
    # See _run.
    with defer_signals():
        from siglip_flowers.runtime.devices import set_cpu_threads

    set_cpu_threads(None)
    _run(
        lambda defaults=None: COMMAND.parse(argv, defaults),
        f"{_CALL} {shlex.join(argv)}",
        show=True,
    )


def _run(
    read: Callable[..., tuple[Any, ...]], command: str, *, show: bool = False
) -> EvaluationResult | None:
    """Evaluate, and write the requested files.

    Args:
        read: Returns the options; takes ``defaults`` as :class:`Command` does.
        command: What was typed, for reports.
        show: Print the table.
    """
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from accelerate import PartialState

        from siglip_flowers.evaluation.run import (
            format_metrics,
            list_metrics,
            prepare_evaluation,
            read_choice,
            run_evaluation,
            write_evaluation,
        )

    options, data_arguments, *own = read()
    extensions = load_extensions(own)
    if any(extension.run_instead(options) for extension in extensions):
        return None
    output_dir, run = None if options.output_dir is None else Path(options.output_dir), None
    if not options.zero_shot:
        data_arguments = follow_run(options, data_arguments, read)
        run = find_run(options.model)
        output_dir = output_dir or run
    evaluation = prepare_evaluation(options, data_arguments, command)
    run_evaluation(evaluation, extensions)
    assert evaluation.result is not None
    metrics = list_metrics(evaluation.result)
    if PartialState().is_main_process:
        if show:
            print(escape_unprintable(evaluation.title))
            print(f"Computed in {options.dtype} on {evaluation.environment['device']}.")
            print(format_metrics({options.split: metrics}, evaluation.intervals))
            if run is not None:
                for line in read_choice(run):
                    print(escape_unprintable(line))
        if options.output_dir is not None:
            write_evaluation(evaluation, Path(options.output_dir))
        for extension in extensions:
            extension.write(evaluation)
    return EvaluationResult(metrics, evaluation.intervals, output_dir, evaluation.title)
