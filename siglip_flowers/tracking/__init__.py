"""Experiment trackers: Aim, W&B, TensorBoard and Trackio, on the main process alone."""

from siglip_flowers.tracking.choice import build_trackers, check_trackers, choose_trackers
from siglip_flowers.tracking.trackers import FinalResults, RunFacts, Tracker, Trackers

__all__ = [
    "FinalResults",
    "RunFacts",
    "Tracker",
    "Trackers",
    "build_trackers",
    "check_trackers",
    "choose_trackers",
]
