"""Choose the device, the dtype and the attention kernel, and share devices between processes."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import patch_environment

from siglip_flowers.base.environment import computes_bfloat16, count_cores
from siglip_flowers.base.errors import InputError
from siglip_flowers.base.text import count
from siglip_flowers.config.fields import DTYPES

# With more tokens, eager attention's score matrix no longer fits the processor's cache.
# One core of an AMD EPYC (Zen 4), bfloat16, speed of eager relative to sdpa: 1.09 with 64 tokens,
# 1.06 with 196, 0.7 with 576 and 0.6 with 1024.
MAX_EAGER_TOKENS = 256


def resolve_device(device: str | int | torch.device | None) -> torch.device:
    """Return the given device, or by default the accelerator if there is one, else the CPU.

    Raises:
        InputError: The device is unknown or not available.
    """
    if device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise InputError(
            f"The device {device!r} cannot be used ({reason}); choose 'cpu', or leave it out."
        ) from error
    return resolved


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in.

    ``auto`` is bfloat16 if the device computes it natively, else float32.

    Raises:
        InputError: Unknown, or float16 on a device other than CUDA.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"--dtype is {name!r}; choose one of {', '.join(DTYPES)}.")
    if name == "auto":
        name = "bfloat16" if computes_bfloat16(device.type) else "float32"
    if name == "float16" and device.type != "cuda":
        raise InputError(
            f"--dtype float16 needs a CUDA device, and the model runs on {device.type}; use auto."
        )
    resolved: torch.dtype = getattr(torch, name)
    return resolved


def choose_attention(
    device: torch.device, dtype: torch.dtype, tokens: int, *, compiled: bool = False
) -> str:
    """Return the attention implementation that was measured to be the fastest.

    Args:
        device: Where the model runs.
        dtype: What it computes in.
        tokens: Patches per image.
        compiled: Whether torch.compile is used, which fuses sdpa better with what surrounds it.
    """
    half_on_cpu = device.type == "cpu" and dtype == torch.bfloat16
    if half_on_cpu and tokens <= MAX_EAGER_TOKENS and not compiled:
        return "eager"
    return "sdpa"


def describe_device(device: torch.device) -> str:
    """Name the device, as ``NVIDIA H100`` or ``cpu (2 threads)``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({count(torch.get_num_threads(), 'thread')})"


def measure_products(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of products of matrices."""
    # Small on a processor, which may emulate the dtype.
    side = 512 if device.type == "cpu" else 4096
    matrix, seconds = torch.ones(side, side, device=device, dtype=dtype), []
    for _ in range(3):
        began = time.perf_counter()
        # Its sum waits for the device.
        (matrix @ matrix)[0].sum().item()
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds)


def count_workers(workers: int | None) -> int:
    """Return how many processes work at a time: as given, or one per CUDA device, or 1."""
    return max(1, torch.cuda.device_count()) if workers is None else workers


@contextmanager
def share_machine(index: int, workers: int) -> Iterator[None]:
    """Give a process that is started in the block its share of the devices and the cores.

    Libraries read both while they load, so they must be set before the process starts.
    """
    values = {}
    if not os.environ.get("OMP_NUM_THREADS"):
        values["OMP_NUM_THREADS"] = str(max(1, count_cores() // workers))
    if devices := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(devices)]
        values["CUDA_VISIBLE_DEVICES"] = names[index % devices].strip()
    with patch_environment(**values):
        yield


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
