"""The facts about software and hardware that every result carries."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "datasets", "evaluate", "accelerate", "numpy", "pillow")


def describe_environment(device: str) -> dict[str, Any]:
    """Return package versions, Python, device and, where known, the commit of the code."""
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": device,
        "commit": _commit(),
    }


def computes_bfloat16(device_type: str) -> bool:
    """Return whether a kind of device ("cuda", "cpu", ...) computes bfloat16 natively."""
    import torch

    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # A processor without these instructions emulates bfloat16, slower than float32.
    return device_type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def count_cores() -> int:
    """Return the number of processor cores that this process may use."""
    # A container or a batch system may leave it a few of the machine's.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _commit() -> str | None:
    # Installed under some other repository, this file is not tracked there and has no commit.
    if _git("ls-files", "--error-unmatch", __file__) is None:
        return None
    return _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
