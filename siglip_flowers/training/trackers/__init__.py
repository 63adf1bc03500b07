"""Experiment trackers: Aim, W&B, TensorBoard and Trackio, on the main process alone."""

from siglip_flowers.training.trackers.choice import build_trackers, check_trackers, choose_trackers
from siglip_flowers.training.trackers.group import Trackers
from siglip_flowers.training.trackers.tracker import FinalResults, RunFacts, Tracker

__all__ = [
    "FinalResults",
    "RunFacts",
    "Tracker",
    "Trackers",
    "build_trackers",
    "check_trackers",
    "choose_trackers",
]
