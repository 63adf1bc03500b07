"""The facts about software and hardware that every result carries."""

import importlib.metadata
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
