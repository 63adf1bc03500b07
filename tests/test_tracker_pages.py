"""What Aim's web page shows of a run, in a real browser, without network."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from siglip_flowers.commands.train import main as train
from tests.small_runs import make_checkpoint, make_folder, small_options

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("aim") is None, reason="aim is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to look at the page with"),
]


@pytest.fixture
def page(tmp_path):
    """The address of ``aim up`` over one small run; all its processes end with the test."""
    checkpoint, folder = make_checkpoint(tmp_path / "tiny"), make_folder(tmp_path / "data", 4, 2)
    more = ("--report_to", "aim", "--aim_repo", str(tmp_path), "--num_train_epochs", "1")
    assert train(small_options(checkpoint, folder, tmp_path / "poppy-run", *more)) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    aim = str(Path(sys.executable).with_name("aim"))
    command = [aim, "up", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HOME": str(tmp_path), "__AIM_TELEMETRY_ENABLED__": "0"}
    process = subprocess.Popen(
        [*command, "--workers", "1", "--repo", str(tmp_path), "--yes"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api/projects/", timeout=5).read()
                break
            time.sleep(0.3)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_web_page_lists_the_run(page, tmp_path):
    assert CHROMIUM is not None
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shown = subprocess.run(
        [
            *(CHROMIUM, *CHROMIUM_OPTIONS, profile, "--window-size=1600,1000"),
            *("--virtual-time-budget=30000", "--dump-dom", f"{page}/runs"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "poppy-run" in shown.stdout
    assert "siglip_flowers" in shown.stdout
