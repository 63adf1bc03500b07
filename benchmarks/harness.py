"""Measure arms side by side: rounds in turn, medians, peak memory, and the machine's name."""

import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from siglip_flowers.base.environment import describe_environment
from siglip_flowers.base.errors import RunError
from siglip_flowers.commands.entry import Command, run_command

REPOSITORY = Path(__file__).resolve().parents[1]
MEMORY_MARK = "peak memory: "
SAMPLING_SECONDS = 0.02


@dataclass(frozen=True)
class Sample:
    """One round of one arm.

    Attributes:
        images: Images that were worked through, or any other thing that is counted.
        seconds: Wall-clock time.
        waiting_seconds: The part of it spent waiting for data; None where it was not measured.
    """

    images: int
    seconds: float
    waiting_seconds: float | None = None

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds


def alternate(
    arms: Mapping[str, Callable[[], Sample]], rounds: int, warmup_rounds: int = 1
) -> dict[str, list[Sample]]:
    """Run every arm once a round, and return the samples of all rounds after the warm-up.

    Each round starts with another arm, so that none always runs on the machine that one
    particular neighbor leaves behind.
    """
    names = list(arms)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for number in range(-warmup_rounds, rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            sample = arms[name]()
            if number >= 0:
                samples[name].append(sample)
    return samples


def summarize(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return median, lowest and highest rate, median seconds and share of waiting for data."""
    rates = [sample.rate for sample in samples]
    waiting = [
        sample.waiting_seconds / sample.seconds
        for sample in samples
        if sample.waiting_seconds is not None
    ]
    return {
        "images_per_second": statistics.median(rates),
        "images_per_second_min": min(rates),
        "images_per_second_max": max(rates),
        "seconds_per_round": statistics.median(sample.seconds for sample in samples),
        "rounds": len(samples),
        "data_wait_share": statistics.median(waiting) if waiting else None,
    }


def compare(samples: Mapping[str, Sequence[Sample]], arm: str, reference: str) -> float:
    """Return how many times faster one arm is: the median over rounds of the ratio of rates.

    Ratios are taken within a round, where both arms met the same state of the machine.
    """
    return statistics.median(
        ours.rate / theirs.rate
        for ours, theirs in zip(samples[arm], samples[reference], strict=True)
    )


def select_device(use_cpu: bool = False) -> torch.device:
    """Return the accelerator, or the CPU where there is none or it is asked for."""
    return torch.device("cuda" if torch.cuda.is_available() and not use_cpu else "cpu")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def name_device(device: torch.device) -> str:
    """Return the name for people, as ``NVIDIA H100 80GB HBM3`` or ``AMD EPYC, 2 threads``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_name_processor()}, {torch.get_num_threads()} threads"


def slug_device(device: torch.device) -> str:
    """Return the name for files: ``cpu``, ``nvidia-h100`` of ``NVIDIA H100 80GB HBM3``."""
    if device.type != "cuda":
        return device.type
    words = re.findall(r"[a-z0-9]+", torch.cuda.get_device_name(device).lower())
    return "-".join(w for w in words if not re.fullmatch(r"\d+gb|hbm\w*|sxm\d*|pcie|nvl", w))


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what a figure depends on: device, threads, versions and commit."""
    return {
        **describe_environment(name_device(device)),
        "device_slug": slug_device(device),
        "processor": _name_processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
    }


def _name_processor() -> str:
    facts = Path("/proc/cpuinfo")
    text = facts.read_text(encoding="utf-8") if facts.is_file() else ""
    match = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


class MemoryMeter(AbstractContextManager["MemoryMeter"]):
    """Watches this process while an arm runs alone in it; ``report`` then prints the peaks.

    ``resident_bytes`` counts mapped files (the pixel cache, say), which the system takes back when
    it needs the memory; ``anonymous_bytes`` does not, and is sampled. None: not known here.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._anonymous = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def read(self) -> dict[str, int | None]:
        """Return the peaks in bytes."""
        cuda = self.device.type == "cuda"
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        return {
            "resident_bytes": read_status("VmHWM"),
            "anonymous_bytes": self._anonymous or None,
            "worker_resident_bytes": children or None,
            "cuda_bytes": torch.cuda.max_memory_allocated(self.device) if cuda else None,
        }

    def report(self) -> None:
        """Print the peaks for the process that started this one."""
        print(MEMORY_MARK + json.dumps(self.read()), flush=True)

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLING_SECONDS):
            self._anonymous = max(self._anonymous, read_status("RssAnon") or 0)


