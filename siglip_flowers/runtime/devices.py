"""Processes that work beside each other: their share of the devices and cores, and their end."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def count_workers(workers: int | None) -> int:
    """Return how many processes work at a time: as asked, or one a CUDA device, or 1."""
    return max(1, torch.cuda.device_count()) if workers is None else workers


def choose_device(index: int) -> str | None:
    """Return the value of CUDA_VISIBLE_DEVICES for a worker; None leaves it as it is.

    Devices that are visible already are dealt out in turn, one a worker.
    """
    count = torch.cuda.device_count()
    if count == 0:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    return names[index % count].strip()


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def share_machine(index: int, workers: int) -> Iterator[None]:
    """Give a process that is started in the block its device and its share of the cores.

    Both are read when the libraries load, hence set for the child from its first moment.
    """
    values = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")
        or str(max(1, count_cores() // workers)),
        "CUDA_VISIBLE_DEVICES": choose_device(index),
    }
    before = {key: os.environ.get(key) for key in values}
    os.environ.update({key: value for key, value in values.items() if value is not None})
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def end_with_parent() -> None:
    """Wait for the end of the process that started this one, and end with it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
