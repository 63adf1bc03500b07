"""Halve a batch when there is too little memory."""

from collections.abc import Callable

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size


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
