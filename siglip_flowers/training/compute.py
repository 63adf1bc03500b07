"""Fit a run to its machine: threads, data loading processes, batches that fit into memory."""

import copy
import os
from functools import partial
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache

from siglip_flowers.base.errors import RunError
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.runtime.devices import count_cores
from siglip_flowers.runtime.preemption import outlive_signals


class TooLittleMemoryError(RunError):
    """The batch is too large for the memory, and may or can not be made smaller."""


def set_cpu_threads(cpu_threads: int | None) -> None:
    """Compute with this many threads, or with this process's share of the cores.

    ``accelerate launch`` sets ``OMP_NUM_THREADS`` to 1 unless told otherwise, which leaves all
    cores but one idle; a number that the user set is kept.
    """
    if cpu_threads is None:
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ
        if not launched or os.environ.get("OMP_NUM_THREADS") != "1":
            return
        cpu_threads = max(1, count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(cpu_threads)


def shrink_batch(
    training: SiglipTrainingArguments, num_processes: int = 1
) -> SiglipTrainingArguments:
    """Halve the batch of a device and double the accumulation: the optimizer sees the same batch.

    Raises:
        TooLittleMemoryError: The batch cannot be halved, ``--auto_find_batch_size`` is off, or
            there are several processes, of which the others wait for this one in a step.
    """
    size = training.per_device_train_batch_size
    several = num_processes > 1
    if several and size > 1:
        # An optimizer's step of an odd batch cannot be kept: it becomes smaller by an image.
        accumulation = 2 * training.gradient_accumulation_steps
        raise TooLittleMemoryError(
            f"There is too little memory for --per_device_train_batch_size {size} in one of "
            f"{num_processes} processes, which cannot halve it alone; use "
            f"--per_device_train_batch_size {size // 2} --gradient_accumulation_steps "
            f"{accumulation}, or --gradient_checkpointing true."
        )
    if not (several or training.auto_find_batch_size):
        raise TooLittleMemoryError(
            f"There is too little memory for --per_device_train_batch_size {size}; add "
            "--auto_find_batch_size true, which halves it and doubles "
            "--gradient_accumulation_steps until it fits, or --gradient_checkpointing true."
        )
    if size % 2:
        raise TooLittleMemoryError(
            f"There is too little memory even for --per_device_train_batch_size {size}, which "
            "cannot be halved; add --gradient_checkpointing true, or choose a power of two."
        )
    clear_device_cache(garbage_collection=True)
    smaller = copy.copy(training)
    smaller.per_device_train_batch_size = size // 2
    smaller.gradient_accumulation_steps = 2 * training.gradient_accumulation_steps
    return smaller


def refuse_eval_parts(processes: int, size: int) -> RunError | None:
    """Return why an evaluation of ``size`` images at once cannot continue with half of them.

    Args:
        processes: Those whose forward passes gather weights from each other, each the same number
            of times.
        size: Images that did not fit into memory.
    """
    if size == 1:
        return RunError("There is too little memory to evaluate a single image.")
    if processes > 1:
        return RunError(
            f"There is too little memory to evaluate {size} images at once in one of "
            f"{processes} processes; use --per_device_eval_batch_size {size // 2}."
        )
    return None


def shield_workers(loader: Any) -> Any:
    """Let the data loading processes of a loader outlive a signal until the step is done."""
    initialize = getattr(loader, "worker_init_fn", None)
    # A loader whose workers persist comes here at every evaluation.
    shielded = isinstance(initialize, partial) and initialize.func is _initialize_worker
    if getattr(loader, "num_workers", 0) and not shielded:
        loader.worker_init_fn = partial(_initialize_worker, initialize)
    return loader


def _initialize_worker(initialize: Any, worker: int) -> None:
    if initialize is not None:
        initialize(worker)
    outlive_signals(worker)
