"""Experiment trackers: Aim, W&B, TensorBoard and Trackio, on the main process alone."""

import importlib.util
import logging
import os

from accelerate import PartialState

from siglip_flowers.base.errors import InputError
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
    "aim": AimTracker,
    "wandb": WandbTracker,
    "tensorboard": TensorBoardTracker,
    "trackio": TrackioTracker,
}
# The default of --report_to: names separated by commas, or none.
DEFAULT_VARIABLE = "SIGLIP_FLOWERS_REPORT_TO"
INSTALL = (
    "install one with 'pip install NAME' (aim has no wheels for Windows or Python 3.13 and later)"
)


def choose_trackers(report_to: list[str] | None) -> list[str]:
    """Return the trackers to use: those requested, else Aim if it is installed."""
    if report_to is not None:
        return [name for name in report_to if name != "none"]
    if text := os.environ.get(DEFAULT_VARIABLE):
        return [name.strip() for name in text.split(",") if name.strip() != "none"]
    if importlib.util.find_spec("aim") is not None:
        return ["aim"]
    if PartialState().is_main_process:
        logger.warning("Nothing is tracked, since Aim is not installed: %s.", INSTALL)
    return []


def check_trackers(report_to: list[str] | None) -> None:
    """Raise InputError if a requested tracker is unknown or its package is missing."""
    if report_to is None and not os.environ.get(DEFAULT_VARIABLE):
        return
    for name in choose_trackers(report_to):
        if name not in KINDS or importlib.util.find_spec(name) is None:
            raise InputError(
                f"The tracker {name} is unknown or not installed; --report_to and "
                f"{DEFAULT_VARIABLE} take names of {', '.join(KINDS)}, or none: {INSTALL}."
            )


def build_trackers(report_to: list[str] | None) -> Trackers:
    """Return the run's trackers, not yet opened; none on other processes than the main one.

    Two processes would compete for Aim's lock, and log everything twice elsewhere.
    """
    names = choose_trackers(report_to) if PartialState().is_main_process else []
    return Trackers({name: KINDS[name]() for name in names})
