"""Two small runs that were trained, checked and pushed to a Hub on loopback, once for all tests."""

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
DRIVER = """
import json, sys
from siglip_flowers.publish.command import main as publish
from siglip_flowers.commands.train import main as train
for command, argv in json.load(sys.stdin):
    code = {"publish": publish, "train": train}[command](argv)
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
class Published:
    """The server with garden/map and garden/mean, and the runs that they came from."""

    root: Path
    hub: Hub
    trained_map: Step
    failed_mean: Step
    resumed_mean: Step
    requests_of_resumed: list[str]

    def run(self, name: str) -> Path:
        return self.root / "runs" / name

    @property
    def images(self) -> Path:
        return self.root / "images"


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


def run_commands(
    environment: dict[str, str], *commands: tuple[str, list[str]], cwd: Path = REPOSITORY
) -> list[Step]:
    """Run train and publish commands one after the other, in one process of that environment."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(commands),
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outputs, errors = done.stdout.split("EXIT "), done.stderr.split("EXIT ")
    return [
        Step(int(outputs[n + 1].split("\n")[0]), *(_strip(part[n]) for part in (outputs, errors)))
        for n in range(len(commands))
    ]


def _strip(text: str) -> str:
    # What follows the exit code of the command before.
    return text.partition("\n")[2] if text[:1].isdigit() else text


@functools.cache
def publish_small_runs() -> Published:
    """Train and push both models; the first upload is cut off, and the commit of mean fails."""
    place = tempfile.TemporaryDirectory(prefix="siglip_flowers_hub_")
    server = serve_hub()
    hub = server.__enter__()
    # Both live as long as the process.
    publish_small_runs.__dict__["kept"] = (place, server)
    root = Path(place.name)
    checkpoint, images = make_checkpoint(root / "checkpoint"), make_folder(root / "images")
    for folder in images.iterdir():
        (folder / CLASSES[-1]).rename(folder / ODD_NAME)
    hub.faults += [
        Fault("PUT", "^/lfs/"),
        Fault("POST", "garden/mean/commit", status=500),
    ]

    def train(name: str) -> tuple[str, list[str]]:
        more = ("--pooling", name, "--push_to_hub", "true", "--hub_model_id", f"garden/{name}")
        return "train", small_options(checkpoint, images, root / "runs" / name, *more)

    environment = hub_environment(hub.endpoint, root / "home")
    again = ["--hub_model_id", "garden/mean", str(root / "runs" / "mean")]
    first, second, third = run_commands(
        environment, train("map"), train("mean"), ("publish", again)
    )
    # whoami is the first request of each of the three commands.
    starts = [n for n, line in enumerate(hub.requests) if line == "GET /api/whoami-v2"]
    return Published(root, hub, first, second, third, hub.requests[starts[-1] :])
