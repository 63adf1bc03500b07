"""Several processes of one run: they stop after the same step, and say when one is lost."""

from datetime import timedelta

import torch
import torch.distributed as dist


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
        """Say whether all processes stop now; to be called by all of them, once a step."""
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
