"""The command line of a search: what it says, checked without torch."""

import dataclasses
import os
from importlib.util import find_spec
from typing import Any, get_args, get_type_hints

import yaml

from siglip_flowers.base.errors import InputError
from siglip_flowers.config import (
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    ProbeArguments,
    make_training_options,
)
from siglip_flowers.config.parsing import dump_configuration, parse_arguments
from siglip_flowers.search.options import SearchArguments
from siglip_flowers.search.space import (
    SearchSpace,
    Value,
    make_default_space,
    read_space,
    refuse_impossible,
)

# Not that of train.py: the two do not share a directory.
DEFAULTS = {"output_dir": "results/search"}


def list_kinds(training: type) -> tuple[type, ...]:
    """Return the dataclasses of train.py, with one for the training options."""
    return (DataArguments, AugmentationArguments, ModelArguments, training, ProbeArguments)


def check_line(argv: list[str], *, prog: str, description: str) -> None:
    """Answer ``--help`` and refuse what can be refused before torch is imported.

    Raises:
        InputError: As ``parse_arguments``; a bad search space; no optuna; a launcher.
    """
    training = make_training_options()
    if training is not None:
        parsed = parse_arguments(
            (*list_kinds(training), SearchArguments),
            argv,
            prog=prog,
            description=description,
            defaults=DEFAULTS,
        )
        *run, options = parsed
        values = dump_values(*run)

        def check(changes: dict[str, Value]) -> None:
            parse_changed(list_kinds(training), values, dict(changes))

        refuse_impossible(find_space(options, values, list_kinds(training)), check)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "The search starts its own processes (--workers); call it with python, not accelerate "
            "launch."
        )
    if find_spec("optuna") is None:
        raise InputError(
            "The search needs the package optuna, which is not installed: pip install optuna."
        )


def find_space(
    options: SearchArguments, values: dict[str, Any], kinds: tuple[type, ...]
) -> SearchSpace:
    """Return the search space that is given, or the default one."""
    if options.search_space is None:
        return make_default_space(values)
    return read_space(options.search_space, find_hints(kinds))


def find_hints(kinds: tuple[type, ...]) -> dict[str, Any]:
    """Return the type of every option by its name."""
    return {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}


def dump_values(*instances: Any) -> dict[str, Any]:
    """Return what the dataclasses say, by option, for ``parse_arguments`` to read again."""
    values = yaml.safe_load(dump_configuration(*instances))
    hints = find_hints(tuple(type(instance) for instance in instances))
    # Not written into files, but a search and its trials are on one machine.
    for instance in instances:
        if any(field.name == "use_cpu" for field in dataclasses.fields(instance)):
            values["use_cpu"] = instance.use_cpu
    # Before their own checks, some options hold None that may not be given.
    return {
        name: value
        for name, value in values.items()
        if value is not None or type(None) in get_args(hints[name])
    }


def parse_changed(
    kinds: tuple[type, ...], values: dict[str, Any], changes: dict[str, Any]
) -> tuple[Any, ...]:
    """Return the dataclasses with some options changed."""
    return parse_arguments(
        kinds, [], prog="search", description="One trial.", defaults={**values, **changes}
    )
