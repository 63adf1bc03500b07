"""What a search tries: for each option a range of numbers or a list of values. Without torch."""

import itertools
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args

import yaml

from siglip_flowers.base.errors import InputError
from siglip_flowers.config import DataArguments
from siglip_flowers.config.parsing import YAML_ERRORS, suggest_nearest

Value: TypeAlias = bool | int | float | str | None
RANGE_KEYS = ("low", "high", "log", "step")
# Trials must be comparable, and are a search's own; each with the reason that a user reads.
COMPARISON = "it decides what is compared"
FIXED = {
    "output_dir": "every trial has its own",
    "overwrite_output_dir": "it concerns the search as a whole",
    "resume": "it concerns the search as a whole",
    "seed": "the best seed is luck",
    "data_seed": "the best seed is luck",
    "metric_for_best_model": COMPARISON,
    "greater_is_better": COMPARISON,
    "load_best_model_at_end": COMPARISON,
    "eval_strategy": COMPARISON,
    "wise_ft": "train.py chooses it on the validation split after training",
}
# Combinations of the other options that are tried before a value counts as never possible.
TRIED_COMBINATIONS = 32


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Value, ...]

    def list_corners(self) -> list[Value]:
        """Return the values, to check them."""
        return list(self.values)

    def holds(self, value: Any) -> bool:
        """Return whether a value can be drawn."""
        return value in self.values

    def suggest(self, trial: Any, name: str) -> Value:
        """Let the trial choose."""
        chosen: Value = trial.suggest_categorical(name, self.values)
        return chosen


@dataclass(frozen=True)
class Range:
    """A number from low to high, both included; on a log scale, or in steps."""

    low: float
    high: float
    log: bool
    step: float | None
    whole: bool

    def list_corners(self) -> list[Value]:
        """Return the two ends, to check them."""
        return [self.low, self.high]

    def holds(self, value: Any) -> bool:
        """Return whether a value can be drawn."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return self.low <= value <= self.high and math.isclose(steps, round(steps), abs_tol=1e-9)

    def suggest(self, trial: Any, name: str) -> Value:
        """Let the trial choose."""
        suggest = trial.suggest_int if self.whole else trial.suggest_float
        step = {"step": self.step} if self.step is not None else {}
        chosen: float = suggest(name, self.low, self.high, log=self.log, **step)
        return chosen


SearchSpace: TypeAlias = dict[str, Choice | Range]


def read_space(text: str, hints: dict[str, Any]) -> SearchSpace:
    """Read a search space.

    Args:
        text: A mapping in YAML or JSON.
        hints: The type of every option of ``train.py`` by its name.

    Raises:
        InputError: Unknown options, options that cannot be searched, or bad ranges or lists.
    """
    try:
        entries = yaml.safe_load(text)
    except YAML_ERRORS as error:
        raise InputError(
            f"--search_space is not valid YAML: {' '.join(str(error).split())}."
        ) from error
    if not isinstance(entries, dict) or not entries:
        raise InputError("--search_space must be a mapping of options to values, with one or more.")
    return {str(name): _read_entry(str(name), entry, hints) for name, entry in entries.items()}


def dump_space(space: SearchSpace) -> dict[str, Any]:
    """Return the mapping that :func:`read_space` reads, in plain values."""
    dumped: dict[str, Any] = {}
    for name, entry in space.items():
        if isinstance(entry, Choice):
            dumped[name] = list(entry.values)
        else:
            dumped[name] = {"low": entry.low, "high": entry.high}
            if entry.log:
                dumped[name]["log"] = True
            if entry.step is not None:
                dumped[name]["step"] = entry.step
    return dumped


def make_default_space(values: dict[str, Any]) -> SearchSpace:
    """Return the space to search where none is given, around a configuration's own rates."""
    space: SearchSpace = {}
    trains_encoder = values.get("trainable") != "head"
    if trains_encoder:
        space["learning_rate"] = _around(values["learning_rate"])
    space["head_learning_rate"] = _around(
        values.get("head_learning_rate") or values["learning_rate"]
    )
    space["weight_decay"] = Range(1e-3, 0.3, log=True, step=None, whole=False)
    space["warmup_steps"] = Range(0.0, 0.3, log=False, step=None, whole=False)
    if values.get("objective", "cross_entropy") == "cross_entropy":
        space["label_smoothing_factor"] = Range(0.0, 0.2, log=False, step=None, whole=False)
    if trains_encoder:
        space["layer_decay"] = Range(0.6, 1.0, log=False, step=None, whole=False)
    return space


def _around(rate: float) -> Range:
    # Rounded, or the ends are read as 2.9999999999999997e-05.
    low, high = (float(f"{rate * factor:.6g}") for factor in (0.1, 10))
    return Range(low, high, log=True, step=None, whole=False)


def find_start(space: SearchSpace, values: dict[str, Any]) -> dict[str, Value] | None:
    """Return the configuration's own values as a trial, or None where the space has not all."""
    start = {name: values.get(name) for name in space}
    # Unset, these have the effect of a number.
    if start.get("layer_decay", 1.0) is None:
        start["layer_decay"] = 1.0
    if start.get("head_learning_rate", 1.0) is None:
        start["head_learning_rate"] = values["learning_rate"]
    return start if all(entry.holds(start[name]) for name, entry in space.items()) else None


