"""A Hub on loopback with two small runs that were trained and pushed to it."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from siglip_flowers.commands import train as train_command
from siglip_flowers.publish import command as publish_command
from tests.publish.hub_server import TOKEN, Fault, Hub, serve_hub
from tests.small_runs import CLASSES, make_checkpoint, make_folder, small_options

# One with every sign that Markdown, HTML and YAML care about.
ODD_NAME = "clover | *x* <b>_y_"


@dataclass(frozen=True)
class Step:
    """What one command did."""

    code: int
    output: str
    errors: str
    requests: list[str]


class Garden:
    """The server, and the folder of checkpoint, images and runs."""

    def __init__(self, root: Path, hub: Hub) -> None:
        self.root, self.hub = root, hub
        self.images = root / "images"
        self.steps: dict[str, list[Step]] = {}
        torch.manual_seed(0)
        make_checkpoint(root / "checkpoint")
        for folder in make_folder(self.images).iterdir():
            (folder / CLASSES[-1]).rename(folder / ODD_NAME)

    def run(self, name: str) -> Path:
        """Return the directory of a finished run, which is also pushed: ``map`` or ``mean``."""
        if name not in self.steps:
            self.steps[name] = self._push_map() if name == "map" else self._push_mean()
        return self.root / "runs" / name

    def files(self, name: str) -> dict[str, bytes]:
        """Return what is on the Hub of a run."""
        self.run(name)
        return self.hub.repositories[f"garden/{name}"].files

    def _push_map(self) -> list[Step]:
        """Train and push at the end; the first upload is cut off."""
        self.hub.faults.append(Fault("PUT", "^/lfs/"))
        return [self._execute(train_command.main, self._train("map"))]

    def _push_mean(self) -> list[Step]:
        """Train; the push at the end fails, and the command in its message succeeds."""
        self.hub.faults.append(Fault("POST", "garden/mean/commit", status=500))
        out = ["--output_dir", str(self.root / "to-be-published"), "--license", "mit"]
        out += ["--example_images", "true"]
        again = [str(self.root / "runs" / "mean"), "--hub_model_id", "garden/mean", *out]
        return [
            self._execute(train_command.main, self._train("mean")),
            self._execute(publish_command.main, again),
        ]

    def _train(self, name: str) -> list[str]:
        push = ["--push_to_hub", "true", "--hub_model_id", f"garden/{name}"]
        out = self.root / "runs" / name
        return small_options(self.root / "checkpoint", self.images, out, "--pooling", name, *push)

    def _execute(self, command: Callable[[list[str]], int], argv: list[str]) -> Step:
        before, out, err = len(self.hub.requests), io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command(argv)
        return Step(code, out.getvalue(), err.getvalue(), self.hub.requests[before:])


@contextlib.contextmanager
def open_garden(root: Path) -> Iterator[Garden]:
    """Serve a Hub, and make this process a user of it."""
    with pytest.MonkeyPatch.context() as patch, serve_hub() as hub:
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield Garden(root, hub)


def stranger_environment(endpoint: str, home: Path) -> dict[str, str]:
    """Return the environment of another user of that Hub, without a token."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    del environment["HF_TOKEN"]
    environment.pop("PYTHONPATH", None)
    return environment
