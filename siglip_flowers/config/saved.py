"""YAML files of options: those that users write, and the one that is saved with a run."""

import enum
import logging
import re
from pathlib import Path
from typing import Any

import yaml

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.version import __version__
from siglip_flowers.config.fields import list_options, suggest_nearest
from siglip_flowers.config.refused import REFUSED, REMOVED

logger = logging.getLogger(__name__)
# What the reader raises for text that is not YAML, or for dates and numbers that do not exist.
YAML_ERRORS = (
    yaml.YAMLError,
    ValueError,
    OverflowError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
)
# A saved configuration that is read again must neither overwrite nor publish unasked, nor carry the
# processor of one machine to another.
UNSAVED = ("overwrite_output_dir", "push_to_hub", "use_cpu")
_VERSION = re.compile(r"# siglip_flowers (\S+)\n")


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
    except YAML_ERRORS as error:
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
    kept, dropped = {}, []
    for key, value in values.items():
        if key in known:
            kept[key] = value
        elif key in REMOVED and value == REMOVED[key]:
            dropped.append(key)
        elif key in REFUSED:
            raise InputError(f"{key} in {origin} is not supported: {REFUSED[key]}")
        elif key in REMOVED:
            raise InputError(
                f"{key} in {origin} is {value!r}, and this version has no such option; remove the "
                "line."
            )
        else:
            raise InputError(f"Unknown key {key!r} in {origin}{suggest_nearest(str(key), known)}")
    if dropped:
        logger.warning(
            "%s is from an older version; options that are gone and had no effect: %s.",
            origin,
            ", ".join(dropped),
        )
    return kept


def read_version(path: Path) -> str | None:
    """Return the version of the package that saved a configuration; None before 0.2."""
    match = _VERSION.match(path.read_text(encoding="utf-8"))
    return None if match is None else match[1]


def dump_configuration(*instances: Any) -> str:
    """Return the resolved options as YAML text, which ``--config`` reads back.

    Options that are unset by default and still unset are left out.
    """
    lines = [f"# siglip_flowers {__version__}\n"]
    for instance in instances:
        values = {}
        for field in list_options(type(instance)):
            value = _plain(getattr(instance, field.name))
            unset = value is None and field.default is None
            if field.name not in UNSAVED and not unset and value not in ([], {}, ""):
                values[field.name] = value
        lines.append(f"# {type(instance).__name__}\n")
        lines.append(yaml.safe_dump(values, sort_keys=True, allow_unicode=True))
    return "".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
