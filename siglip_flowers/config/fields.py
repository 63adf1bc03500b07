"""Fields of the dataclasses of options, and the checks that they share."""

import dataclasses
import difflib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import find_existing

# The number formats a model can be run in.
DTYPES = ("auto", "float32", "bfloat16", "float16")


# Takes an option's name and value, and raises InputError for a value that it cannot have.
Check = Callable[[str, Any], None]


def option(
    default: Any, help: str, check: Check | tuple[str, ...] | None = None, **metadata: Any
) -> Any:
    """Return a dataclass field that is an option on the command line.

    Args:
        default: Its default; a list or dictionary is copied for each instance.
        help: Its documentation, of which ``--help`` shows the first sentence.
        check: What :func:`check_fields` checks, also for each item of a list: the values to choose
            from, or a function. Unset options pass.
        **metadata: ``common``: ``--help`` shows the option; without any such field, it shows all of
            the dataclass. ``path``: ``~`` is the home directory, and a path in a file is looked for
            beside that file first, unless ``path`` is ``"output"``. ``positional``: the option's
            name is not needed. ``nargs`` and ``const``: as for argparse.
    """
    metadata.update(help=help, check=check)
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def common(default: Any, help: str, check: Any = None, **metadata: Any) -> Any:
    """Return an :func:`option` that ``--help`` shows."""
    return option(default, help, check, common=True, **metadata)


def list_options(kind: type) -> tuple[dataclasses.Field[Any], ...]:
    """Return the fields of a dataclass that are options."""
    fields = dataclasses.fields(getattr(kind, "OPTIONS", kind))
    return tuple(field for field in fields if field.init)


def get_default(field: dataclasses.Field[Any]) -> Any:
    """Return the default of an option, a new list or dictionary each time."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def suggest_nearest(name: str, known: set[str], prefix: str = "") -> str:
    """Return the end of an error about an unknown name: the known one nearest to it, or --help."""
    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{matches[0]}?" if matches else "; see --help."


class Options:
    """Base of dataclasses of options, whose values are checked when an instance is made."""

    def __post_init__(self) -> None:
        check_fields(self)


def check_fields(options: Any) -> None:
    """Raise InputError if an option of a dataclass has a value that it cannot have."""
    for field in list_options(type(options)):
        check, value = field.metadata.get("check"), getattr(options, field.name)
        if value in ([], "") and get_default(field) != value:
            raise InputError(f"--{field.name} is empty; remove it or name a value.")
        if isinstance(check, tuple):
            check = partial(check_choice, choices=check)
        if check is not None:
            for item in value if isinstance(value, list) else [value]:
                check(field.name, item)


def between(low: float, high: float) -> Check:
    """Return the check that low <= value <= high."""
    return partial(check_range, low=low, high=high)


def check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    """Raise InputError unless the option has one of the values, or none."""
    if value is not None and value not in choices:
        raise InputError(f"--{name} is {value!r}; choose one of {', '.join(choices)}.")


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Raise InputError unless low <= value <= high, or the option has no value."""
    if value is not None and not low <= value <= high:
        raise InputError(f"--{name} is {value}; it must be between {low:g} and {high:g}.")


def positive(name: str, value: float | None) -> None:
    """Raise InputError unless the option is greater than 0, or has no value."""
    if value is not None and not value > 0:
        raise InputError(f"--{name} is {value}; it must be greater than 0.")


def not_negative(name: str, value: float | None) -> None:
    """Raise InputError if the option is less than 0."""
    if value is not None and not value >= 0:
        raise InputError(f"--{name} is {value}; it must be at least 0.")


def directory(name: str, value: str | None) -> None:
    """Raise InputError if a directory cannot be written, or a file is in its way."""
    existing = find_existing(Path(value or ""))
    is_writable = value is None or os.access(existing, os.W_OK)
    if not existing.is_dir() or not is_writable:
        problem = "read-only" if existing.is_dir() else "a file"
        raise InputError(
            f"--{name} {value} cannot be written, since {existing} is {problem}; name another one."
        )


def new_file(name: str, value: str | None) -> None:
    """Raise InputError if a file cannot be written, since a directory or a file is in its way."""
    if Path(value or "x").is_dir():
        raise InputError(f"--{name} {value} is a directory; name a file.")
    directory(name, str(Path(value or "x").parent))


def steps_or_share(name: str, value: float | None) -> None:
    """Raise InputError unless the option is a number of steps, or a share of them below 1."""
    positive(name, value)
    if value is not None and value > 1 and value != int(value):
        raise InputError(f"--{name} is {value}; use a whole number of steps, or a share below 1.")
