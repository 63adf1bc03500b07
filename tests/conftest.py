"""Fixtures shared by all tests: where the real photographs and the real small SigLIP lie."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

# Decoded pixels of tests stay out of the user's cache; commands that tests start inherit this.
_CACHE = tempfile.TemporaryDirectory(prefix="siglip_flowers_tests_")
os.environ["SIGLIP_FLOWERS_CACHE"] = _CACHE.name
# The same goes for tracked runs, where a test does not ask for them.
os.environ["SIGLIP_FLOWERS_REPORT_TO"] = "none"
# Trackio asks for it once, when it is imported.
os.environ["TRACKIO_DIR"] = f"{_CACHE.name}/trackio"

# Dozens of commands start below: none should compile the package anew, whatever the shell says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Tests that run side by side share the cores evenly: threads of two programs on the same cores
# wait for each other longer than they work. What tests start inherits this.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if _WORKER is not None and hasattr(os, "sched_setaffinity"):
    _CORES = sorted(os.sched_getaffinity(0))
    _COUNT = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    _MINE = _CORES[int(_WORKER.removeprefix("gw")) % len(_CORES) :: _COUNT]
    os.sched_setaffinity(0, _MINE)
    torch.set_num_threads(len(_MINE))

REPOSITORY = Path(__file__).resolve().parents[1]


def _shared_path(name: str) -> Path:
    root = Path(os.environ.get("SIGLIP_FLOWERS_SHARED", REPOSITORY.parent / "shared"))
    path = root / name
    if not path.is_dir():
        pytest.skip(f"{name} is not in {root}; set SIGLIP_FLOWERS_SHARED to the folder with it")
    return path


@pytest.fixture(scope="session")
def flowers_dir() -> Path:
    """All 8189 Flowers102 photographs at 64x64, in the original layout."""
    return _shared_path("flowers102-64px")


@pytest.fixture(scope="session")
def nano_dir() -> Path:
    """A small, really pretrained two-tower SigLIP checkpoint."""
    return _shared_path("siglip-nano")


@pytest.fixture(scope="session")
def tiny_dir(nano_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-tower SigLIP of two layers of width 32, for tests of mechanics alone."""
    # This module is imported by that one.
    from tests.small_runs import make_two_towers

    return make_two_towers(tmp_path_factory.mktemp("tiny"), nano_dir)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny untrained vision tower and 60 images of three classes; neither is changed."""
    from tests.small_runs import make_checkpoint, make_folder

    directory = tmp_path_factory.mktemp("small")
    return make_checkpoint(directory / "checkpoint"), make_folder(directory / "data")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium that asks nobody anything."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    options = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=options)
        yield started
        started.close()


@pytest.fixture(scope="module", autouse=True)
def _blank_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Save empty figures: drawing takes half of a small run. Modules marked ``figures`` draw."""

    def save_blank(figure: object, target: Any, **options: Any) -> None:
        if options.get("format") == "svg":
            target.write("<svg></svg>")
        else:
            Image.new("RGB", (128, 128)).save(target, "PNG")

    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("figures") is None:
            patch.setattr("siglip_flowers.plots.theme._render", save_blank)
        yield


@pytest.fixture
def _unset_determinism() -> Iterator[None]:
    """full_determinism sets environment variables and a switch of torch for good."""
    before = dict(os.environ)
    yield
    torch.use_deterministic_algorithms(False)
    os.environ.clear()
    os.environ.update(before)