def read_status(key: str, process: int | str = "self") -> int | None:
    """Return a number of bytes from the status of a process; None where there is none."""
    # Not ru_maxrss: a process inherits that peak from the one that started it.
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def measure_memory(module: str, argv: Sequence[str]) -> dict[str, int | None]:
    """Run ``python -m module argv`` by itself and return the peaks that its meter reported.

    Raises:
        RunError: The process failed or reported nothing.
    """
    return run_alone(module, argv, MEMORY_MARK)


def list_memory_options(options: Any, arm: str) -> list[str]:
    """Return the options of a process that runs one arm for its memory.

    Args:
        options: A dataclass of options, among them ``memory`` and ``memory_of``.
        arm: The arm's name.
    """
    values = {
        **{key: value for key, value in asdict(options).items() if value is not None},
        "memory_of": arm,
        "memory": False,
    }
    return [f"--{key}={value}" for key, value in values.items()]


def get_own_bytes(peaks: Mapping[str, int | None] | None) -> int | None:
    """Return the peak that targets are about: a GPU's, or what a process has to itself.

    Not the resident size, which counts the mapped pages of the pixel cache; None: not measured.
    """
    return (peaks or {}).get("cuda_bytes") or (peaks or {}).get("anonymous_bytes")


def run_alone(module: str, argv: Sequence[str], mark: str) -> dict[str, Any]:
    """Run ``python -m module argv`` and return the JSON behind ``mark`` in its last such line.

    Raises:
        RunError: The process failed or printed no such line.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *argv],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    for line in reversed(done.stdout.splitlines()):
        if done.returncode == 0 and line.startswith(mark):
            figures: dict[str, Any] = json.loads(line.removeprefix(mark))
            return figures
    raise RunError(
        f"python -m {module} {' '.join(argv)} ended with code {done.returncode} and no figure: "
        f"{done.stderr.strip()[-2000:]}"
    )


def time_commands(
    commands: Mapping[str, tuple[Sequence[str], int]], rounds: int
) -> dict[str, list[float]]:
    """Start python with the words of each command in turn; return the seconds of each round.

    Raises:
        RunError: One ended with another exit code than the one beside its words.
    """

    def start(words: Sequence[str], exit_code: int) -> Sample:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        if done.returncode != exit_code:
            raise RunError(f"python {' '.join(words)} gave {done.returncode}: {done.stderr}")
        return Sample(1, time.perf_counter() - began)

    samples = alternate({name: partial(start, *each) for name, each in commands.items()}, rounds)
    return {name: [sample.seconds for sample in found] for name, found in samples.items()}


def run_benchmark(
    kind: type,
    module: str,
    description: str | None,
    run: Callable[[Any, str], None],
    argv: list[str] | None,
) -> int:
    """Parse the command line into one dataclass, run the benchmark and return the exit code.

    Args:
        kind: The dataclass of options.
        module: What stands behind ``python -m``.
        description: The module's docstring, whose first line goes into ``--help``.
        run: The work, given the options and what was typed.
        argv: The command line; the program's own when left out.
    """
    arguments = sys.argv[1:] if argv is None else argv
    first_line = str(description).split("\n")[0]
    command = Command(module, first_line, (kind,))
    typed = " ".join(["python -m", module, *arguments])
    return run_command(command, lambda parsed: run(*parsed, typed), arguments)


class Stopwatch:
    """Times a block, waiting for the device at both ends: ``with Stopwatch(device) as watch``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0

    def __enter__(self) -> Self:
        synchronize(self.device)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        synchronize(self.device)
        self.seconds = time.perf_counter() - self._start


def run_timed(work: Callable[[], object], images: int, device: torch.device) -> Sample:
    """Do the work once and return how long it took."""
    with Stopwatch(device) as watch:
        work()
    return Sample(images, watch.seconds)
