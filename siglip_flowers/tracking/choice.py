"""Which trackers a run has."""

import importlib.util
import logging
import os

from accelerate import PartialState

from siglip_flowers.base.errors import InputError
from siglip_flowers.config import SiglipTrainingArguments
from siglip_flowers.tracking.aim import AimTracker
from siglip_flowers.tracking.group import Trackers
from siglip_flowers.tracking.tracker import Tracker
from siglip_flowers.tracking.trainer_callbacks import TensorBoardTracker, TrackioTracker
from siglip_flowers.tracking.wandb import WandbTracker

logger = logging.getLogger(__name__)

PACKAGES = {"aim": "aim", "wandb": "wandb", "tensorboard": "tensorboard", "trackio": "trackio"}
# What is used where --report_to is not given: names separated by commas, or none.
DEFAULT_VARIABLE = "SIGLIP_FLOWERS_REPORT_TO"
REPOSITORY_VARIABLE = "AIM_REPO"


def choose_trackers(report_to: list[str] | None) -> list[str]:
    """Return the trackers to use: those asked for, else Aim where it is installed."""
    if report_to is not None:
        return [name for name in report_to if name != "none"]
    text = os.environ.get(DEFAULT_VARIABLE)
    if text:
        names = [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]
        unknown = [name for name in names if name not in PACKAGES]
        if unknown:
            raise InputError(
                f"{DEFAULT_VARIABLE} names {unknown[0]!r}; use {', '.join(PACKAGES)} or none."
            )
        return names
    if importlib.util.find_spec("aim") is not None:
        return ["aim"]
    if PartialState().is_main_process:
        logger.warning(
            "Nothing is tracked: Aim, the default, is not installed; run 'pip install aim', or say "
            "--report_to none."
        )
    return []


def check_trackers(report_to: list[str] | None) -> None:
    """Raise InputError if the package of a tracker that was asked for is missing."""
    names = [] if report_to is None else choose_trackers(report_to)
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise InputError(
                f"--report_to {name} needs the package {PACKAGES[name]}, which is not installed; "
                f"run 'pip install {PACKAGES[name]}' or drop it."
            )


def build_trackers(training: SiglipTrainingArguments) -> Trackers:
    """Return the run's trackers, not opened yet; none but on the main process.

    Two writers would meet in Aim's lock, and elsewhere log everything twice.
    """
    if not PartialState().is_main_process:
        return Trackers({})
    return Trackers({name: _build(name, training) for name in choose_trackers(training.report_to)})


def _build(name: str, training: SiglipTrainingArguments) -> Tracker:
    if name == "aim":
        return AimTracker(training.aim_repo or os.environ.get(REPOSITORY_VARIABLE))
    if name == "wandb":
        return WandbTracker(log_model=training.wandb_log_model)
    return TensorBoardTracker() if name == "tensorboard" else TrackioTracker()
