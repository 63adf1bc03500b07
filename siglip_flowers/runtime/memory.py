"""Memory: keep what was freed, and know when there is too little."""

import ctypes
import os
import sys
from collections.abc import Callable

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

# glibc's names for what mallopt sets (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# The largest values that glibc takes: an int, and half a heap.
KEPT_BYTES, MAPPED_BYTES = 2**31 - 1, 32 * 2**20


def keep_freed_memory(device: torch.device) -> bool:
    """Let the C library reuse freed memory on a CPU, and return whether that was set.

    Left to itself, glibc unmaps every large tensor that is freed and asks for zeroed pages for
    the next one, in every step anew. Settings of the user (``MALLOC_...``) are left alone.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return False
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    kept = library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES) == 1
    mapped = library.mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES) == 1
    return kept and mapped


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that device or main memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def run_in_parts(
    run: Callable[[torch.Tensor, int], torch.Tensor],
    batch: torch.Tensor,
    size: int,
    refuse: Callable[[int], Exception | None],
) -> tuple[torch.Tensor, int]:
    """Run a batch in parts of at most ``size``, which is halved as long as memory runs out.

    Args:
        run: Gets a part (at most S, ...) and S, and returns as many rows.
        batch: (B, ...).
        size: S to begin with.
        refuse: The error to end with where parts of S are too large; None where they may be halved.

    Returns:
        The rows of all parts (B, ...), and the S that fitted.
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
        # After the handler, whose traceback would keep the tensors alive.
        clear_device_cache(garbage_collection=True)
        size //= 2
