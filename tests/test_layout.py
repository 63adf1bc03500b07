"""The shape of the code: imports point downward, modules are small, scripts hold no logic."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "siglip_flowers"
# Ground floor first; a module may import from its own floor and from lower ones.
FLOORS = (
    {"errors"},
    {"labels", "prompts"},
    {"metrics"},
    {"records"},
    {"config"},
    {"parsing"},
    {"data"},
    {"model"},
    {"inference"},
    {"evaluation"},
    {"reporting"},
    {"training"},
    {"exporting", "publishing"},
    {"page"},
    {"commands"},
    {"experiment"},
    {"__main__", "export", "publish", "search"},
)
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_module(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_module(path) for path in MODULES}


def list_imports(path: Path) -> set[str]:
    """Return the modules that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            base = str(node.module)
            # "from package import module" and "from module import name" look alike.
            found.update(
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in NAMES else base
                for alias in node.names
            )
    return found


def find_floor(module: str) -> int:
    """Return the floor of a module of the package; the package itself stands above all."""
    parts = module.split(".")
    return FLOOR_OF[parts[1]] if len(parts) > 1 else len(FLOORS)


def test_every_module_has_a_floor():
    assert {name.split(".")[1] for name in NAMES if "." in name} <= set(FLOOR_OF)


@pytest.mark.parametrize("path", MODULES, ids=name_module)
def test_imports_point_downward(path):
    here = name_module(path)
    upward = {
        module
        for module in list_imports(path)
        if module.split(".")[0] == "siglip_flowers" and find_floor(module) > find_floor(here)
    }
    assert not upward, f"{here} imports upward: {sorted(upward)}"


def test_no_modules_import_each_other_in_a_circle():
    graph = {name_module(path): list_imports(path) & NAMES for path in MODULES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for imported in graph[module]:
                visit(imported, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", MODULES, ids=name_module)
def test_modules_are_small_and_need_no_torchvision(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400
    assert not {name for name in list_imports(path) if name.split(".")[0] == "torchvision"}


@pytest.mark.parametrize("name", ["train.py", "eval.py"])
def test_scripts_are_a_docstring_and_a_call(name):
    path = REPOSITORY / name
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert "accelerate launch" in str(ast.get_docstring(tree)) or "python eval.py" in str(
        ast.get_docstring(tree)
    )
    logic = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.Assign)
    assert not any(isinstance(node, logic) for node in ast.walk(tree))


def test_the_package_imports_without_the_optional_packages():
    script = (
        "import sys\n"
        "for name in ('torchvision', 'aim', 'wandb', 'tensorboard'):\n"
        "    sys.modules[name] = None\n"
        "import siglip_flowers.commands.train, siglip_flowers.commands.eval\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
