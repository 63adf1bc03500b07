"""Read the options of a command: defaults, then a YAML file, then the command line."""

import argparse
import dataclasses
import itertools
import json
import math
import os
import re
import textwrap
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn, Union, get_args, get_origin, get_type_hints

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.fields import get_default, list_options, suggest_nearest
from siglip_flowers.config.rules import Rule, check_rules, merge_options
from siglip_flowers.config.saved import (
    drop_removed,
    find_config,
    read_gone,
    read_version,
    read_yaml,
)

TRUE_WORDS, FALSE_WORDS = ("true", "yes", "1"), ("false", "no", "0")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse would print its usage before the one sentence that matters.
        raise InputError(f"{message[0].upper()}{message[1:].rstrip('.')}; see --help.")

    def print_help(self, file: IO[str] | None = None) -> None:  # type: ignore[override]
        # Every process of a launch gets the option; the first one prints.
        if is_first_process():
            super().print_help(file)


def is_first_process() -> bool:
    """Return whether this is the only process of a launch, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Command:
    """A command and its options.

    Attributes:
        prog: What the user typed to run it, for messages and ``--help``.
        description: One line for ``--help``.
        kinds: The dataclasses of its options, whose field names are the known keys and options.
        rules: Rules about combinations of options.
        examples: Command lines for ``--help``.
        defaults: Values that replace the defaults of the dataclasses; a YAML file overrides them.
    """

    prog: str
    description: str
    kinds: tuple[type, ...]
    rules: tuple[Rule, ...] = ()
    examples: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, dataclasses.Field[Any]]:
        """The fields that are options, by name."""
        return {item.name: item for kind in self.kinds for item in list_options(kind)}

    @property
    def hints(self) -> dict[str, Any]:
        """The types of all fields, by name."""
        return {name: hint for kind in self.kinds for name, hint in get_type_hints(kind).items()}

    def parse(self, argv: Sequence[str], defaults: dict[str, Any] | None = None) -> tuple[Any, ...]:
        """Build one instance of each dataclass from ``--config`` and command-line options.

        Args:
            argv: The command line without the program's name.
            defaults: Values instead of those of the command.

        Raises:
            InputError: Unknown option or key, wrong type, unreadable file, value out of range, or a
                combination that a rule refuses.
        """
        words = self._normalize(argv)
        parser = self._build_parser(everything="--help_all" in words)
        namespace, rest = parser.parse_known_intermixed_args(words)
        if rest:
            refuse_argument(rest[0], {*self.fields, "config"})
        given = vars(namespace)
        return self.build(given, given.pop("config", None), defaults)

    def build(
        self,
        options: dict[str, Any],
        config: str | os.PathLike[str] | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> tuple[Any, ...]:
        """Build one instance of each dataclass from defaults, a YAML file and what was given.

        What was given may turn a part of the file off, whose other settings are then dropped.

        Args:
            options: Values by the name of the option, which override the others.
            config: As ``--config``: a YAML file, or the name of a shipped configuration.
            defaults: Values instead of those of the command.

        Raises:
            InputError: As :meth:`parse`.
        """
        fields, hints = self.fields, self.hints
        values = {name: get_default(item) for name, item in fields.items()}
        source = "the defaults" if defaults is None else "the config.yaml of the run"
        layers: list[tuple[str, dict[str, Any], Path | None]] = [
            (source, self.defaults if defaults is None else defaults, None)
        ]
        if config is not None:
            path = find_config(os.fspath(config))
            found = read_yaml(path)
            # A saved configuration has paths as seen from the working directory.
            layers.append((str(path), found, None if read_version(path) else path.parent))
        for source, found, folder in (*layers, ("the call", options, None)):
            for name, value in drop_removed(found, set(fields), source).items():
                values[name] = convert(name, hints[name], value, source)
                if kind := fields[name].metadata.get("path"):
                    values[name] = _find_path(values[name], None if kind == "output" else folder)
        given = types.SimpleNamespace(**values)
        for rule in self.rules:
            if rule.needed in options and rule.refuses(given):
                off = set(rule.settings) - set(options)
                values |= {name: get_default(fields[name]) for name in off}
        instances = tuple(
            kind(**{item.name: values[item.name] for item in list_options(kind)})
            for kind in self.kinds
        )
        check_rules(self.rules, merge_options(*instances))
        return instances

    def _normalize(self, argv: Sequence[str]) -> list[str]:
        """Return the command line with underscores where options were written with dashes.

        If words without an option are expected, a switch does not take one as its value.
        """
        fields, hints = self.fields, self.hints
        takes_words = any(item.metadata.get("positional") for item in fields.values())
        words = []
        for argument, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
            match = re.fullmatch(r"--([\w-]+)((?:=.*)?)", argument, re.DOTALL)
            if match is not None:
                name, value = match[1].replace("-", "_"), match[2]
                is_switch = name in fields and _read_hint(hints[name])[0] is bool and not value
                if takes_words and is_switch and following.lower() not in TRUE_WORDS + FALSE_WORDS:
                    value = "=true"
                argument = f"--{name}{value}"
            words.append(argument)
        return words

    def _build_parser(self, *, everything: bool) -> _Parser:
        """Build the parser; its help shows all options in full, or a line for each common one."""
        parser = _Parser(
            prog=self.prog,
            usage=f"{self.prog} [--config FILE] [options]",
            description=textwrap.fill(self.description, 98),
            epilog="\n  ".join(["examples:", *self.examples]) if self.examples else None,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
                prog, max_help_position=36, width=100
            ),
            allow_abbrev=False,
            add_help=False,
            argument_default=argparse.SUPPRESS,
        )
        parser.add_argument(
            "--config",
            metavar="FILE",
            help="A YAML file with any of these options, or a shipped one by name, such as lora.",
        )
        parser.add_argument("-h", "--help", action="help", help="Show the most used options.")
        parser.add_argument("--help_all", action="help", help="Show all options.")
        hints = self.hints
        for kind in self.kinds:
            options = list_options(kind)
            group = parser.add_argument_group((kind.__doc__ or "").splitlines()[0].rstrip("."))
            some = any(option.metadata.get("common") for option in options)
            for option in options:
                shown = everything or not some or bool(option.metadata.get("common"))
                hint, own = hints[option.name], self.defaults
                _add_option(group, option, hint, own, shown=shown, in_full=everything)
        return parser


def _find_path(value: Any, folder: Path | None) -> Any:
    """Return paths with ``~`` expanded, in the folder if they are there."""
    if isinstance(value, list):
        return [_find_path(item, folder) for item in value]
    if not isinstance(value, str):
        return value
    path = os.path.expanduser(value)
    beside = os.path.normpath(os.path.join(folder or "", path))
    return beside if folder is not None and os.path.exists(beside) else path


def _add_option(
    group: argparse._ArgumentGroup,
    option: dataclasses.Field[Any],
    hint: Any,
    defaults: dict[str, Any],
    *,
    shown: bool,
    in_full: bool,
) -> None:
    metadata = option.metadata
    kind, is_list = _read_hint(hint)
    text = metadata.get("help", "")
    if not in_full:
        # The first sentence; "0.5" and "e.g. this" do not end one.
        text = re.split(r"(?<=[a-z\d)])\. (?=[A-Z\d])|(?<=\.) (?=[a-z_]+: )", text)[0].rstrip(".")
    default = defaults.get(option.name, get_default(option))
    if default is not None and default != [] and default != "" and kind is not dict:
        shown_default = str(default).lower() if isinstance(default, bool) else default
        if is_list:
            shown_default = " ".join(map(str, default))
        text = f"{text.rstrip('.')} [{shown_default}]"
    settings: dict[str, Any] = {"help": text.replace("%", "%%") if shown else argparse.SUPPRESS}
    if metadata.get("positional"):
        nargs = "*" if is_list else "?"
        group.add_argument(option.name, nargs=nargs, metavar=option.name.upper(), **settings)
        return
    if kind is bool:
        settings.update(nargs="?", const=True, metavar="BOOL")
    else:
        settings["metavar"] = {int: "N", float: "X", dict: "JSON"}.get(kind, "TEXT")
        if metadata.get("path"):
            settings["metavar"] = "PATH"
        if is_list:
            settings["nargs"] = "+"
    settings.update({key: metadata[key] for key in ("nargs", "const") if key in metadata})
    convert_text: Callable[[str], Any] = _CONVERTERS[kind]
    if type(None) in get_args(hint) and not is_list:
        convert_text = partial(_convert_unless_null, convert_text)
    group.add_argument(f"--{option.name}", type=convert_text, **settings)


def _read_hint(hint: Any) -> tuple[type, bool]:
    """Return the type of an option's values, and whether there may be several."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is list:
        return get_args(hint)[0], True
    return get_origin(hint) or hint, False


