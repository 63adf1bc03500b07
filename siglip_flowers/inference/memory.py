"""Keep memory that was freed, where giving it back to the system costs more than it is worth."""

import ctypes
import os
import sys

import torch

# glibc's names for what mallopt sets (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# The largest values that glibc takes: an int, and half a heap.
KEPT_BYTES, MAPPED_BYTES = 2**31 - 1, 32 * 2**20


def keep_freed_memory(device: torch.device) -> bool:
    """Let the C library reuse freed memory on a CPU, and say whether that was set.

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
