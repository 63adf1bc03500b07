"""TensorBoard and Trackio, which keep their files on this machine."""

import os
import uuid
from collections.abc import Sequence
from typing import Any

import yaml

from siglip_flowers.base.run_dir import TENSORBOARD_DIR
from siglip_flowers.tracking.trackers import Moment, RunFacts, Tracker, Value

PROJECT = "siglip_flowers"


class TensorBoardTracker(Tracker):
    """Event files in ``tensorboard/`` of the output directory, or ``TENSORBOARD_LOGGING_DIR``."""

    def __init__(self) -> None:
        self._writer: Any = None

    def open(self, run: RunFacts, run_id: str | None) -> str:
        """Open another file in the directory, which TensorBoard shows as one run."""
        from torch.utils.tensorboard import SummaryWriter

        directory = os.environ.get("TENSORBOARD_LOGGING_DIR") or run.output_dir / TENSORBOARD_DIR
        self._writer = SummaryWriter(log_dir=str(directory))
        if run_id is None:
            self._writer.add_text("config", f"```\n{yaml.safe_dump(dict(run.config))}```")
        return str(directory)

    def log(self, values: Sequence[Value], moment: Moment) -> None:
        """Log figures as ``SPLIT/NAME``."""
        for value in values:
            self._writer.add_scalar(value.tag, value.value, moment.step)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class TrackioTracker(Tracker):
    """A run of Trackio, which identifies it by its name."""

    def __init__(self) -> None:
        self._run: Any = None

    def open(self, run: RunFacts, run_id: str | None) -> str:
        """Start the run, or continue the one with this name."""
        import trackio

        name = run_id or f"{run.name}-{uuid.uuid4().hex[:8]}"
        self._run = trackio.init(
            PROJECT, name=name, config=dict(run.config), resume="allow", embed=False
        )
        return name

    def log(self, values: Sequence[Value], moment: Moment) -> None:
        """Log figures as ``SPLIT/NAME``."""
        figures = {value.tag: value.value for value in values}
        self._run.log({**figures, "epoch": moment.epoch}, step=moment.step)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        if self._run is not None:
            self._run.finish()
