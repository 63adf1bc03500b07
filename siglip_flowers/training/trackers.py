"""Callbacks for the experiment trackers that the Trainer does not wire by itself."""

import importlib.util
import netrc
import os
from pathlib import Path
from typing import Any

from accelerate import PartialState

from siglip_flowers.errors import InputError

PACKAGES = {"aim": "aim", "wandb": "wandb", "tensorboard": "tensorboard", "trackio": "trackio"}


def check_trackers(names: list[str]) -> None:
    """Raise InputError if a tracker's package is missing."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise InputError(
                f"--report_to {name} needs the package {PACKAGES[name]}, which is not installed; "
                f"run 'pip install {PACKAGES[name]}' or drop it."
            )


def build_tracker_callbacks(names: list[str]) -> list[Any]:
    """Prepare the trackers and return the callbacks that must be added by hand.

    Only the main process logs to Aim: two writers meet in its lock.
    """
    if "wandb" in names and not _is_logged_in_to_wandb():
        # Its login prompt would block a job that nobody watches.
        os.environ.setdefault("WANDB_MODE", "offline")
    if "aim" in names and PartialState().is_main_process:
        from aim.hugging_face import AimCallback

        return [AimCallback(experiment="siglip_flowers")]
    return []


def _is_logged_in_to_wandb() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
