"""Rules about two or more options: each is a condition and a sentence.

A rule about one option alone is checked in ``__post_init__`` of its dataclass.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from siglip_flowers.base.errors import InputError


@dataclass(frozen=True)
class Rule:
    """A combination of options that a command refuses.

    Attributes:
        name: Names the rule in tests.
        refuses: Takes an object with every option of the command as an attribute and returns
            whether the combination is refused.
        message: What is wrong and what to do; ``{option}`` is replaced by the option's value.
        example: Options that the rule refuses, as on a command line.
    """

    name: str
    refuses: Callable[[Any], bool]
    message: str
    example: tuple[str, ...]


def merge_options(*instances: Any) -> SimpleNamespace:
    """Return one object with the fields of all dataclass instances as attributes."""
    return SimpleNamespace(
        **{
            field.name: getattr(instance, field.name)
            for instance in instances
            for field in dataclasses.fields(instance)
        }
    )


def check_rules(rules: Iterable[Rule], options: Any) -> None:
    """Raise InputError with the message of the first rule that refuses the options."""
    for rule in rules:
        if rule.refuses(options):
            raise InputError(rule.message.format_map(vars(options)))