def _convert_unless_null(convert_text: Callable[[str], Any], text: str) -> Any:
    return None if text == "null" else convert_text(text)


def _to_bool(text: str) -> bool:
    word = text.lower()
    if word not in (*TRUE_WORDS, *FALSE_WORDS):
        raise argparse.ArgumentTypeError(f"invalid value: {text!r} (use true or false)")
    return word in TRUE_WORDS


def _to_number(kind: type[int] | type[float], text: str) -> float:
    try:
        value = kind(text)
        finite = math.isfinite(value)
        if kind is int and not -(2**63) <= value < 2**63:
            raise OverflowError
    except (OverflowError, ValueError):
        raise argparse.ArgumentTypeError(f"invalid {kind.__name__} value: {text!r}") from None
    if not finite:
        raise argparse.ArgumentTypeError(f"invalid float value: {text!r} (use a finite number)")
    return value


def _to_text(text: str) -> str:
    # No file name, and no file in UTF-8, can contain these.
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise argparse.ArgumentTypeError(f"invalid text: {text[:100]!r}")
    return text


def _to_dict(text: str) -> dict[str, Any]:
    number = _CONVERTERS[float]
    try:
        value = json.loads(text, parse_float=number, parse_constant=number)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'invalid JSON: {text!r} (write {{"name": value}})')
    return value


