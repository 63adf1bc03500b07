"""Evaluate a saved classifier: ``eval.py`` and ``siglip-flowers-eval``."""

import shlex
import sys
from pathlib import Path
from typing import Any

from siglip_flowers.base.run_dir import CONFIG_FILE
from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.commands.entry import run_command
from siglip_flowers.commands.main import (
    list_extension_options,
    list_extension_rules,
    load_extensions,
)
from siglip_flowers.commands.models import find_model, read_data_defaults
from siglip_flowers.config import DataArguments, EvaluationArguments
from siglip_flowers.config.parsing import parse_arguments
from siglip_flowers.config.rules import check_rules, merge_options
from siglip_flowers.runtime.preemption import defer_signals

PROG = "eval.py"
DESCRIPTION = "Evaluate a classifier on a split and print its metrics."
KINDS = (EvaluationArguments, DataArguments, *list_extension_options("eval"))


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, evaluate, and print the metrics table."""
    given = sys.argv[1:] if argv is None else argv
    return run_command(PROG, lambda: _evaluate(given), check=lambda: _check(given))


def _check(argv: list[str]) -> None:
    _parse(argv)


def _parse(argv: list[str]) -> tuple[Any, ...]:
    """Return an instance of each of KINDS."""
    parsed = parse_arguments(KINDS, argv, prog=PROG, description=DESCRIPTION)
    check_rules(list_extension_rules("eval"), merge_options(*parsed))
    return parsed


def _evaluate(argv: list[str]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from accelerate import PartialState

        from siglip_flowers.evaluation.run import (
            prepare_evaluation,
            run_evaluation,
            write_evaluation,
        )
        from siglip_flowers.evaluation.tables import format_metrics
        from siglip_flowers.training.compute import set_cpu_threads

    options, data_arguments, *asked = _parse(argv)
    extensions = load_extensions("eval", asked)
    if any(extension.run_instead(options, data_arguments) for extension in extensions):
        return
    set_cpu_threads(None)
    if not options.zero_shot:
        options.model = find_model(options.model)
        data_arguments = _follow_run(options.model, argv, data_arguments)
    command = f"python eval.py {shlex.join(argv)}"
    evaluation = prepare_evaluation(options, data_arguments, command)
    run_evaluation(evaluation, extensions)
    if not PartialState().is_main_process:
        return
    assert evaluation.result is not None
    metrics = {"n": len(evaluation.result.labels), **evaluation.result.metrics}
    print(escape_unprintable(evaluation.title))
    print(format_metrics({options.split: metrics}))
    if options.output_dir is not None:
        write_evaluation(evaluation, Path(options.output_dir))
    for extension in extensions:
        extension.write(evaluation)


def _follow_run(model: str, argv: list[str], given: DataArguments) -> DataArguments:
    """Return the data options, which default to those that the model was trained with."""
    defaults = read_data_defaults(Path(model).parent / CONFIG_FILE, given)
    parsed = parse_arguments(KINDS, argv, prog=PROG, description=DESCRIPTION, defaults=defaults)
    arguments: DataArguments = parsed[1]
    return arguments
