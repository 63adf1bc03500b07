"""Read the configuration: defaults, then a YAML file, then the command line."""

import argparse
import dataclasses
import difflib
import enum
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from siglip_flowers.errors import InputError

# Never written to a file, whatever a user passes.
SECRETS = ("hub_token", "push_to_hub_token")
# A saved configuration read again must neither overwrite unasked nor carry the processor of one
# machine to another.
UNSAVED = (*SECRETS, "overwrite_output_dir", "use_cpu")


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse would print a usage of 150 options before the one sentence that matters.
        refuse_usage(message)

    def print_help(self, file: IO[str] | None = None) -> None:  # type: ignore[override]
        # Every process of a launch is asked; one of them answers.
        if is_first_process():
            super().print_help(file)


def is_first_process() -> bool:
    """Say whether this is the only process of a launch, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def check_command_line(
    dataclass_types: Sequence[type | None],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    defaults: dict[str, Any] | None = None,
) -> None:
    """Answer ``--help`` and refuse bad usage before a command imports what its work needs.

    For the arguments see :func:`parse_arguments`. A dataclass that needs torch is given as one with
    the same fields that does not, such as ``make_training_options`` makes, or as None: then
    nothing is checked here. What passes is parsed by the command itself, with its own dataclasses.

    Raises:
        InputError: As :func:`parse_arguments`.
    """
    kinds = [kind for kind in dataclass_types if kind is not None]
    if len(kinds) == len(dataclass_types):
        parse_arguments(kinds, argv, prog=prog, description=description, defaults=defaults)


def parse_arguments(
    dataclass_types: Sequence[type],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    defaults: dict[str, Any] | None = None,
) -> tuple[Any, ...]:
    """Build one instance of each dataclass from ``--config FILE`` and command-line options.

    Args:
        dataclass_types: The dataclasses, whose field names are the known keys and options.
        argv: The command line without the program's name.
        prog: The program's name, for ``--help``.
        description: One line for ``--help``.
        defaults: Values that replace the dataclasses' defaults; the YAML file overrides them.

    Raises:
        InputError: Unknown option or key, wrong type, unreadable file, value out of range.
    """
    parser = _Parser(
        list[Any](dataclass_types), prog=prog, description=description, allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE", help="A YAML file with any of these options.")
    known = {field.name for kind in dataclass_types for field in dataclasses.fields(kind)}
    hints = {name: hint for kind in dataclass_types for name, hint in get_type_hints(kind).items()}
    namespace = argparse.Namespace()
    if defaults:
        _apply(parser, hints, defaults, namespace, "the defaults")
    config_only = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    config_only.add_argument("--config")
    try:
        config_file = config_only.parse_known_args(argv)[0].config
    except argparse.ArgumentError as error:
        raise InputError("--config needs the name of a YAML file.") from error
    if config_file is not None:
        values = read_yaml(Path(config_file))
        for key in values:
            if key not in known:
                nearest = suggest_nearest(str(key), known)
                raise InputError(f"Unknown key {key!r} in {config_file}{nearest}")
        _apply(parser, hints, values, namespace, config_file)
    namespace, rest = parser.parse_known_args(argv, namespace)
    if rest:
        refuse_argument(rest[0], known)
    parsed = vars(namespace)
    instances = []
    for kind in dataclass_types:
        names = [field.name for field in dataclasses.fields(kind) if field.init]
        try:
            instances.append(kind(**{name: parsed[name] for name in names}))
        except InputError:
            raise
        except (ValueError, ImportError) as error:
            # The parent class of the training arguments checks its own fields this way.
            raise InputError(" ".join(str(error).split())) from error
    return tuple(instances)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        InputError: The file is missing, no YAML, or holds something else than a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"The configuration file {path} cannot be read: {error.strerror or error}."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"The configuration file {path} is not valid YAML: {reason}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(
            f"The configuration file {path} holds a {type(values).__name__}; it must hold lines "
            "'option: value'."
        )
    return values


def dump_configuration(*instances: Any) -> str:
    """Return the YAML text of the resolved configuration, which ``--config`` reads back.

    Secrets are left out, and so are options that are unset by default and still unset.
    """
    lines: list[str] = []
    for instance in instances:
        values = {}
        for field in dataclasses.fields(instance):
            value = _plain(getattr(instance, field.name))
            unset = value is None and field.default is None
            if field.name in UNSAVED or not field.init or unset or value in ([], {}, ""):
                continue
            values[field.name] = value
        lines.append(f"# {type(instance).__name__}\n")
        lines.append(yaml.safe_dump(values, sort_keys=True, allow_unicode=True))
    return "".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _apply(
    parser: _Parser,
    hints: dict[str, Any],
    values: dict[str, Any],
    namespace: argparse.Namespace,
    origin: str,
) -> None:
    """Set values on the namespace through the parser, so that their types are checked."""
    argv: list[str] = []
    # What has no spelling on the command line.
    direct: dict[str, Any] = {}
    for key, value in values.items():
        kinds = (hints[key], *get_args(hints[key]))
        if value is None:
            if type(None) not in kinds:
                raise InputError(
                    f"In {origin}: {key} is null, which it cannot be; give a value or leave it out."
                )
            direct[key] = None
        elif value == [] and any(list in (kind, get_origin(kind)) for kind in kinds):
            direct[key] = []
        elif value is False and bool not in kinds and str in kinds:
            # YAML 1.1 reads the word no as false.
            argv.append(f"--{key}=no")
        elif isinstance(value, dict):
            argv.append(f"--{key}={json.dumps(value)}")
        elif isinstance(value, list):
            argv.extend([f"--{key}", *map(str, value)])
        else:
            argv.append(f"--{key}={value}")
    try:
        _, rest = parser.parse_known_args(argv, namespace)
    except InputError as error:
        raise InputError(f"In {origin}: {str(error).removesuffix('; see --help.')}.") from error
    if rest:
        raise InputError(f"In {origin}: {rest[0]!r} is one value too many.")
    for key, value in direct.items():
        setattr(namespace, key, value)


def refuse_usage(message: str) -> NoReturn:
    """Raise InputError with one of argparse's messages as a sentence."""
    # It names the spelling with dashes as well.
    message = re.sub(r"(--\w+)/--[\w-]+:", r"\1:", message)
    raise InputError(f"{message[0].upper()}{message[1:].rstrip('.')}; see --help.")


def refuse_argument(argument: str, known: set[str]) -> NoReturn:
    """Raise InputError for an argument that nothing takes, with the nearest known option."""
    if argument.startswith("-"):
        name = argument.split("=")[0]
        nearest = suggest_nearest(name.lstrip("-").replace("-", "_"), known, prefix="--")
        raise InputError(f"Unknown option {name}{nearest}")
    raise InputError(f"Unexpected argument {argument!r}; options start with --, see --help.")


def suggest_nearest(name: str, known: set[str], prefix: str = "") -> str:
    """Return the end of an error about an unknown name: the known one nearest to it, or --help."""
    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{matches[0]}?" if matches else "; see --help."
