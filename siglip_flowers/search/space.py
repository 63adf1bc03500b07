"""The search space: Optuna's distributions of options of train.py."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias, get_args, get_type_hints

import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from siglip_flowers.base.errors import InputError
from siglip_flowers.config import DataArguments
from siglip_flowers.config.parsing import suggest_nearest
from siglip_flowers.config.rules import merge_options
from siglip_flowers.training.build import RunArguments

Distribution: TypeAlias = CategoricalDistribution | FloatDistribution | IntDistribution
SearchSpace: TypeAlias = dict[str, Distribution]
RANGE_KEYS = {"low", "high", "log", "step"}
# Trials with other values of these, or with other data, could not be compared.
FIXED = {
    *DataArguments.__dataclass_fields__,
    *("output_dir", "overwrite_output_dir", "resume", "seed", "data_seed", "wise_ft"),
    *("metric_for_best_model", "load_best_model_at_end", "eval_strategy"),
}


def read_space(text: str, run: RunArguments) -> SearchSpace:
    """Read a search space, a mapping in YAML or JSON.

    Raises:
        InputError: Unknown options, options that cannot be searched, bad ranges or values.
    """
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--search_space is not valid YAML: {error}.") from error
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"--search_space is {text!r}; use a mapping of options to values.")
    hints = {
        name: hint
        for part in dataclasses.fields(run)
        for name, hint in get_type_hints(type(getattr(run, part.name))).items()
    }
    space: SearchSpace = {}
    for name, entry in entries.items():
        if name not in hints:
            nearest = suggest_nearest(str(name), set(hints))
            raise InputError(f"The search space has the unknown option {name!r}{nearest}")
        if name in FIXED:
            raise InputError(
                f"The option {name} cannot be searched, since trials with other values of it "
                "cannot be compared; drop it from the search space."
            )
        space[name] = found = _read_entry(name, entry, hints[name])
        if isinstance(found, CategoricalDistribution):
            ends = found.choices
        else:
            ends = (found.low, found.high)
        for value in ends:
            try:
                change_options(run, {name: value})
            except InputError as error:
                raise InputError(f"The search space of {name} has {value!r}: {error}") from error
    return space


def _read_entry(name: str, entry: Any, hint: Any) -> Distribution:
    types = get_args(hint) or (hint,)
    number = float if float in types else int if int in types and str not in types else None

    def read(value: Any) -> Any:
        if number is None or value is None or isinstance(value, bool):
            return value
        # YAML reads 1e-3, which has no dot, as text.
        found = float(value)
        if number is int and not found.is_integer():
            raise ValueError(f"{value!r} is not a whole number")
        return number(found)

    try:
        if isinstance(entry, list) and len(entry) > 1:
            return CategoricalDistribution([read(value) for value in entry])
        if isinstance(entry, dict) and number and {"low", "high"} <= entry.keys() <= RANGE_KEYS:
            values = {key: value if key == "log" else read(value) for key, value in entry.items()}
            return (FloatDistribution if number is float else IntDistribution)(**values)
    except (TypeError, ValueError) as error:
        raise InputError(f"The search space of {name} is {entry!r}: {error}.") from error
    ranges = "{low: ..., high: ...} with log: true or step" if number else "no range"
    raise InputError(
        f"The search space of {name} is {entry!r}; use a list of two values or more, or {ranges}."
    )


def find_start(space: SearchSpace, run: RunArguments) -> dict[str, Any]:
    """Return those of the configuration's own values that the space contains."""
    values = vars(merge_options(*vars(run).values()))
    start = {}
    for name, distribution in space.items():
        value = values[name]
        if isinstance(distribution, CategoricalDistribution):
            contained = value in distribution.choices
        else:
            contained = value is not None and distribution.low <= value <= distribution.high
        if contained:
            start[name] = value
    return start


def change_options(run: RunArguments, changes: Mapping[str, Any]) -> RunArguments:
    """Return a run with some options changed.

    Raises:
        InputError: An option has a value that it cannot have.
    """
    parts = {}
    for field in dataclasses.fields(run):
        part = getattr(run, field.name)
        own = {name: changes[name] for name in changes.keys() & part.__dataclass_fields__.keys()}
        try:
            parts[field.name] = dataclasses.replace(part, **own) if own else part
        except (TypeError, ValueError) as error:
            raise InputError(str(error)) from error
    return RunArguments(**parts)
