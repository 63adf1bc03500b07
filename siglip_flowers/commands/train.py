"""Fine-tune a SigLIP encoder into a classifier: ``train.py`` and ``siglip-flowers-train``."""

import sys

from accelerate import PartialState

from siglip_flowers.commands.entry import run_command
from siglip_flowers.config import (
    AugmentationArguments,
    DataArguments,
    FlowersTrainingArguments,
    ModelArguments,
)
from siglip_flowers.evaluation.tables import format_metrics
from siglip_flowers.parsing import parse_arguments
from siglip_flowers.training.build import RunArguments
from siglip_flowers.training.run import run_training


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, train, and print the metrics table."""
    return run_command("train.py", lambda: _train(sys.argv[1:] if argv is None else argv))


def _train(argv: list[str]) -> None:
    parsed = parse_arguments(
        (DataArguments, AugmentationArguments, ModelArguments, FlowersTrainingArguments),
        argv,
        prog="train.py",
        description="Fine-tune a SigLIP vision encoder into an image classifier.",
    )
    result = run_training(RunArguments(*parsed))
    if PartialState().is_main_process:
        print(result.description)
        print(format_metrics(result.metrics))
        print(
            f"Everything is in {result.output_dir}; evaluate again with: "
            f"python eval.py --model {result.output_dir / 'model'} --split test"
        )
