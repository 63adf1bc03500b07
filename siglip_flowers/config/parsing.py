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

from siglip_flowers.base.errors import InputError

# A configuration has a hundred options; aliases of aliases stand for any number of values.
MAX_YAML_BYTES = 1 << 20
MAX_YAML_VALUES = 100_000
# What the reader raises for text that is no YAML, or for dates and numbers that are none.
YAML_ERRORS = (
    yaml.YAMLError,
    ValueError,
    OverflowError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
)
# Never written to a file, whatever a user passes.
SECRETS = ("hub_token", "push_to_hub_token")
# A saved configuration read again must neither overwrite or publish unasked nor carry the processor
# of one machine to another.
UNSAVED = (*SECRETS, "overwrite_output_dir", "push_to_hub", "use_cpu")


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse would print a usage of 150 options before the one sentence that matters.
        refuse_usage(message)

    def print_help(self, file: IO[str] | None = None) -> None:  # type: ignore[override]
        # Every process of a launch is asked; one of them answers.
        if is_first_process():
            super().print_help(file)


def is_first_process() -> bool:
    """Return whether this is the only process of a launch, or the first of several."""
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
    for argument in argv:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise InputError(f"The argument {argument!r} is not UTF-8 text; give it another name.")
    parser = _Parser(
        list[Any](dataclass_types), prog=prog, description=description, allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE", help="A YAML file with any of these options.")
    known = {
        item.name for kind in dataclass_types for item in dataclasses.fields(kind) if item.init
    }
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


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, and merge keys, which can multiply without end."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            problem = ""
            if key.tag == "tag:yaml.org,2002:merge":
                problem = "merge keys (<<) cannot be used"
            elif isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value!r} stands twice"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        InputError: The file is missing, no YAML, or holds something else than a mapping.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        # It would be waited for, and it is read more than once.
        raise InputError(f"The configuration file {path} is not a regular file; name another.")
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise InputError(
                f"The configuration file {path} is larger than {MAX_YAML_BYTES >> 20} MB, so it "
                "is none; name a YAML file with lines 'option: value'."
            )
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            f"The configuration file {path} cannot be read: {error.strerror or error}."
        ) from error
    except YAML_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"The configuration file {path} is not valid YAML: {reason}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(
            f"The configuration file {path} holds a {type(values).__name__}; it must hold lines "
            "'option: value'."
        )
    if _count_values(values) > MAX_YAML_VALUES:
        raise InputError(
            f"The configuration file {path} stands for more than {MAX_YAML_VALUES} values, by "
            "aliases (*name) of aliases; write the values themselves."
        )
    return values


def _count_values(value: Any) -> int:
    """Count values as often as they are referred to, up to one more than allowed."""
    waiting, count = [value], 0
    while waiting and count <= MAX_YAML_VALUES:
        count += 1
        item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            waiting.extend(item)
    return count


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
        _check_text(key, value, origin)
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
            try:
                argv.append(f"--{key}={json.dumps(value)}")
            except (TypeError, ValueError, RecursionError) as error:
                raise InputError(
                    f"In {origin}: {key} holds what JSON has no form for ({error}); use text, "
                    "numbers, lists and mappings with names."
                ) from error
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


def _check_text(key: str, value: Any, origin: str) -> None:
    """Raise InputError for text that no file name, and no file in UTF-8, can hold."""
    items = value if isinstance(value, list) else [value]
    for item in items:
        text = item if isinstance(item, str) else ""
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(
                f"In {origin}: {key} is {text[:100]!r}, with a character that text cannot hold; "
                "leave it out."
            )


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
