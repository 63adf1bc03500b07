"""Choose the number format and the attention kernel that a device is fastest with."""

import torch

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.precision import DTYPES, computes_bfloat16

# With more tokens eager attention's matrix of scores no longer fits the processor's cache.
# One core of an AMD EPYC (Zen 4), bfloat16, eager against sdpa: 1.09 times as fast with 64 tokens,
# 1.06 with 196, 0.7 with 576 and 0.6 with 1024.
MAX_EAGER_TOKENS = 256


def resolve_device(device: str | int | torch.device | None) -> torch.device:
    """Return the device asked for, or the accelerator if there is one, or the CPU.

    Raises:
        InputError: The device is unknown or not there.
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
    """Return the number format to compute in.

    ``auto`` is bfloat16 where the device computes it natively, float32 elsewhere.

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
    """Return the attention implementation that is fastest, by measurement.

    Args:
        device: Where the model runs.
        dtype: What it computes in.
        tokens: Patches of an image.
        compiled: Whether torch.compile is used, which fuses sdpa's surroundings better.
    """
    half_on_cpu = device.type == "cpu" and dtype == torch.bfloat16
    if half_on_cpu and tokens <= MAX_EAGER_TOKENS and not compiled:
        return "eager"
    return "sdpa"
