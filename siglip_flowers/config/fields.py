"""Fields of the dataclasses of options."""

import dataclasses
import difflib
from typing import Any


def option(default: Any, help: str, **metadata: Any) -> Any:
    """Return a dataclass field that is an option on the command line.

    Args:
        default: Its default; a list or dictionary is copied for each instance.
        help: Its documentation, of which ``--help`` shows the first sentence.
        **metadata: ``common``: ``--help`` shows the option; without any such field, it shows all of
            the dataclass. ``path``: ``~`` is the home directory. ``positional``: the option's name
            is not needed. ``nargs`` and ``const``: as for argparse.
    """
    metadata["help"] = help
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def list_options(kind: type) -> tuple[dataclasses.Field[Any], ...]:
    """Return the fields of a dataclass that are options."""
    fields = dataclasses.fields(getattr(kind, "OPTIONS", kind))
    return tuple(field for field in fields if field.init)


def suggest_nearest(name: str, known: set[str], prefix: str = "") -> str:
    """Return the end of an error about an unknown name: the known one nearest to it, or --help."""
    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{matches[0]}?" if matches else "; see --help."
