"""Search for the options that train best: ``siglip-flowers search``."""

from importlib.util import find_spec

from siglip_flowers.base.errors import InputError
from siglip_flowers.commands.entry import Command, name_program, refuse_launch, run_command
from siglip_flowers.config import (
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    TrainingOptions,
)
from siglip_flowers.runtime.preemption import defer_signals
from siglip_flowers.search.options import DEFAULTS, RULES, SearchArguments

COMMAND = Command(
    name_program("search"),
    "Try options of train.py, each trial a training run scored on the validation split, and write "
    "the best ones to a configuration for train.py.",
    (SearchArguments, DataArguments, AugmentationArguments, ModelArguments, TrainingOptions),
    RULES,
    (
        "siglip-flowers search --config configs/search.yaml",
        "siglip-flowers search --config configs/nano_64px.yaml --search_space "
        "'{pooling: [map, mean]}'",
    ),
    DEFAULTS,
)


def main(argv: list[str] | None = None) -> int:
    """Run the missing trials and print the best one; return the exit code."""
    return run_command(COMMAND, _search, argv, parse=_parse, resumes=True)


def _parse(argv: list[str]) -> list[str]:
    """Check a command line and return it; reading it in full imports torch."""
    COMMAND.parse(argv)
    refuse_launch("search")
    if find_spec("optuna") is None:
        raise InputError(
            "The search requires the package optuna; install it with 'pip install optuna'."
        )
    return argv


def _search(argv: list[str]) -> None:
    # Takes seconds, which --help and bad usage do not need.
    with defer_signals():
        from siglip_flowers.search.study import run_search

    best = run_search(argv)
    print(f"The best trial is in {best}; train it with: siglip-flowers train --config {best}")