_CONVERTERS: dict[Any, Callable[[str], Any]] = {
    bool: _to_bool,
    int: partial(_to_number, int),
    float: partial(_to_number, float),
    str: _to_text,
    dict: _to_dict,
}


def convert(name: str, hint: Any, value: Any, origin: str) -> Any:
    """Return a value of a YAML file as an option's type.

    Args:
        name: The option.
        hint: The annotation of its field.
        value: What YAML made of it: YAML 1.1 reads ``no`` as false and ``1e-5`` as text.
        origin: The file, for messages.

    Raises:
        InputError: The value is not of that type.
    """
    kind, is_list = _read_hint(hint)
    if value is None:
        if type(None) not in get_args(hint):
            raise InputError(f"In {origin}: {name} is null; give a value or remove the line.")
        return None
    if is_list:
        items = value if isinstance(value, (list, tuple)) else [value]
        return [convert(name, kind, item, origin) for item in items]
    if isinstance(value, list):
        raise InputError(f"In {origin}: {name} has several values; give one.")
    try:
        if isinstance(value, bool) and kind is str:
            text = "yes" if value else "no"
        else:
            text = json.dumps(value) if isinstance(value, (bool, dict)) else str(value)
        return _CONVERTERS[kind](text)
    except (argparse.ArgumentTypeError, TypeError, ValueError) as error:
        raise InputError(f"In {origin}: {name} has an {error}.") from error


def refuse_argument(argument: str, known: set[str]) -> NoReturn:
    """Raise InputError for an argument that nothing takes, with the nearest known option."""
    if argument.startswith("-"):
        name = argument.split("=")[0]
        word = name.lstrip("-").replace("-", "_")
        if instead := read_gone()[0].get(word):
            raise InputError(f"--{word} is not supported: {instead}")
        raise InputError(f"Unknown option {name}{suggest_nearest(word, known, prefix='--')}")
    raise InputError(f"Unexpected argument {argument!r}; options start with --, see --help.")
