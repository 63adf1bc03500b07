"""Several processes of one run: they know each other, stop together, and say if one is lost."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from siglip_flowers.base.errors import InputError

# What accelerate launch always sets, and what launchers of several processes set.
LAUNCHED = "ACCELERATE_MIXED_PRECISION"
WORLD = ("WORLD_SIZE", "RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def check_world(num_processes: int) -> None:
    """Raise InputError if this process is alone in a launch that was meant to have several.

    ``accelerate launch`` starts one process, told of no others, for a configuration that names
    several without a kind of launch that makes several (MULTI_CPU without mpirun, or NO).

    Args:
        num_processes: Those that this one knows of, itself included.
    """
    if num_processes > 1:
        return
    told = LAUNCHED in os.environ and "MASTER_ADDR" in os.environ
    if told and not any(name in os.environ for name in WORLD):
        raise InputError(
            "accelerate launch was to start several processes and started this one on its own, as "
            "it does for a MULTI_CPU or NO configuration; launch with --config_file "
            "configs/accelerate/cpu.yaml or ddp.yaml, or with --num_processes 1 and without "
            "MASTER_ADDR in the environment."
        )
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1":
        raise InputError(
            f"WORLD_SIZE is {world_size}, but this process found no others; launch them together "
            "with accelerate launch or torchrun, see docs/launch.md."
        )


class StopAgreement:
    """Lets every process of a run stop after the same step, whichever of them got the signal.

    Every step starts a sum of one number over the processes in main memory (gloo), and reads that
    of the step before: no device is waited for, and all stop one step after the request. A process
    that is lost is noticed there too, where a GPU's collective would only hang.
    """

    def __init__(self, timeout: timedelta) -> None:
        self._group = None
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._work: dist.Work | None = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    def decide(self, requested: bool) -> bool:
        """Return whether all processes stop now; to be called by all of them, once a step."""
        if self._group is None:
            return requested
        decided = self._finish()
        self._flag = torch.tensor([int(requested)])
        self._work = dist.all_reduce(self._flag, group=self._group, async_op=True)
        return decided

    def close(self) -> None:
        """Wait for what is under way; its answer comes too late to matter."""
        self._finish()

    def _finish(self) -> bool:
        if self._work is None:
            return False
        self._work.wait()
        self._work = None
        return bool(self._flag.item())
