"""The fields of ``transformers.TrainingArguments``, read from its source without importing torch.

``transformers.TrainingArguments`` takes a second to import, with torch and accelerate, which is
too long for ``--help``. Its source states every field literally. What it states otherwise is not
guessed: :func:`make_training_options` then returns None and the class itself must be asked.
"""

import ast
import dataclasses
import enum
import importlib.util
from pathlib import Path
from typing import Any, Literal, Optional, Union

from siglip_flowers.config.options import TrainingOptions

TYPES: dict[str, Any] = {
    kind.__name__: kind for kind in (bool, int, float, str, list, dict, tuple)
} | {"Any": Any, "Literal": Literal, "Optional": Optional, "Union": Union, "None": None}
# What they mark is no option at all.
PSEUDO_TYPES = ("ClassVar", "InitVar")


class _UnreadableError(Exception):
    """The source says something in a way that is not understood here."""


def make_training_options() -> type | None:
    """Return a dataclass with the fields of ``SiglipTrainingArguments`` and its own checks.

    It checks what ``TrainingOptions`` checks; enumerations whose source is not found and
    classes count as text. None where the source of transformers is not found or not understood.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "training_args.py"
    try:
        inherited = dataclasses.make_dataclass("TrainingArguments", read_fields(path))
    except (OSError, SyntaxError, ValueError, TypeError, _UnreadableError):
        return None
    return dataclasses.make_dataclass(
        "SiglipTrainingArguments", [], bases=(TrainingOptions, inherited)
    )


def read_fields(
    path: Path, class_name: str = "TrainingArguments"
) -> list[tuple[str, Any, dataclasses.Field[Any]]]:
    """Read the fields of a dataclass from a source file: name, type, and default with metadata.

    Raises:
        OSError, SyntaxError: The file cannot be read.
    """
    module = ast.parse(path.read_text(encoding="utf-8"))
    found = _find_class(module, class_name)
    if found.bases:
        raise _UnreadableError(f"{class_name} has fields elsewhere too")
    body = found.body
    fields = []
    for statement in body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            kind = _read_type(statement.annotation, module, path)
            fields.append((statement.target.id, kind, _read_field(statement.value, body)))
    if not fields:
        raise _UnreadableError(f"{class_name} has no fields")
    return fields


def _find_class(module: ast.Module, name: str) -> ast.ClassDef:
    for statement in module.body:
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            return statement
    raise _UnreadableError(f"no class {name}")


def _read_type(annotation: ast.expr, module: ast.Module, path: Path) -> Any:
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    if names & set(PSEUDO_TYPES):
        raise _UnreadableError(ast.unparse(annotation))
    others = {name: _read_enum(name, module, path) or str for name in names - set(TYPES)}
    return _evaluate(annotation, TYPES | others)


def _evaluate(node: ast.expr, names: dict[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return names[name]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _evaluate(left, names) | _evaluate(right, names)
        case ast.Tuple(elts=elements):
            return tuple(_evaluate(element, names) for element in elements)
        case ast.Subscript(value=value, slice=index):
            return _evaluate(value, names)[_evaluate(index, names)]
    raise _UnreadableError(ast.unparse(node))


def _read_enum(name: str, module: ast.Module, path: Path) -> type | None:
    """Read an enumeration from the file, or from the neighbor that the file imports it from."""
    for statement in module.body:
        if (
            isinstance(statement, ast.ImportFrom)
            and statement.level == 1
            and statement.module is not None
            and any((alias.asname or alias.name) == name for alias in statement.names)
        ):
            path = path.parent.joinpath(*statement.module.split(".")).with_suffix(".py")
            if not path.is_file():
                return None
            module = ast.parse(path.read_text(encoding="utf-8"))
            break
    try:
        found = _find_class(module, name)
    except _UnreadableError:
        return None
    if not any(isinstance(base, ast.Name) and base.id.endswith("Enum") for base in found.bases):
        return None
    members = [
        (target.id, statement.value.value)
        for statement in found.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name)
    ]
    return enum.Enum(name, members) if members else None  # type: ignore[return-value]


def _read_field(value: ast.expr | None, body: list[ast.stmt]) -> dataclasses.Field[Any]:
    if value is None:
        return dataclasses.field()
    if not isinstance(value, ast.Call):
        return dataclasses.field(default=_read_default(value, body))
    if not isinstance(value.func, ast.Name) or value.func.id != "field" or value.args:
        raise _UnreadableError(ast.unparse(value))
    keywords: dict[str, Any] = {}
    for keyword in value.keywords:
        match keyword:
            case ast.keyword(arg="default"):
                keywords["default"] = _read_default(keyword.value, body)
            case ast.keyword(arg="default_factory", value=ast.Name(id="list" | "dict" as name)):
                keywords["default_factory"] = TYPES[name]
            case ast.keyword(arg="metadata", value=ast.Dict() as metadata):
                keywords["metadata"] = _read_metadata(metadata)
            case ast.keyword(arg="init" | "repr" as name):
                keywords[name] = ast.literal_eval(keyword.value)
            case _:
                raise _UnreadableError(ast.unparse(value))
    return dataclasses.field(**keywords)  # type: ignore[no-any-return]


def _read_default(value: ast.expr, body: list[ast.stmt]) -> Any:
    if not isinstance(value, ast.Name):
        return ast.literal_eval(value)
    # A name that the class body gives a value: the last one is for the newest torch.
    values = [
        statement.value
        for outer in body
        for statement in ast.walk(outer)
        if isinstance(statement, ast.Assign)
        and any(isinstance(item, ast.Name) and item.id == value.id for item in statement.targets)
    ]
    if not values:
        raise _UnreadableError(value.id)
    return ast.literal_eval(values[-1])


def _read_metadata(metadata: ast.Dict) -> dict[str, Any]:
    found = {}
    for key, value in zip(metadata.keys, metadata.values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            raise _UnreadableError(ast.unparse(metadata))
        # Choices that are computed are left to the class itself to check.
        if key.value != "choices" or isinstance(value, (ast.List, ast.Tuple)):
            found[key.value] = ast.literal_eval(value)
    return found
