"""Several processes of one run: they know of each other, stop together, end with their parent."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from transformers.utils import logging as transformers_logging

from siglip_flowers.base.errors import InputError
from siglip_flowers.runtime.allocator import keep_freed_memory
from siglip_flowers.runtime.devices import share_machine

logger = logging.getLogger(__name__)

# How long a worker may take to write a checkpoint when it is stopped.
STOP_SECONDS = 60
# What launchers of several processes set.
WORLD = ("WORLD_SIZE", "RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def check_world(num_processes: int) -> None:
    """Raise InputError if this process is alone in a launch that was meant to have several.

    For a configuration with several processes but a kind of launch that does not make several
    (MULTI_CPU without mpirun, or NO), ``accelerate launch`` starts one that knows of no others.

    Args:
        num_processes: The number that this process knows of, including itself.
    """
    # accelerate launch sets both for several processes.
    told = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()
    lost = os.environ.get("WORLD_SIZE", "1") != "1" or (told and not os.environ.keys() & {*WORLD})
    if num_processes == 1 and lost:
        raise InputError(
            "This process was told that it is one of several (by MASTER_ADDR or WORLD_SIZE) but "
            "found no others. Launch all with accelerate launch --config_file "
            "configs/accelerate/cpu.yaml or ddp.yaml, or unset both variables."
        )


class StopAgreement:
    """Lets all processes of a run stop after the same step, whichever of them got the signal.

    Each step starts a sum of one number over the processes in main memory (gloo) and reads the sum
    of the previous step. So no device is waited for, and all processes stop one step after the
    request. This also detects a lost process, where a collective on a GPU would only hang.
    """

    def __init__(self, timeout: timedelta) -> None:
        self._group = None
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._work: dist.Work | None = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    def decide(self, requested: bool) -> bool:
        """Return whether all processes stop now; all of them call this once per step."""
        if self._group is None:
            return requested
        decided = self._finish()
        self._flag = torch.tensor([int(requested)])
        self._work = dist.all_reduce(self._flag, group=self._group, async_op=True)
        return decided

    def close(self) -> None:
        """Wait for the sum that was started; its result no longer matters."""
        self._finish()

    def _finish(self) -> bool:
        if self._work is None:
            return False
        self._work.wait()
        self._work = None
        return bool(self._flag.item())


def run_workers(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Run a function in a process of its own for each tuple of arguments, until all have ended.

    Each process has its device and its share of the cores, and ends with this one.
    """
    context = multiprocessing.get_context("spawn")
    processes: list[Any] = []
    try:
        for index, values in enumerate(arguments):
            # Not a daemon, which could not have processes that load data.
            process = context.Process(target=_work, args=(work, values))
            # Already while it imports; see _work.
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                with share_machine(index, len(arguments)):
                    process.start()
            finally:
                signal.signal(signal.SIGINT, before)
            processes.append(process)
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        logger.warning("Stopping after the current step; press Ctrl-C again to stop at once.")
        raise
    finally:
        for process in processes:
            process.terminate()
        try:
            for process in processes:
                process.join(STOP_SECONDS)
        finally:
            for process in processes:
                process.kill()


def _work(work: Callable[..., None], values: tuple[Any, ...]) -> None:
    """Do the work in a process that ends with the one that started it, and stops at its request.

    Ctrl-C reaches every process of the terminal, so a worker ignores it and the command stops it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    transformers_logging.disable_progress_bar()
    work(*values)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
