"""All commands under one name: ``siglip-flowers predict|train|eval``."""

import difflib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable
from typing import Any

from siglip_flowers.base.errors import EXIT_BAD_USAGE
from siglip_flowers.config.rules import Rule

PROG = "siglip-flowers"
# Modules are imported when they are asked for: each takes seconds.
COMMANDS = {
    "train": ("siglip_flowers.commands.train", "fine-tune a SigLIP encoder into a classifier"),
    "probe": ("siglip_flowers.probe.command", "fit linear heads on the features of an encoder"),
    "search": ("siglip_flowers.search.command", "search for options that train well"),
    "eval": ("siglip_flowers.commands.eval", "measure a classifier on a split"),
    "predict": ("siglip_flowers.commands.predict", "name what images show"),
    "threshold": (
        "siglip_flowers.commands.threshold",
        "fit the threshold for images of no known class",
    ),
    "export": ("siglip_flowers.export.command", "write a model in a format to deploy"),
    "publish": ("siglip_flowers.publish.command", "push a finished run to the Hugging Face Hub"),
    "demo": ("siglip_flowers.demo.command", "open a page in the browser to try a classifier"),
}
# Features that add options to a core command, in the order in which they take part in it. Each has
# EXTENDS in its options.py: {command: dataclass}.
EXTENSIONS = {"train": ("publish",), "eval": ("robustness", "report", "compare")}


def list_extension_options(command: str) -> tuple[type, ...]:
    """Return the dataclasses of options that the features at hand add to a core command."""
    return tuple(module.EXTENDS[command] for module in _import_options(command))


def list_extension_rules(command: str) -> tuple[Rule, ...]:
    """Return the rules that the features at hand add to those of a core command."""
    return tuple(rule for module in _import_options(command) for rule in module.RULES)


def load_extensions(command: str, options: Iterable[Any]) -> list[Any]:
    """Return the extensions that a command's options ask for.

    Args:
        command: A key of ``EXTENSIONS``.
        options: Instances of what :func:`list_extension_options` returns.
    """
    make = {"train": "make_training_extension", "eval": "make_evaluation_extension"}[command]
    extensions = []
    for asked in options:
        if asked.is_asked:
            feature = type(asked).__module__.rpartition(".")[0]
            extensions.append(getattr(importlib.import_module(f"{feature}.extension"), make)(asked))
    return extensions


def _import_options(command: str) -> list[Any]:
    return [
        importlib.import_module(f"siglip_flowers.{feature}.options")
        for feature in EXTENSIONS[command]
        if importlib.util.find_spec(f"siglip_flowers.{feature}") is not None
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first word names and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(_describe_commands(), file=sys.stdout if words else sys.stderr)
        return 0 if words else EXIT_BAD_USAGE
    if words[0] == "--version":
        print(PROG, importlib.metadata.version("siglip_flowers"))
        return 0
    if words[0] not in COMMANDS:
        nearest = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"choose {', '.join(COMMANDS)}."
        print(f"{PROG}: error: Unknown command {words[0]!r}; {hint}", file=sys.stderr)
        return EXIT_BAD_USAGE
    module = importlib.import_module(COMMANDS[words[0]][0])
    code: int = module.main(words[1:])
    return code


def _describe_commands() -> str:
    lines = [f"usage: {PROG} COMMAND [options]; '{PROG} COMMAND --help' lists its options", ""]
    return "\n".join([*lines, *(f"  {name:<9} {text}" for name, (_, text) in COMMANDS.items())])
