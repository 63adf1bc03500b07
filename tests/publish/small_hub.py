"""Two small runs, trained and pushed to a Hub on loopback, once for all tests."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.publish.hub_server import TOKEN, Fault, Hub, serve_hub
from tests.small_runs import CLASSES, make_checkpoint, make_folder, small_options

# One with every sign that Markdown, HTML and YAML care about.
ODD_NAME = "clover | *x* <b>_y_"
# Commands in one process, which imports everything once.
DRIVER = """
import json, sys
from pathlib import Path
from siglip_flowers.base.errors import RunError
from siglip_flowers.commands.train import main as train
from siglip_flowers.publish.command import main as publish
from siglip_flowers.publish.hub import check_hub_access, push_directory

def push(directory, name):
    try:
        check_hub_access(name)
        push_directory(Path(directory), name, message="a test")
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    return 0

for command, argv in json.load(sys.stdin):
    code = push(*argv) if command == "push" else {"publish": publish, "train": train}[command](argv)
    print("EXIT", code, flush=True)
    print("EXIT", code, file=sys.stderr, flush=True)
"""


@dataclass(frozen=True)
class Step:
    """What one command did."""

    code: int
    output: str
    errors: str


@dataclass(frozen=True)
class Garden:
    """The server, and the folder of checkpoint, images and runs."""

    root: Path
    hub: Hub

    def run(self, name: str) -> Path:
        return self.root / "runs" / name

    @property
    def images(self) -> Path:
        return self.root / "images"

    def train(self, name: str, *more: str) -> tuple[str, list[str]]:
        options = (str(self.root / "checkpoint"), self.images, self.run(name))
        return "train", small_options(*options, "--pooling", name, *more)

    def execute(self, *commands: tuple[str, list[str]], endpoint: str | None = None) -> list[Step]:
        """Run commands one after the other, in one process of a user of this Hub."""
        done = subprocess.run(
            [sys.executable, "-c", DRIVER],
            input=json.dumps(commands),
            env=hub_environment(endpoint or self.hub.endpoint, self.root / "home"),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs, errors = (text.split("EXIT ") for text in (done.stdout, done.stderr))
        return [
            Step(
                int(outputs[n + 1].split("\n")[0]), *(_strip(part[n]) for part in (outputs, errors))
            )
            for n in range(len(commands))
        ]


def hub_environment(endpoint: str, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    """Return the environment of a user of that Hub, with caches of its own."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(REPOSITORY),
    }
    environment.pop("HF_TOKEN", None)
    return environment if token is None else {**environment, "HF_TOKEN": token}


def _strip(text: str) -> str:
    # What follows the exit code of the command before.
    return text.partition("\n")[2] if text[:1].isdigit() else text


@functools.cache
def open_garden() -> Garden:
    """Start a Hub and draw images; both live as long as the process."""
    place = tempfile.TemporaryDirectory(prefix="siglip_flowers_hub_")
    server = serve_hub()
    hub = server.__enter__()
    open_garden.__dict__["kept"] = (place, server)
    root = Path(place.name)
    make_checkpoint(root / "checkpoint")
    for folder in make_folder(root / "images").iterdir():
        (folder / CLASSES[-1]).rename(folder / ODD_NAME)
    return Garden(root, hub)


# By name: what happens to a push, and what its message says.
FAULTS = {
    "me/a": (Fault("GET", "whoami", 401), "answered 401 .*hf auth login"),
    "me/b": (Fault("POST", "repos/create", 403), "answered 403 .*write access"),
    "me/c": (Fault("POST", "repos/create", 404), "answered 404 .*check the name"),
    "me/d": (Fault("POST", "repos/create", 400), r"answered 400 \(.*again later"),
    "me/e": (Fault("POST", "me/e/commit", 500), r"answered 500 \(.*again later"),
    "me/f": (Fault("POST", "me/f/commit"), "could not be reached.*check the network"),
}


@functools.cache
def push_map() -> tuple[Step, dict[str, Step]]:
    """Train garden/map and push it at the end; the first upload is cut off.

    Returns:
        What that did, and what the pushes before it did that ran into ``FAULTS``.
    """
    garden = open_garden()
    notes = garden.root / "notes"
    notes.mkdir()
    (notes / "notes.txt").write_text("A file like any other.")
    garden.hub.faults += [fault for fault, _ in FAULTS.values()]
    garden.hub.faults.append(Fault("PUT", "^/lfs/"))
    *failed, step = garden.execute(
        *(("push", [str(notes), name]) for name in FAULTS),
        garden.train("map", "--push_to_hub", "true", "--hub_model_id", "garden/map"),
    )
    return step, dict(zip(FAULTS, failed, strict=True))


@functools.cache
def push_mean() -> tuple[Step, Step, list[str]]:
    """Train garden/mean; the push at its end fails, and the command in its message succeeds.

    Returns:
        Both steps, and the requests of the second.
    """
    garden = open_garden()
    garden.hub.faults.append(Fault("POST", "garden/mean/commit", status=500))
    push = ["--hub_model_id", "garden/mean"]
    out = ["--output_dir", str(garden.root / "to-be-published")]
    failed, again = garden.execute(
        garden.train("mean", "--push_to_hub", "true", *push),
        ("publish", [*push, str(garden.run("mean")), *out, "--license", "mit"]),
    )
    # whoami is the first request of each command.
    starts = [n for n, line in enumerate(garden.hub.requests) if line == "GET /api/whoami-v2"]
    return failed, again, garden.hub.requests[starts[-1] :]
