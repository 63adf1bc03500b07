"""Options of ``siglip-flowers experiment``: arms, regimes, seeds, and the trials each arm gets."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siglip_flowers.base.errors import InputError
from siglip_flowers.config import (
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    TrainingOptions,
)
from siglip_flowers.config.fields import check_choice, check_fields, not_negative, option, positive
from siglip_flowers.config.parsing import parse_arguments
from siglip_flowers.config.rules import TRAIN_RULES

# The experiment decides these, so that arms differ in nothing that they do not name.
RESERVED = {
    "output_dir": "output_dir of the experiment",
    "overwrite_output_dir": "output_dir of the experiment",
    "seed": "seeds",
    "shots_seed": "seeds",
    "data_seed": "seeds",
    "learning_rate": "learning_rates",
    "head_learning_rate": "head_learning_rate_factor",
}


@dataclass
class ExperimentArguments:
    """What is compared, and how often."""

    name: str = option("", "Names the default output directory and the titles.")
    arms: dict[str, Any] = option(
        {}, "Names of arms, each with the options of train.py in which it differs."
    )
    regimes: dict[str, Any] = option(
        {}, "Names of regimes, each with options of train.py, such as shots and max_steps."
    )
    base: dict[str, Any] = option({}, "Options of train.py that all runs share.")
    baseline: str = option("", "The arm that the others are compared to.")
    siglip_arm: str = option("", "The arm that the claim is about.")
    claim_regime: str = option("", "The regime in which the claim is tested and curves are drawn.")
    contrasts: dict[str, Any] = option(
        {}, "Names of contrasts, such as loss, head and interaction, each with a weight per arm."
    )
    tuning_regime: str = option("", "The regime in which learning rates are chosen.")
    learning_rates: list[float] = option(
        [], "Rates that each arm tries in --tuning_regime, with the first seed.", positive
    )
    head_learning_rate_factor: float = option(
        1.0, "The learning rate of heads, as a multiple of the encoder's.", positive
    )
    seeds: list[int] = option(
        [],
        "Each decides the few-shot images, the initial weights and the order of images of a run.",
        not_negative,
    )
    steady_part: list[float] = option(
        [0.0, 1.0],
        "Shares of the training between which steadiness is measured: where the "
        "learning rate is constant.",
    )
    output_dir: str | None = option(
        None, "Where everything is written; default: results/experiments/NAME.", path="output"
    )
    workers: int | None = option(
        None,
        "Parallel runs, each in its own process; default: one per GPU, else 1. With 0, runs share "
        "the command's process.",
        not_negative,
    )

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise InputError(f"--name is {self.name!r}; use letters, digits, '-', '_' and '.'.")
        self.arms = _check_groups("arms", self.arms)
        self.regimes = _check_groups("regimes", self.regimes)
        _check_options("base", self.base)
        for name in ("baseline", "siglip_arm"):
            check_choice(name, getattr(self, name), tuple(self.arms))
        for name in ("claim_regime", "tuning_regime"):
            check_choice(name, getattr(self, name), tuple(self.regimes))
        for name, weights in self.contrasts.items():
            if not isinstance(weights, dict) or not weights.keys() <= self.arms.keys():
                raise InputError(f"--contrasts has {name}: {weights}; give a weight per arm.")
        if self.siglip_arm == self.baseline:
            raise InputError(f"--siglip_arm and --baseline are both {self.baseline!r}.")
        for name in ("learning_rates", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"--{name} is {values}; give at least one value, each once.")
        check_fields(self)
        if len(self.steady_part) != 2 or not 0 <= self.steady_part[0] < self.steady_part[1] <= 1:
            raise InputError(f"--steady_part is {self.steady_part}; give two shares from 0 to 1.")

    @property
    def directory(self) -> Path:
        """Where everything is written."""
        return Path(self.output_dir or f"results/experiments/{self.name}")


def _check_groups(key: str, groups: dict[Any, Any]) -> dict[str, dict[str, Any]]:
    checked = {str(name): _check_options(key, options or {}) for name, options in groups.items()}
    if not checked or len({to_folder(name) for name in checked}) < len(checked):
        raise InputError(
            f"--{key} is {', '.join(checked) or 'empty'}; give one name or more, which differ in "
            "letters and digits."
        )
    return checked


def _check_options(key: str, options: Any) -> dict[str, Any]:
    if not isinstance(options, dict):
        raise InputError(f"--{key} contains {options!r}; give a mapping of train.py's options.")
    for name in options:
        if name in RESERVED:
            raise InputError(f"--{key} sets {name!r}, which {RESERVED[name]} decides; drop it.")
    return options


def to_folder(name: str) -> str:
    """Return a name that any file system takes."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "-"


def check_arms(options: ExperimentArguments) -> None:
    """Check the options of every arm in every regime, as far as that needs no torch.

    Raises:
        InputError: An unknown option, a wrong type, or a value or combination that is refused.
    """
    kinds = (DataArguments, AugmentationArguments, ModelArguments, TrainingOptions)
    for arm, own in options.arms.items():
        for regime, shared in options.regimes.items():
            values = {**options.base, **shared, **own}
            try:
                parse_arguments(kinds, [], defaults=values, rules=TRAIN_RULES)
            except InputError as error:
                reason = str(error).removeprefix("In the defaults: ")
                raise InputError(f"The arm {arm!r} in the regime {regime!r}: {reason}") from error
