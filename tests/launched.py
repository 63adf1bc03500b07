"""Runs through ``accelerate launch`` itself, and a record of what their processes write."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs" / "accelerate"
LAUNCH_SECONDS = 600
CLEANUP_SECONDS = 60
# Python runs a module of this name in every process whose path has it. Events of Python's own audit
# are what the process does, whoever calls it; ranks are told apart, launchers (no rank) left out.
OBSERVER = """
import os, sys

def watch(log):
    changes = {"os.rename": (0, 1), "os.remove": (0,), "os.link": (0, 1), "os.symlink": (1,)}

    def note(event, arguments):
        if event == "open":
            writes = arguments[2] is not None and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            names = arguments[:1] if writes else ()
        else:
            names = [arguments[place] for place in changes.get(event, ())]
        if names and not any(isinstance(name, int) for name in names):
            fields = [event, *map(os.fsdecode, names)]
            os.write(log, ("\\t".join(fields) + "\\n").encode())

    sys.addaudithook(note)

if "RANK" in os.environ and "WRITES_DIR" in os.environ:
    path = os.path.join(os.environ["WRITES_DIR"], "rank" + os.environ["RANK"])
    watch(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
"""


@dataclass(frozen=True)
class Change:
    """A file opened for writing, renamed or removed; ``path`` is the new name of a renamed one."""

    rank: int
    event: str
    path: Path


@dataclass(frozen=True)
class Launch:
    """What the processes of a launch did.

    Attributes:
        output_dir: Of the run.
        cache_dir: Of its arrays.
        changes: What they changed on the disk, seen from Python.
        said: What each rank wrote to standard output and error.
    """

    output_dir: Path
    cache_dir: Path
    changes: list[Change]
    said: dict[int, str]


def find_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launch(
    folder: Path, config: str, options: list[str], *machines: list[str], script: str = "train.py"
) -> Launch:
    """Start a script by ``accelerate launch`` once for every machine and wait for all.

    Args:
        folder: An empty folder; the run gets its ``run`` for output and ``cache`` for arrays.
        config: Name of a shipped configuration.
        options: Options of the script.
        machines: Options of each machine's launcher.
        script: train.py or eval.py.
    """
    writes, observer = folder / "writes", folder / "observer"
    for directory in (writes, observer):
        directory.mkdir(parents=True)
    (observer / "sitecustomize.py").write_text(OBSERVER)
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "PYTHONPATH": os.pathsep.join((str(observer), str(REPOSITORY))),
        "WRITES_DIR": str(writes),
    }  # fmt: skip
    output_dir, cache_dir = folder / "run", folder / "cache"
    directories = ["--output_dir", str(output_dir), "--cache_dir", str(cache_dir)]
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "accelerate.commands.launch"),
                *("--config_file", str(CONFIGS / config)),
                *("--tee", "3", "--log_dir", str(folder / f"log{number}"), *machine),
                *(script, *options, *directories),
            ],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number, machine in enumerate(machines)
    ]
    try:
        outputs = [process.communicate(timeout=LAUNCH_SECONDS)[0] for process in processes]
    finally:
        # Not killed: a launcher ends its processes, which have sessions of their own.
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(CLEANUP_SECONDS)
    codes = [process.returncode for process in processes]
    assert codes == [0] * len(codes), "\n".join(outputs)
    return Launch(output_dir, cache_dir, _read_changes(writes), _read_logs(folder, machines))


def _read_changes(writes: Path) -> list[Change]:
    changes = []
    for log in sorted(writes.iterdir()):
        for line in log.read_text().splitlines():
            event, *names = line.split("\t")
            changes.append(Change(int(log.name.removeprefix("rank")), event, Path(names[-1])))
    return changes


def _read_logs(folder: Path, machines: tuple[list[str], ...]) -> dict[int, str]:
    """Return what each rank said; machines have equally many processes, in the order of ranks."""
    said: dict[int, str] = {}
    for number in range(len(machines)):
        local = sorted((folder / f"log{number}").glob("*/attempt_0/*"))
        for directory in local:
            said[len(said)] = "".join(log.read_text() for log in sorted(directory.glob("*.log")))
    return said
