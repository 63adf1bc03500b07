"""The options of ``eval.py`` that read finished runs instead of evaluating a model."""

from dataclasses import dataclass

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.fields import option
from siglip_flowers.config.rules import Rule


@dataclass
class CompareArguments:
    """Which finished runs to compare or to rank."""

    compare: list[str] = option(
        [],
        "Compare finished runs instead: two or more directories (or predictions files) with "
        "predictions of the same images; each is compared with the first.",
        path=True,
    )
    leaderboard: str | None = option(
        None,
        "Rank all runs below this directory instead; results if none is named.",
        nargs="?",
        const="results",
        path=True,
    )

    def __post_init__(self) -> None:
        if len(self.compare) == 1:
            raise InputError(
                f"--compare names one run, {self.compare[0]}. Name at least two: each is compared "
                "with the first."
            )


EXTENDS = {"eval": CompareArguments}
_OF_A_MODEL = ("model", "zero_shot", "report", "robustness", "tta", "data_dir", "dataset_name")
RULES = (
    Rule(
        lambda options: bool(options.compare) and options.leaderboard is not None,
        "--compare and --leaderboard cannot be combined. Give one of them.",
        "--compare a b --leaderboard results",
    ),
    Rule(
        lambda options: (
            bool(options.compare or options.leaderboard)
            and any(
                getattr(options, name, None) not in (None, False, "none") for name in _OF_A_MODEL
            )
        ),
        "--compare and --leaderboard read finished runs, which excludes --model, --zero_shot, "
        "--report, --robustness, --tta and data; remove them.",
        "--compare a b --model c",
    ),
)
