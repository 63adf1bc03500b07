"""Fine-tune a SigLIP encoder into a classifier: ``train.py`` and ``siglip-flowers train``."""

import os
from shlex import quote
from typing import TYPE_CHECKING, Any

from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.commands.entry import Command, name_call, name_program, run_command
from siglip_flowers.commands.main import (
    list_extension_options,
    list_extension_rules,
    load_extensions,
)
from siglip_flowers.commands.models import check_sources
from siglip_flowers.config import (
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    TrainingOptions,
)
from siglip_flowers.config.parsing import is_first_process
from siglip_flowers.config.rules import TRAIN_RULES
from siglip_flowers.runtime.preemption import defer_signals

if TYPE_CHECKING:
    from siglip_flowers.training.run import RunResult

KINDS = (DataArguments, ModelArguments, TrainingOptions, AugmentationArguments)
_PROGRAM = name_program("train")
COMMAND = Command(
    _PROGRAM,
    "Fine-tune a SigLIP vision encoder into an image classifier.",
    (*KINDS, *list_extension_options("train")),
    (*TRAIN_RULES, *list_extension_rules("train")),
    (
        f"{name_call(_PROGRAM)} --data_dir my-images --output_dir results/my-run",
        f"{name_call(_PROGRAM)} --config lora --num_train_epochs 20",
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, train, and print the metrics table."""
    return run_command(COMMAND, _train, argv, parse=_parse, resumes=True)


def _parse(argv: list[str]) -> tuple[Any, ...]:
    """Check the options, and what they name, before seconds of imports."""
    data, model, *others = COMMAND.parse(argv)
    check_sources(model.model_name_or_path, data)
    return data, model, *others


def _train(parsed: tuple[Any, ...]) -> None:
    # See _run.
    with defer_signals():
        from accelerate import PartialState

        from siglip_flowers.evaluation.run import format_metrics
        from siglip_flowers.runtime.devices import set_cpu_threads

    set_cpu_threads(None)
    result = _run(parsed)
    if PartialState().is_main_process:
        print(escape_unprintable(result.description))
        print(format_metrics(result.metrics))
        print(*result.notes, sep="\n", end="\n" if result.notes else "")
        program = name_call(COMMAND.prog).replace("train", "eval")
        print(
            f"Everything is in {result.output_dir}; evaluate again with: "
            f"{program} --model {quote((result.output_dir / 'model').as_posix())} --split test"
        )


def train(*, config: str | os.PathLike[str] | None = None, **options: Any) -> "RunResult":
    """Fine-tune a classifier as ``train.py`` does, and return its directory and its metrics.

    Progress is printed. No handler of signals is installed and the process is left as it is, except
    that the random generators are seeded, that ``full_determinism`` stays on, as with any
    ``Trainer``, and that ``huggingface_hub`` stays offline for a while if the Hub did not answer.

    Args:
        config: As ``--config``: a YAML file, or the name of a shipped configuration.
        options: Those of ``train.py`` by name, such as ``data_dir="my-images"``.

    Raises:
        InputError: An option is unknown or cannot be carried out; nothing was written.
        RunError: Something failed on the way; the same call resumes the run.
    """
    return _run(COMMAND.build(options, config))


def _run(parsed: tuple[Any, ...]) -> "RunResult":
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from accelerate import PartialState

        from siglip_flowers.config.training import SiglipTrainingArguments
        from siglip_flowers.training.build import RunArguments
        from siglip_flowers.training.run import run_training

    data, model, options, augmentation, *own = parsed
    training = SiglipTrainingArguments(**vars(options))
    arguments = RunArguments(data, augmentation, model, training)
    extensions = load_extensions(own)
    if is_first_process():
        for extension in extensions:
            extension.check(arguments)
    result = run_training(arguments)
    if PartialState().is_main_process:
        for extension in extensions:
            extension.finish(arguments)
    return result
