"""What an experiment consists of: arms, regimes, seeds, and the trials each arm gets."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import write_text
from siglip_flowers.config import (
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    TrainingOptions,
)
from siglip_flowers.config.fields import suggest_nearest
from siglip_flowers.config.parsing import parse_arguments, read_yaml

SETTINGS_FILE = "experiment.yaml"
# And the training arguments, which import torch.
LIGHT_KINDS = (DataArguments, AugmentationArguments, ModelArguments)
# The experiment decides these, so that arms differ in nothing that they do not name.
RESERVED = {
    "output_dir": "output_dir of the experiment",
    "overwrite_output_dir": "a new output_dir of the experiment",
    "seed": "seeds",
    "shots_seed": "seeds",
    "data_seed": "seeds",
    "learning_rate": "learning_rates",
    "head_learning_rate": "head_learning_rate_factor",
}
REQUIRED = (
    *("name", "arms", "regimes", "baseline", "siglip_arm"),
    *("learning_rates", "tuning_regime", "claim_regime", "seeds"),
)
# Keys that name one of another key's.
CHOICES = {
    "baseline": "arms",
    "siglip_arm": "arms",
    "tuning_regime": "regimes",
    "claim_regime": "regimes",
}
# May differ when an experiment is resumed; of these, only additions.
FREE, GROWING = ("workers", "output_dir"), ("arms", "regimes", "seeds")

Options = dict[str, Any]


@dataclass(frozen=True)
class ExperimentSettings:
    """An experiment; each field is a key of its YAML file.

    Attributes:
        name: Names the output directory and the titles.
        arms: Arm name to the options of ``train.py`` in which it differs.
        regimes: Label to options, in the order of the plots; ``shots`` and the budget, say.
        baseline: The arm that the others are compared to.
        siglip_arm: The arm that represents the method in the loss plots and the conclusion.
        learning_rates: The trials that each arm gets on ``tuning_regime`` with the first seed.
        tuning_regime: A regime's label.
        claim_regime: The regime in which the claim is compared and curves are drawn.
        seeds: Each decides the few-shot images, the initial weights and the order of a run.
        base: Options of ``train.py`` that all runs share.
        head_learning_rate_factor: A head learns at this multiple of the learning rate.
        output_dir: Default: results/experiments/NAME.
        workers: Runs at a time; default: one a CUDA device, else 1. With 0 they run one by one in
            the command's own process.
    """

    name: str
    arms: dict[str, Options]
    regimes: dict[str, Options]
    baseline: str
    siglip_arm: str
    learning_rates: list[float]
    tuning_regime: str
    claim_regime: str
    seeds: list[int]
    base: Options = field(default_factory=dict)
    head_learning_rate_factor: float = 1.0
    output_dir: str = ""
    workers: int | None = None

    @property
    def directory(self) -> Path:
        """Where everything is written."""
        return Path(self.output_dir or f"results/experiments/{self.name}")


def read_settings(path: Path) -> ExperimentSettings:
    """Read and check an experiment's YAML file.

    Raises:
        InputError: Unreadable file, unknown or missing key, or an invalid value.
    """
    values = read_yaml(path)
    fields = {item.name: item for item in dataclasses.fields(ExperimentSettings)}
    for key in values:
        if key not in fields:
            nearest = suggest_nearest(str(key), set(fields))
            raise InputError(f"Unknown key {key!r} in {path}{nearest}")
    for key in REQUIRED:
        if key not in values:
            raise InputError(f"The experiment {path} has no {key!r}; add it.")
    try:
        return _check(dict(values))
    except InputError as error:
        raise InputError(f"In {path}: {error}") from error


def _check(values: dict[str, Any]) -> ExperimentSettings:
    name = values["name"] = str(values["name"])
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"name is {name!r}; use letters, digits, '-', '_' and '.' only.")
    values["base"] = _check_options(values.get("base") or {}, "base")
    for key in ("arms", "regimes"):
        values[key] = _check_groups(values[key], key)
    for key, group in CHOICES.items():
        values[key] = str(values[key])
        if values[key] not in values[group]:
            raise InputError(
                f"{key} is {values[key]!r}; choose one of the {group}: {', '.join(values[group])}."
            )
    if values["siglip_arm"] == values["baseline"]:
        raise InputError(f"siglip_arm and baseline are both {values['baseline']!r}; compare two.")
    for key in ("learning_rates", "seeds"):
        items = values[key]
        if not isinstance(items, list) or not items or len(set(map(str, items))) < len(items):
            raise InputError(f"{key} is {items!r}; give a list of at least one value, each once.")
    values["learning_rates"] = sorted(
        _check_rate(rate, "learning_rates") for rate in values["learning_rates"]
    )
    factor = values.get("head_learning_rate_factor", 1.0)
    values["head_learning_rate_factor"] = _check_rate(factor, "head_learning_rate_factor")
    workers = values.get("workers")
    for key, numbers in (
        ("seeds", values["seeds"]),
        ("workers", [0 if workers is None else workers]),
    ):
        for number in numbers:
            if type(number) is not int or number < 0:
                raise InputError(f"{key} has the value {number!r}; use whole numbers from 0.")
    values["output_dir"] = str(values.get("output_dir") or "")
    return ExperimentSettings(**values)


def _check_groups(groups: Any, key: str) -> dict[str, Options]:
    if not isinstance(groups, dict) or not groups:
        raise InputError(f"{key} must be a mapping of names to options, with at least one name.")
    checked = {
        str(name): _check_options(options or {}, f"{key}, {name!r}")
        for name, options in groups.items()
    }
    folders: dict[str, str] = {}
    for name in checked:
        other = folders.setdefault(to_folder(name), name)
        if other != name:
            raise InputError(f"{key} {other!r} and {name!r} would share one folder; rename one.")
    return checked


def _check_options(options: Any, where: str) -> Options:
    if not isinstance(options, dict):
        raise InputError(f"{where} must be a mapping of train.py's options, not {options!r}.")
    known = _known_options()
    for key in options:
        if key in RESERVED:
            raise InputError(f"{where} sets {key!r}, which comes from {RESERVED[key]}; drop it.")
        if key not in known:
            raise InputError(
                f"{where} has the unknown key {key!r}{suggest_nearest(str(key), known)}"
            )
    return dict(options)


@functools.cache
def _known_options() -> set[str]:
    kinds = (*LIGHT_KINDS, TrainingOptions)
    return {item.name for kind in kinds for item in dataclasses.fields(kind)}


def check_arms(settings: ExperimentSettings) -> None:
    """Check the options of every arm in every regime, as far as that needs no torch.

    Raises:
        InputError: A wrong type or a value out of range.
    """
    kinds = (*LIGHT_KINDS, TrainingOptions)
    for arm, arm_options in settings.arms.items():
        for regime, regime_options in settings.regimes.items():
            with name_run(arm, regime):
                parse_arguments(
                    kinds,
                    [],
                    prog="experiment",
                    description="One run.",
                    defaults={**settings.base, **regime_options, **arm_options},
                )


@contextmanager
def name_run(arm: str, regime: str) -> Iterator[None]:
    """Name the arm and the regime in the InputError that the block raises."""
    try:
        yield
    except InputError as error:
        reason = str(error).removeprefix("In the defaults: ")
        raise InputError(f"The arm {arm!r} in the regime {regime!r}: {reason}") from error


def _check_rate(value: Any, key: str) -> float:
    try:
        # YAML reads 1e-3, which has no dot, as text.
        rate = float(value)
    except (TypeError, ValueError):
        rate = math.nan
    if not 0 < rate < math.inf:
        raise InputError(f"{key} holds {value!r}; use numbers greater than 0.")
    return rate


def to_folder(name: str) -> str:
    """Return a name that any file system takes."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "-"


def claim_directory(settings: ExperimentSettings) -> None:
    """Claim the output directory, or resume the same experiment in it.

    Raises:
        InputError: It holds an experiment of which more changed than additions.
    """
    path = settings.directory / SETTINGS_FILE
    now = dataclasses.asdict(settings)
    if path.is_file():
        before = read_yaml(path)
        for key, value in now.items():
            if key not in FREE and not _continues(key, before.get(key), value):
                raise InputError(
                    f"The experiment in {settings.directory} has other {key} ({before.get(key)}, "
                    f"now {value}); name another output_dir, or restore them (arms, regimes and "
                    "seeds may be added at the end)."
                )
    write_text(path, yaml.safe_dump(now, sort_keys=False, allow_unicode=True))


def _continues(key: str, before: Any, now: Any) -> bool:
    if key not in GROWING or type(before) is not type(now):
        return bool(before == now)
    if isinstance(now, list):
        return bool(now[: len(before)] == before)
    return list(now.items())[: len(before)] == list(before.items())
