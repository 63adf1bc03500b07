"""Fine-tune a SigLIP encoder into a classifier: ``train.py`` and ``siglip-flowers train``."""

import sys

from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.commands.entry import run_command
from siglip_flowers.commands.main import (
    list_extension_options,
    list_extension_rules,
    load_extensions,
)
from siglip_flowers.config import (
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    make_training_options,
)
from siglip_flowers.config.parsing import check_command_line, is_first_process, parse_arguments
from siglip_flowers.config.rules import check_rules, merge_options
from siglip_flowers.runtime.preemption import defer_signals
from siglip_flowers.training.deepspeed import check_deepspeed

PROG = "train.py"
DESCRIPTION = "Fine-tune a SigLIP vision encoder into an image classifier."
OTHER_KINDS = (DataArguments, AugmentationArguments, ModelArguments)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, train, and print the metrics table."""
    given = sys.argv[1:] if argv is None else argv
    return run_command(PROG, lambda: _train(given), check=lambda: _check(given), goes_on=True)


def _check(argv: list[str]) -> None:
    check_deepspeed()
    features = list_extension_options("train")
    kinds = (*OTHER_KINDS, make_training_options(), *features)
    check_command_line(kinds, argv, prog=PROG, description=DESCRIPTION)


def _train(argv: list[str]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from accelerate import PartialState

        from siglip_flowers.config.training import SiglipTrainingArguments
        from siglip_flowers.evaluation.tables import format_metrics
        from siglip_flowers.training.build import RunArguments
        from siglip_flowers.training.run import run_training

    core = (*OTHER_KINDS, SiglipTrainingArguments)
    kinds = (*core, *list_extension_options("train"))
    parsed = parse_arguments(kinds, argv, prog=PROG, description=DESCRIPTION)
    check_rules(list_extension_rules("train"), merge_options(*parsed))
    arguments = RunArguments(*parsed[: len(core)])
    extensions = load_extensions("train", parsed[len(core) :])
    if is_first_process():
        for extension in extensions:
            extension.check(arguments)
    result = run_training(arguments)
    if PartialState().is_main_process:
        print(escape_unprintable(result.description))
        print(format_metrics(result.metrics))
        print(
            f"Everything is in {result.output_dir}; evaluate again with: "
            f"python eval.py --model {result.output_dir / 'model'} --split test"
        )
        for extension in extensions:
            extension.finish(arguments)
