"""Evaluate a saved classifier: ``eval.py`` and ``siglip-flowers eval``."""

import shlex
from pathlib import Path
from typing import Any

from siglip_flowers.base.files import CONFIG_FILE
from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.commands.entry import Command, name_program, run_command
from siglip_flowers.commands.main import (
    list_extension_options,
    list_extension_rules,
    load_extensions,
)
from siglip_flowers.commands.models import find_model, read_data_defaults
from siglip_flowers.config import DataArguments, EvaluationArguments
from siglip_flowers.config.rules import EVAL_RULES
from siglip_flowers.runtime.preemption import defer_signals

COMMAND = Command(
    name_program("eval"),
    "Evaluate a classifier on a split and print its metrics.",
    (EvaluationArguments, DataArguments, *list_extension_options("eval")),
    (*EVAL_RULES, *list_extension_rules("eval")),
    (
        "python eval.py --model results/my-run --split test",
        "python eval.py --model results/my-run --data_dir other-images --output_dir results/other",
        "python eval.py --zero_shot --model_name_or_path google/siglip2-base-patch16-224",
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, evaluate, and print the metrics table."""
    return run_command(COMMAND, _evaluate, argv, parse=lambda given: (given, COMMAND.parse(given)))


def _evaluate(parsed: tuple[list[str], tuple[Any, ...]]) -> None:
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
        from siglip_flowers.runtime.devices import set_cpu_threads

    argv, (options, data_arguments, *asked) = parsed
    extensions = load_extensions("eval", asked)
    if any(extension.run_instead(options, data_arguments) for extension in extensions):
        return
    set_cpu_threads(None)
    if not options.zero_shot:
        options.model = find_model(options.model)
        # The data options default to those that the model was trained with.
        config = Path(options.model).parent / CONFIG_FILE
        data_arguments = COMMAND.parse(argv, read_data_defaults(config, data_arguments))[1]
    command = f"python eval.py {shlex.join(argv)}"
    evaluation = prepare_evaluation(options, data_arguments, command)
    run_evaluation(evaluation, extensions)
    if not PartialState().is_main_process:
        return
    assert evaluation.result is not None
    print(escape_unprintable(evaluation.title))
    print(f"Computed in {evaluation.options.dtype} on {evaluation.environment['device']}.")
    metrics = {options.split: list_metrics(evaluation.result)}
    print(format_metrics(metrics, evaluation.intervals))
    if not options.zero_shot:
        for line in read_choice(Path(options.model).parent):
            print(escape_unprintable(line))
    if options.output_dir is not None:
        write_evaluation(evaluation, Path(options.output_dir))
    for extension in extensions:
        extension.write(evaluation)
