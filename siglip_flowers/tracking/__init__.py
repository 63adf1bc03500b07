"""Experiment trackers: Aim, W&B, TensorBoard and Trackio, on the main process alone."""

import importlib.util
import logging
import os
import sys

from accelerate import PartialState

from siglip_flowers.base.errors import InputError
from siglip_flowers.config import SiglipTrainingArguments
from siglip_flowers.tracking.kinds import (
    AimTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandbTracker,
)
from siglip_flowers.tracking.trackers import Trackers

logger = logging.getLogger(__name__)

# By name, which is that of the package too.
KINDS = {
    "aim": lambda training: AimTracker(training.aim_repo or os.environ.get("AIM_REPO")),
    "wandb": lambda training: WandbTracker(log_model=training.wandb_log_model),
    "tensorboard": lambda training: TensorBoardTracker(),
    "trackio": lambda training: TrackioTracker(),
}
# The default of --report_to: names separated by commas, or none.
DEFAULT_VARIABLE = "SIGLIP_FLOWERS_REPORT_TO"


def choose_trackers(report_to: list[str] | None) -> list[str]:
    """Return the trackers to use: those requested, else Aim if it is installed."""
    if report_to is not None:
        return [name for name in report_to if name != "none"]
    if text := os.environ.get(DEFAULT_VARIABLE):
        names = [name.strip() for name in text.split(",")]
        if not {*names} <= {*KINDS, "none"}:
            raise InputError(
                f"{DEFAULT_VARIABLE} is {text!r}; use names of {', '.join(KINDS)}, or none."
            )
        return [name for name in names if name != "none"]
    if importlib.util.find_spec("aim") is not None:
        return ["aim"]
    if PartialState().is_main_process:
        logger.warning(
            "Nothing is tracked, since Aim is not installed; %s, or use --report_to none.",
            explain_installation("aim"),
        )
    return []


def check_trackers(report_to: list[str] | None) -> None:
    """Raise InputError if the package of a requested tracker is missing."""
    for name in [] if report_to is None else choose_trackers(report_to):
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"--report_to {name} needs the package {name}, which is not installed; "
                f"{explain_installation(name)}."
            )


def explain_installation(name: str) -> str:
    """Return how to install a tracker, or what to use if this Python cannot have it."""
    if name == "aim" and (sys.platform == "win32" or sys.version_info >= (3, 13)):
        return "aim has no wheels for Windows or Python 3.13 and later, so use another tracker"
    return f"run 'pip install {name}'"


def build_trackers(training: SiglipTrainingArguments) -> Trackers:
    """Return the run's trackers, not yet opened; none on other processes than the main one.

    Two processes would compete for Aim's lock, and log everything twice elsewhere.
    """
    names = choose_trackers(training.report_to) if PartialState().is_main_process else []
    return Trackers({name: KINDS[name](training) for name in names})
