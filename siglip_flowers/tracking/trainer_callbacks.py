"""TensorBoard and Trackio, by the Trainer's own callbacks."""

import copy
import os
import uuid
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from siglip_flowers.base.run_dir import TENSORBOARD_DIR
from siglip_flowers.tracking.tracker import FinalResults, RunFacts, Tracker, TrainerView

PROJECT = "siglip_flowers"


class CallbackTracker(Tracker):
    """A callback of the Trainer that stays open until the kept weights were measured."""

    def __init__(self) -> None:
        self._callback: TrainerCallback | None = None
        self._view: TrainerView | None = None
        self._run_id = ""

    def build(self, run: RunFacts, run_id: str | None) -> tuple[TrainerCallback, str]:
        """Return the callback and the run's id."""
        raise NotImplementedError

    def open(self, run: RunFacts, run_id: str | None) -> str:
        """Make the callback, which opens its run with the first row."""
        self._callback, self._run_id = self.build(run, run_id)
        return self._run_id

    def begin(self, view: TrainerView, model: Any) -> None:
        """Hand on the configuration of the Trainer and the model."""
        args, state, control = self._adapt(view)
        self.callback.on_train_begin(args, state, control, model=model)

    def log(self, logs: Mapping[str, float], view: TrainerView) -> None:
        """Hand on one row of the Trainer's log."""
        args, state, control = self._adapt(view)
        self.callback.on_log(args, state, control, logs=dict(logs))

    def finish(self, results: FinalResults, view: TrainerView) -> None:
        """Log the test figures."""
        self.log({f"test_{name}": value for name, value in results.metrics["test"].items()}, view)

    def close(self, *, failed: bool) -> None:
        """End the run, if it began."""
        if self._callback is not None and self._view is not None:
            args, state, control = self._adapt(self._view)
            self._callback.on_train_end(args, state, control)
        self._callback = None

    @property
    def callback(self) -> TrainerCallback:
        """The callback of the open run."""
        assert self._callback is not None
        return self._callback

    def _adapt(self, view: TrainerView) -> TrainerView:
        self._view = view
        return view


class TensorBoardTracker(CallbackTracker):
    """Event files below the output directory, or in ``TENSORBOARD_LOGGING_DIR``."""

    def build(self, run: RunFacts, run_id: str | None) -> tuple[TrainerCallback, str]:
        """Return the callback and the directory of its files, which every part of a run shares."""
        from transformers.integrations import TensorBoardCallback

        callback = TensorBoardCallback()
        directory = os.environ.get("TENSORBOARD_LOGGING_DIR") or str(
            run.output_dir / TENSORBOARD_DIR
        )
        callback.logging_dir = directory
        return callback, directory


class TrackioTracker(CallbackTracker):
    """A run of Trackio, which knows it by its name."""

    def build(self, run: RunFacts, run_id: str | None) -> tuple[TrainerCallback, str]:
        """Return the callback and the run's name."""
        from transformers.integrations import TrackioCallback

        return TrackioCallback(), run_id or f"{run.name}-{uuid.uuid4().hex[:8]}"

    def _adapt(self, view: TrainerView) -> TrainerView:
        args: Any = copy.copy(view.args)
        args.run_name = self._run_id
        if args.project == "huggingface":
            args.project = PROJECT
        return super()._adapt(view._replace(args=args))
