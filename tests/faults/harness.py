"""Runs of ``train.py`` that are killed on the way, each in a fork of a process that imported all.

A start from scratch costs seconds of imports; a fork costs none, and dies by SIGKILL like any
other process.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from siglip_flowers.commands import train as train_command
from siglip_flowers.runtime.preemption import EXIT_PREEMPTED
from siglip_flowers.training import run  # noqa: F401  (imported once, before the forks)
from siglip_flowers.training.checkpoints import list_checkpoints
from siglip_flowers.training.trainer import SiglipTrainer
from tests.launched import find_port
from tests.small_runs import make_checkpoint, make_folder, small_options

RECIPES = {
    # Checkpoints in the middle of an epoch of 8 steps, every kind of random number, an average.
    "steps": [
        *("--save_strategy", "steps", "--save_steps", "3"),
        *("--eval_strategy", "steps", "--eval_steps", "3", "--ema", "0.9"),
        *("--mixup_alpha", "0.2", "--cutmix_alpha", "1.0", "--label_smoothing_factor", "0.1"),
    ],
    # Ends by lack of patience, before its last step.
    "patience": ["--early_stopping_patience", "1", "--num_train_epochs", "8"],
    "sigmoid": [
        *("--objective", "sigmoid", "--gradient_accumulation_steps", "2"),
        *("--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "no"),
        *("--load_best_model_at_end", "false", "--max_steps", "11"),
    ],
}
# Longest that a process may take once it has nothing left to do but end.
PATIENCE_SECONDS = 120
# After this, what a launcher does at once is done to a process that waits for one that died
# before they had met.
LAUNCHER_SECONDS = 10


@dataclass(frozen=True)
class Fault:
    """What is done to one process of a run: a signal, after seconds or at a file operation.

    Attributes:
        number: The signal.
        rank: The process.
        seconds: When, from the start; None: at an operation.
        place: Where the operation is, one of ``PLACES``.
        operation: Its number, from 1, among those of its place.
    """

    number: int
    rank: int = 0
    seconds: float | None = None
    place: str = ""
    operation: int | None = None


@dataclass
class Outcome:
    """How the processes of a run ended, and what the run found to resume from."""

    codes: list[int]
    began: bool
    resumed_from: str | None
    seconds: float
    operations: dict[str, int]
    hung: bool
    messages: str


class Site:
    """A directory with a tiny checkpoint, tiny images, and the runs made of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoint = make_checkpoint(root / "checkpoint", image_size=32)
        self.images = make_folder(root / "images", train=11, held_out=6)

    def options(self, name: str, recipe: str) -> list[str]:
        """Return the command line of a run."""
        return small_options(
            self.checkpoint,
            self.images,
            self.root / name / "run",
            *("--num_train_epochs", "3", "--per_device_train_batch_size", "4"),
            *("--full_determinism", "true", "--save_total_limit", "2", "--logging_steps", "4"),
            *("--cache_dir", str(self.root / name / "cache"), "--cpu_threads", "1"),
            *("--learning_rate", "3e-4", "--ddp_timeout", "60", "--use_cpu", "true"),
            *RECIPES[recipe],
        )

    def remove(self, name: str) -> None:
        """Remove a run and its cache."""
        shutil.rmtree(self.root / name, ignore_errors=True)

    def start(self, name: str, recipe: str, world: int = 1, fault: Fault | None = None) -> Outcome:
        """Start the command and wait for its end, or for that of a process that gets a fault."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        log = folder / "log.txt"
        facts = folder / "facts.json"
        for path in (log, facts, folder / "operations"):
            path.unlink(missing_ok=True)
        options, port = self.options(name, recipe), find_port()
        began = time.monotonic()
        children = [_fork(options, folder, rank, world, port, fault) for rank in range(world)]
        ended: dict[int, int] = {}
        struck = fault is None or fault.seconds is None
        hung = False
        last_end = began
        while len(ended) < world:
            for rank, child in enumerate(children):
                if rank not in ended:
                    pid, status = os.waitpid(child, os.WNOHANG)
                    if pid:
                        ended[rank] = os.waitstatus_to_exitcode(status)
                        last_end = time.monotonic()
            elapsed = time.monotonic() - began
            if not struck and fault is not None and elapsed >= (fault.seconds or 0.0):
                struck = True
                if fault.rank not in ended:
                    os.kill(children[fault.rank], fault.number)
            waited = time.monotonic() - last_end
            alone = any(ended.values()) and not facts.is_file() and waited > LAUNCHER_SECONDS
            if alone or waited > PATIENCE_SECONDS:
                hung = not alone
                for rank, child in enumerate(children):
                    if rank not in ended:
                        os.kill(child, signal.SIGKILL)
            time.sleep(0.002)
        found = json.loads(facts.read_text()) if facts.is_file() else None
        return Outcome(
            codes=[ended[rank] for rank in range(world)],
            began=found is not None,
            resumed_from=found and found["checkpoint"],
            seconds=time.monotonic() - began,
            operations=_count_operations(folder),
            hung=hung,
            messages=log.read_text() if log.is_file() else "",
        )

    @staticmethod
    def newest(folder: Path) -> str | None:
        """Return the newest whole checkpoint of a run's directory."""
        checkpoints = list_checkpoints(folder / "run" / "checkpoints")
        return str(checkpoints[-1]) if checkpoints else None