def refuse_impossible(space: SearchSpace, check: Callable[[dict[str, Value]], None]) -> None:
    """Refuse a space in which a value can never be tried, whatever the other options are.

    Args:
        space: The search space.
        check: Raises InputError for values of some or all options that cannot be carried out.

    Raises:
        InputError: A choice, or the end of a range, that fails with every combination of the other
            options that was tried: alone, and with some drawn at random.
    """
    for name, entry in space.items():
        for value in entry.list_corners():
            others = {key: other for key, other in space.items() if key != name}
            error = _find_error(({name: value},), check)
            if error is None:
                continue
            combined = ({**values, name: value} for values in _draw_corners(others))
            if not others or _find_error(combined, check) is not None:
                reason = str(error).removeprefix("In the defaults: ")
                shown = format_value(value)
                raise InputError(f"The search space of {name} holds {shown}: {reason}") from error


def _find_error(
    tried: Iterable[dict[str, Value]], check: Callable[[dict[str, Value]], None]
) -> InputError | None:
    """Return None where one combination passes, else the error of the first."""
    first: InputError | None = None
    for values in tried:
        try:
            check(values)
        except InputError as error:
            first = first or error
        else:
            return None
    return first


def _draw_corners(space: SearchSpace) -> list[dict[str, Value]]:
    """Return combinations of choices and ends of ranges: all, or as many drawn at random."""
    corners = {name: entry.list_corners() for name, entry in space.items()}
    if math.prod(map(len, corners.values())) <= TRIED_COMBINATIONS:
        return [
            dict(zip(corners, values, strict=True))
            for values in itertools.product(*corners.values())
        ]
    draw = random.Random(0)
    return [
        {name: draw.choice(values) for name, values in corners.items()}
        for _ in range(TRIED_COMBINATIONS)
    ]


def _read_entry(name: str, entry: Any, hints: dict[str, Any]) -> Choice | Range:
    if name not in hints:
        nearest = suggest_nearest(name, set(hints))
        raise InputError(f"The search space has the unknown option {name!r}{nearest}")
    reason = FIXED.get(name)
    if name in DataArguments.__dataclass_fields__:
        reason = "trials on other images cannot be compared"
    if reason is not None:
        raise InputError(f"The option {name} cannot be searched: {reason}; drop it from the space.")
    kinds = set(get_args(hints[name]) or (hints[name],))
    if isinstance(entry, list):
        return _read_choice(name, entry, kinds)
    if isinstance(entry, dict):
        return _read_range(name, entry, kinds)
    raise InputError(
        f"The search space of {name} is {entry!r}; give a list of values or {{low: ..., high: "
        "...}, or set the option itself to this value."
    )


def _read_choice(name: str, entry: list[Any], kinds: set[Any]) -> Choice:
    if len(entry) < 2:
        raise InputError(f"The search space of {name} needs two values or more, not {entry!r}.")
    numeric = kinds & {int, float} and str not in kinds
    values: list[Value] = []
    for value in entry:
        if value is not None and not isinstance(value, bool | int | float | str):
            raise InputError(
                f"The search space of {name} holds {value!r}; use single numbers, words, true, "
                "false or null."
            )
        if numeric and isinstance(value, str):
            value = _read_number(name, "list", value, whole=float not in kinds)
        if float in kinds and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if value in values:
            raise InputError(f"The search space of {name} holds {value!r} twice; drop one.")
        values.append(value)
    return Choice(tuple(values))


def _read_range(name: str, entry: dict[Any, Any], kinds: set[Any]) -> Range:
    if not kinds & {int, float}:
        raise InputError(f"The option {name} is no number and has no range; give a list of values.")
    for key in entry:
        if key not in RANGE_KEYS:
            nearest = suggest_nearest(str(key), set(RANGE_KEYS))
            raise InputError(f"The search space of {name} has the unknown key {key!r}{nearest}")
    for key in ("low", "high"):
        if key not in entry:
            raise InputError(f"The search space of {name} has no {key!r}; add it.")
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise InputError(f"The search space of {name} has log {log!r}; use true or false.")
    whole = float not in kinds
    low, high = (_read_number(name, key, entry[key], whole=whole) for key in ("low", "high"))
    step = None
    if entry.get("step") is not None:
        step = _read_number(name, "step", entry["step"], whole=whole)
    if low >= high:
        raise InputError(
            f"The search space of {name} goes from low {low:g} to high {high:g}; low must be less."
        )
    if log and low <= 0:
        raise InputError(
            f"The search space of {name} has low {low:g} on a log scale, where it must be greater "
            "than 0."
        )
    if step is not None and (log or step <= 0 or step > high - low):
        reason = "which log: true excludes; drop one" if log else "which must be within the range"
        raise InputError(f"The search space of {name} has step {step:g}, {reason}.")
    return Range(low, high, log, step, whole)


def _read_number(name: str, key: str, value: Any, *, whole: bool) -> float:
    """Return a finite int or float; YAML reads 1e-3, which has no dot, as text."""
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if not math.isfinite(number) or (whole and not number.is_integer()):
            raise ValueError
    except (TypeError, ValueError):
        kind = "whole number" if whole else "number"
        raise InputError(
            f"The search space of {name} has {value!r} as its {key}; use a {kind}."
        ) from None
    return int(number) if whole else number


def format_value(value: Any) -> str:
    """Return a value as tables and lines show it: three digits of a number, words as in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.3g}" if isinstance(value, float) else str(value)
