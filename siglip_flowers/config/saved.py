"""YAML files of options: those that users write, and the one that is saved with a run."""

import json
import logging
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.version import __version__
from siglip_flowers.config.fields import list_options, suggest_nearest

logger = logging.getLogger(__name__)
# A saved configuration that is read again must neither overwrite nor publish unasked, nor carry the
# processor of one machine to another.
UNSAVED = ("overwrite_output_dir", "push_to_hub", "use_cpu")
_VERSION = re.compile(r"# siglip_flowers (\S+)\n")
# Configurations that come with the package.
SHIPPED = Path(__file__).parents[1] / "configs"


@cache
def read_gone() -> tuple[dict[str, str], dict[str, Any]]:
    """Return the options that are not in this version, as ``gone.yaml`` has them.

    Returns:
        Those of the Trainer that are refused, each with what to use instead; and those that older
        versions saved, each with the value that changed nothing.
    """
    tables = yaml.safe_load(Path(__file__).with_name("gone.yaml").read_text(encoding="utf-8"))
    refused = {name: text for text, names in tables["refused"].items() for name in names.split()}
    return refused, tables["removed"]


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"duplicate key {key.value!r}", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def find_config(name: str) -> Path:
    """Return the file that ``--config`` names: a path, or the name of a shipped configuration.

    Raises:
        InputError: A name without a file.
    """
    path = Path(name).expanduser()
    if path.is_file() or not re.fullmatch(r"[\w-]+", name):
        return path
    shipped = {each.stem: each for each in SHIPPED.glob("*.yaml")}
    if name not in shipped:
        raise InputError(
            f"There is no configuration {name!r}. Name a YAML file, or one of "
            f"{', '.join(sorted(shipped))}."
        )
    return shipped[name]


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file contains.

    Raises:
        InputError: The file cannot be read, is not YAML or contains something else.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise InputError(
            f"The configuration file {path} cannot be read: {error.strerror or error}."
        ) from error
    except Exception as error:
        # The reader has no common error for text that is not YAML, or dates that do not exist.
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"The configuration file {path} is not valid YAML: {reason}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(
            f"The configuration file {path} contains a {type(values).__name__}; it must contain "
            "lines 'option: value'."
        )
    return values


def drop_removed(values: dict[str, Any], known: set[str], origin: str) -> dict[str, Any]:
    """Return options without those that are gone and changed nothing.

    Args:
        values: Options of a file.
        known: The names of options.
        origin: The file, for messages.

    Raises:
        InputError: A key is not an option.
    """
    gone = [key for key in values if key not in known]
    refused, removed = read_gone() if gone else ({}, {})
    dropped = [key for key in gone if key in removed and values[key] == removed[key]]
    for key in gone:
        if key in dropped:
            continue
        if key in refused:
            raise InputError(f"{key} in {origin} is not supported: {refused[key]}")
        if key in removed:
            raise InputError(
                f"{key} in {origin} is an option of an older version; it is gone, and "
                f"{values[key]!r} was not its default. Remove the line."
            )
        raise InputError(f"Unknown key {key!r} in {origin}{suggest_nearest(str(key), known)}")
    if dropped and values.get("lora_r") is None and values.get("lora_dropout") == 0.05:
        # The default then.
        dropped.append("lora_dropout")
    if dropped:
        logger.warning(
            "%s is from an older version; options that are gone and had no effect: %s.",
            origin,
            ", ".join(dropped),
        )
    return {key: value for key, value in values.items() if key not in dropped}


def read_version(path: Path) -> str | None:
    """Return the version of the package that saved a configuration; None before 0.2."""
    match = _VERSION.match(path.read_text(encoding="utf-8", errors="replace"))
    return None if match is None else match[1]


def dump_configuration(*instances: Any) -> str:
    """Return the resolved options as YAML text, which ``--config`` reads back.

    Options that are unset by default and still unset are left out.
    """
    lines = [f"# siglip_flowers {__version__}\n"]
    for instance in instances:
        values = {}
        for field in list_options(type(instance)):
            # Members of enumerations become their values, and tuples lists.
            value = json.loads(json.dumps(getattr(instance, field.name)))
            unset = value is None and field.default is None
            if field.name not in UNSAVED and not unset and value not in ([], {}, ""):
                values[field.name] = value
        lines.append(f"# {type(instance).__name__}\n")
        lines.append(yaml.safe_dump(values, sort_keys=True, allow_unicode=True))
    return "".join(lines)