# Where files of a run lie.
PLACES = ("run/checkpoints", "cache", "run")


def _fork(
    options: list[str], folder: Path, rank: int, world: int, port: int, fault: Fault | None
) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if world > 1:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            )  # fmt: skip
        _note_resumption(folder, rank)
        _count_and_strike(folder, rank, fault)
        code = train_command.main(options)
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _note_resumption(folder: Path, rank: int) -> None:
    train = SiglipTrainer.train

    def note(self, resume_from_checkpoint=None, *args, **kwargs):
        if rank == 0:
            (folder / "facts.json").write_text(json.dumps({"checkpoint": resume_from_checkpoint}))
        return train(self, resume_from_checkpoint, *args, **kwargs)

    SiglipTrainer.train = note


def _count_and_strike(folder: Path, rank: int, fault: Fault | None) -> None:
    """Count what the process does to files of the run, and strike at one of these moments."""
    counts = dict.fromkeys(PLACES, 0)
    tally = os.open(folder / "operations", os.O_WRONLY | os.O_CREAT) if rank == 0 else None

    def watch(event: str, arguments: tuple) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"):
            return
        place = next(
            (place for place in PLACES if str(arguments[0]).startswith(str(folder / place))), None
        )
        if place is None:
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        counts[place] += 1
        if tally is not None:
            os.pwrite(tally, json.dumps(counts).encode().ljust(200), 0)
        if fault is not None and (rank, place, counts[place]) == (
            fault.rank,
            fault.place,
            fault.operation,
        ):
            os.kill(os.getpid(), fault.number)

    sys.addaudithook(watch)


def _count_operations(folder: Path) -> dict[str, int]:
    path = folder / "operations"
    return json.loads(path.read_text() or "{}") if path.is_file() else {}


def draw_fault(generator: random.Random, reference: Outcome, world: int) -> Fault:
    """Draw what happens to a run, at any moment of it or at any file that it touches."""
    rank = generator.randrange(world)
    # A resumed run has less to do than the undisturbed one: early moments come more often.
    share = generator.random() ** 2
    if rank == 0 and generator.random() < 0.6:
        place = generator.choice([place for place, count in reference.operations.items() if count])
        operation = 1 + int(share * reference.operations[place])
        return Fault(signal.SIGKILL, rank, place=place, operation=operation)
    number = generator.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1))
    return Fault(number, rank, seconds=0.05 + share * reference.seconds)


def is_expected(fault: Fault, outcome: Outcome) -> bool:
    """Return whether a run that got the fault ended as promised, or before the fault came."""
    if outcome.hung or "Traceback" in outcome.messages:
        return False
    code = outcome.codes[fault.rank]
    others = [one for rank, one in enumerate(outcome.codes) if rank != fault.rank]
    if code == 0:
        return all(one == 0 for one in others)
    if fault.number == signal.SIGKILL:
        # A process that is left alone says so; one that had nothing left to ask for ends well.
        told = outcome.messages.count("Another process of this run ended")
        allowed = {0, 1} if outcome.began else {0, 1, -signal.SIGKILL}
        return code == -signal.SIGKILL and set(others) <= allowed and told == others.count(1)
    allowed = {0, 1, EXIT_PREEMPTED}
    if not outcome.began:
        allowed.add(-signal.SIGKILL)
        # The fork may not have come to the command, which is what handles signals, yet.
        code = EXIT_PREEMPTED if code == -fault.number else code
    return code == EXIT_PREEMPTED and set(others) <= allowed
