"""The shape of the code: imports point one way, functions and modules are small."""

import ast
from pathlib import Path

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "siglip_flowers"
# A core module may import from its own room and from those before it.
ROOMS = (
    *("base", "config", "runtime", "metrics", "data", "model"),
    *("inference", "evaluation", "plots", "tracking", "training"),
)
FEATURES = {
    *("probe", "experiment", "search", "report", "compare"),
    *("robustness", "export", "publish", "demo"),
}
KNOWN_ROOMS = {*ROOMS, *FEATURES, "commands", "__main__", ""}
# All other features know the core only.
ALLOWED = {("publish", "report")}
MAX_FUNCTION_LINES, MAX_PARAMETERS, MAX_MODULE_LINES = 80, 8, 400
TREES = {
    path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))
}


def name_module(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_module(path) for path in TREES}


def list_imports(tree: ast.Module) -> set[str]:
    """Return the modules that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import at line {node.lineno}"
            base = str(node.module)
            # "from package import module" and "from module import name" look alike.
            found.update(
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in NAMES else base
                for alias in node.names
            )
    return found


def find_room(module: str) -> str:
    """Return the room of a module: the name after the package's; "" for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def may_import(room: str, other: str) -> bool:
    if room in ("commands", "", "__main__") or room == other:
        return True
    if room in FEATURES:
        # The run of a command, which its main() calls, and never a command itself.
        return other in (*ROOMS, "commands") or (room, other) in ALLOWED
    return other in ROOMS and ROOMS.index(other) < ROOMS.index(room)


def find_violations() -> set[str]:
    found = set()
    for path, tree in TREES.items():
        module, room = name_module(path), find_room(name_module(path))
        found |= {
            f"{module} imports {other}"
            for other in list_imports(tree)
            if other.split(".")[0] == "siglip_flowers" and not may_import(room, find_room(other))
        }
        if len(path.read_text(encoding="utf-8").splitlines()) >= MAX_MODULE_LINES:
            found.add(f"{module} has {MAX_MODULE_LINES} lines or more")
        for node in ast.walk(tree):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES:
                found.add(f"{module}.{node.name} has more than {MAX_FUNCTION_LINES} lines")
            arguments = [*node.args.posonlyargs, *node.args.args]
            # A constructor may have any number of options that are given by name.
            arguments += [] if node.name == "__init__" else node.args.kwonlyargs
            names = {argument.arg for argument in arguments} - {"self", "cls", "ctx"}
            if len(names) > MAX_PARAMETERS and node.name != "forward":
                found.add(f"{module}.{node.name} has more than {MAX_PARAMETERS} parameters")
    return found


def test_imports_follow_the_rule_of_rooms_and_functions_are_small():
    found = find_violations()
    found |= {name for name in NAMES if find_room(name) not in KNOWN_ROOMS}
    assert not found, "\n".join(["", *sorted(found)])


def test_no_modules_import_each_other_in_a_circle():
    graph = {name_module(path): list_imports(tree) & NAMES for path, tree in TREES.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for imported in sorted(graph[module]):
                visit(imported, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_no_module_needs_torchvision():
    users = [path for path, tree in TREES.items() if "torchvision" in str(list_imports(tree))]
    assert not users
