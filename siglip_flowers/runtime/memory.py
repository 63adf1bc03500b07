"""Fit batches to the memory: halve them when it runs out, and share no more than there is."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from siglip_flowers.base.errors import RunError

logger = logging.getLogger(__name__)

# Where batches lie that another process prepares, on Linux.
SHARED_MEMORY = Path("/dev/shm")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that device or main memory was not sufficient."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def run_in_parts(
    run: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor, size: int
) -> tuple[torch.Tensor, int]:
    """Run a batch in parts of at most ``size``, which is halved while memory runs out.

    Args:
        run: Gets a part (at most S, ...), and returns as many rows.
        batch: (B, ...).
        size: S to begin with.

    Returns:
        The rows of all parts (B, ...), and the S that fit.

    Raises:
        RunError: There is too little memory for a part of one row.
    """
    while True:
        try:
            parts = [run(part) for part in batch.split(size)]
            return (torch.cat(parts) if len(parts) > 1 else parts[0]), size
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise RunError(
                    "A single image exceeds the memory of the device; use --device cpu or a "
                    "smaller model."
                ) from error
        # Outside the handler, whose traceback would keep the tensors alive.
        clear_device_cache(garbage_collection=True)
        size //= 2


def fit_workers(workers: int, batch_bytes: int, used: int, ahead: int) -> int:
    """Return how many of the data loading processes the shared memory has room for.

    One that finds no room for a batch dies of a bus error, as in a Docker container, which has 64
    MB by default.

    Args:
        workers: Requested processes.
        batch_bytes: Size of a batch.
        used: Batches that are elsewhere: with the process they work for, and on the way to it.
        ahead: Batches that each of them prepares ahead.
    """
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        # Another system, which shares memory in another way.
        return workers
    batches = free // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) // batch_bytes
    room = max(0, (batches - used) // ahead)
    if room < workers:
        logger.warning(
            "%s has %.0f MB free, which is too little for %d processes that prepare %d batches of "
            "%.0f MB each; %d start. Docker gives it more with --shm-size.",
            *(SHARED_MEMORY, free / 1e6, workers, ahead, batch_bytes / 1e6, room),
        )
    return min(workers, room)
