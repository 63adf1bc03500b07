"""Settings of the C library that keep freed memory for reuse; light to import."""

import ctypes
import os
import sys

# glibc's names for what mallopt sets (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# The largest values that glibc accepts: an int, and half a heap.
TRIM_BYTES, MMAP_BYTES = 2**31 - 1, 32 * 2**20


def keep_freed_memory() -> None:
    """Let the C library of this process reuse freed memory.

    By default glibc unmaps every large tensor that is freed, and requests zeroed pages for the
    next one in every step. Threads share one arena, or each would keep the memory of the largest
    image that it read. Settings of the user (``MALLOC_...``) are left alone. The setting holds
    for the whole process, so only commands call this.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    # Other C libraries have none.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
        mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
