"""Memory: reuse what was freed, and halve a batch when there is too little."""

import ctypes
import os
import sys
from collections.abc import Callable

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

# glibc's names for what mallopt sets (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# The largest values that glibc accepts: an int, and half a heap.
TRIM_BYTES, MMAP_BYTES = 2**31 - 1, 32 * 2**20


def keep_freed_memory() -> bool:
    """Let the C library of this process reuse freed memory, and return whether that was set.

    By default glibc unmaps every large tensor that is freed, and requests zeroed pages for the
    next one in every step. Settings of the user (``MALLOC_...``) are left alone. The setting holds
    for the whole process, so only commands call this.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    trimmed = library.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES) == 1
    return library.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES) == 1 and trimmed


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that device or main memory was not sufficient."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def run_in_parts(
    run: Callable[[torch.Tensor, int], torch.Tensor],
    batch: torch.Tensor,
    size: int,
    refuse: Callable[[int], Exception | None],
) -> tuple[torch.Tensor, int]:
    """Run a batch in parts of at most ``size``, which is halved while memory runs out.

    Args:
        run: Gets a part (at most S, ...) and S, and returns as many rows.
        batch: (B, ...).
        size: S to begin with.
        refuse: Returns the error to raise if S is too large, or None if S may be halved.

    Returns:
        The rows of all parts (B, ...), and the S that fit.
    """
    while True:
        try:
            parts = [run(part, size) for part in batch.split(size)]
            return (torch.cat(parts) if len(parts) > 1 else parts[0]), size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            refusal = refuse(size)
            if refusal is not None:
                raise refusal from error
        # Outside the handler, whose traceback would keep the tensors alive.
        clear_device_cache(garbage_collection=True)
        size //= 2
