"""The batch script, with substitutes for SLURM's commands on one machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "configs" / "slurm" / "train.sh"
PATIENCE_SECONDS = 60
SUBSTITUTES = {
    # A step is a session of processes.
    "srun": 'while [[ "$1" == --* ]]; do shift; done\n'
    'exec setsid --wait bash -c \'echo $$ > "$STATE/session"; exec "$@"\' step "$@"',
    # SLURM signals every process of the steps, launchers as well.
    "scancel": 'kill -USR1 $(ps -o pid= --sid "$(cat "$STATE/session")")',
    "scontrol": 'if [ "$1" = show ]; then echo here; else echo "$*" >> "$STATE/requeued"; fi',
    # Like torchrun: ends with 1 whatever code its processes end with.
    "accelerate": 'echo "$@" > "$STATE/launched"\n'
    'while [ "$1" != train.py ]; do shift; done\n"$PYTHON" "$@" || exit 1',
    "python": 'exec "$PYTHON" "$@"',
}
# Resumes from its "checkpoint"; on SIGUSR1 it takes a while to write one and ends as train.py does.
TRAIN = """
import os, signal, sys, time
state = os.environ["STATE"]
checkpoint = os.path.join(state, "checkpoint")

def stop(*_):
    time.sleep(0.5)
    open(checkpoint, "w").close()
    sys.exit(143)

signal.signal(signal.SIGUSR1, stop)
open(os.path.join(state, "options"), "w").write(" ".join(sys.argv[1:]))
if sys.argv[1] == "fail":
    sys.exit(2)
while not os.path.exists(checkpoint):
    time.sleep(0.05)
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Return how to start the job; the folder of the commands is the job's state, too."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, body in SUBSTITUTES.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("STATE", str(tmp_path))
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("SLURM_JOB_ID", "12345")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "here")
    monkeypatch.setenv("SLURM_NODEID", "0")

    def start(gpus: int, *options: str) -> subprocess.Popen:
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", str(gpus))
        return subprocess.Popen(["bash", SCRIPT, *options], cwd=tmp_path, text=True)

    return start


def wait_for(path: Path) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.05)


@pytest.mark.parametrize("gpus", [1, 4])
def test_a_warned_job_leaves_a_checkpoint_and_is_queued_again(job, tmp_path, gpus):
    process = job(gpus, "--output_dir", "a folder")
    wait_for(tmp_path / "options")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(PATIENCE_SECONDS) == (143 if gpus == 1 else 1)
    assert (tmp_path / "checkpoint").exists()
    assert (tmp_path / "requeued").read_text() == "requeue 12345\n"
    assert (tmp_path / "options").read_text() == "--output_dir a folder"
    if gpus > 1:
        launched = (tmp_path / "launched").read_text()
        assert "--num_machines 1 --num_processes 4 --main_process_ip here" in launched
        assert "--main_process_port 32345 --machine_rank 0 train.py" in launched
    # The next start resumes, ends by itself, and is not queued a second time.
    (tmp_path / "requeued").unlink()
    assert job(gpus, "--output_dir", "a folder").wait(PATIENCE_SECONDS) == 0
    assert not (tmp_path / "requeued").exists()


def test_a_job_that_fails_by_itself_is_not_queued_again(job, tmp_path):
    assert job(1, "fail").wait(PATIENCE_SECONDS) == 2
    assert not (tmp_path / "requeued").exists()
