"""All commands under one name: ``siglip-flowers COMMAND``."""

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siglip_flowers.base.errors import EXIT_BAD_USAGE, EXIT_INTERRUPTED
from siglip_flowers.base.version import __version__

if TYPE_CHECKING:
    from siglip_flowers.config.rules import Rule

PROG = "siglip-flowers"
# Modules are imported on use: each takes seconds.
COMMANDS = {
    "train": ("siglip_flowers.commands.train", "fine-tune a SigLIP encoder into a classifier"),
    "eval": ("siglip_flowers.commands.eval", "measure a classifier on a split"),
    "predict": ("siglip_flowers.commands.predict", "classify images"),
    "threshold": (
        "siglip_flowers.commands.threshold",
        "fit the threshold for images of no known class",
    ),
    "probe": ("siglip_flowers.probe.command", "fit linear heads on the features of an encoder"),
    "search": ("siglip_flowers.search.command", "search for options that train well"),
    "experiment": ("siglip_flowers.experiment.command", "compare options over several seeds"),
    "export": ("siglip_flowers.export.command", "write a model in a format for deployment"),
    "publish": ("siglip_flowers.publish.command", "push a finished run to the Hugging Face Hub"),
    "cache": ("siglip_flowers.commands.cache", "list decoded pixels and features, or remove them"),
    "demo": ("siglip_flowers.demo.command", "try a classifier on a page in the browser"),
}
# Features that add options to a core command, in the order in which they take part in it. Each has
# EXTENDS in its options.py: {command: dataclass}.
EXTENSIONS = {"train": ("publish",), "eval": ("robustness", "report", "compare")}


def _has_folder(name: str) -> bool:
    # An editable install would find the module elsewhere.
    return (Path(__file__).parents[1] / name / "__init__.py").is_file()


def list_commands() -> dict[str, tuple[str, str]]:
    """Return the module and a description of each command whose folder exists."""
    return {name: found for name, found in COMMANDS.items() if _has_folder(found[0].split(".")[1])}


def list_extension_options(command: str) -> tuple[type, ...]:
    """Return the dataclasses of options that the installed features add to a core command."""
    return tuple(module.EXTENDS[command] for module in _import_options(command))


def list_extension_rules(command: str) -> "tuple[Rule, ...]":
    """Return the rules that the installed features add to those of a core command."""
    return tuple(rule for module in _import_options(command) for rule in module.RULES)


def load_extensions(options: Iterable[Any]) -> list[Any]:
    """Return the extensions of which a command sets an option.

    options: Instances of what :func:`list_extension_options` returns.
    """
    extensions = []
    for own in options:
        if own != type(own)():
            feature = type(own).__module__.rpartition(".")[0]
            extensions.append(importlib.import_module(f"{feature}.extension").Extension(own))
    return extensions


def _import_options(command: str) -> list[Any]:
    return [
        importlib.import_module(f"siglip_flowers.{feature}.options")
        for feature in EXTENSIONS[command]
        if _has_folder(feature)
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first word names and return its exit code."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        # Before the command itself handles it.
        return EXIT_INTERRUPTED


def _run(words: list[str]) -> int:
    commands = list_commands()
    if not words or words[0] in ("-h", "--help"):
        print(_describe(commands), file=sys.stdout if words else sys.stderr)
        return 0 if words else EXIT_BAD_USAGE
    if words[0] == "--version":
        print(PROG, __version__)
        return 0
    if words[0] not in commands:
        # Little is imported outside: Ctrl-C could not be handled there.
        from siglip_flowers.config.fields import suggest_nearest

        hint = suggest_nearest(words[0], set(commands))
        print(f"{PROG}: error: Unknown command {words[0]!r}{hint}", file=sys.stderr)
        return EXIT_BAD_USAGE
    code: int = importlib.import_module(commands[words[0]][0]).main(words[1:])
    return code


def _describe(commands: dict[str, tuple[str, str]]) -> str:
    width = max(map(len, commands))
    return "\n".join(
        [
            f"usage: {PROG} COMMAND [options]",
            "",
            *(f"  {name:<{width}}  {text}" for name, (_, text) in commands.items()),
            "",
            f"{PROG} COMMAND --help shows the options of a command, {PROG} --version the version.",
        ]
    )
