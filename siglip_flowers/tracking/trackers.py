"""What a tracker is told about a run, and all trackers of a run as one callback of the Trainer."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import TrainerCallback, TrainerState

from siglip_flowers.base.files import read_json, reading, write_json
from siglip_flowers.plots.examples import Example

logger = logging.getLogger(__name__)

IDS_FILE = "trackers.json"
# Logged by the Trainer with each evaluation; they say nothing about the model.
_SPEEDS = ("runtime", "samples_per_second", "steps_per_second")


@dataclass(frozen=True)
class RunFacts:
    """What is known before the first step.

    Attributes:
        name: The name of the run, which is that of its output directory.
        project: The name of the data set, for Aim's experiment and the project of W&B and Trackio.
        config: Every option, by name; no secrets.
        output_dir: The output directory of the run.
        step: That of the checkpoint that the run resumes from, or 0.
    """

    name: str
    project: str
    config: dict[str, Any]
    output_dir: Path
    step: int


@dataclass(frozen=True)
class FinalResults:
    """What is known after the evaluation of the saved weights.

    Attributes:
        metrics: By split and name.
        examples: Test images, each with its true class, predicted class and confidence.
        confusion: A plot of the confusion matrix of the test split.
    """

    metrics: dict[str, dict[str, float]]
    examples: Sequence[Example]
    confusion: Image.Image


class Tracker:
    """One tracker's run. Any method may raise, and :class:`Trackers` continues without it."""

    # The run as the tracker's library has it; None until it is opened.
    _run: Any = None

    def open(self, run: RunFacts, run_id: str | None) -> str:
        """Start the run, or continue the one with this id; return its id."""
        raise NotImplementedError

    def log(self, figures: Mapping[str, Any], step: int, epoch: float) -> None:
        """Log figures by name: ``SPLIT/NAME``, or ``NAME`` if they are of no split."""
        raise NotImplementedError

    def log_results(self, results: FinalResults, step: int, epoch: float) -> None:
        """Log images, and what else is not among the figures of the test split."""

    def close(self, *, failed: bool) -> None:
        """End the run, if it was opened, and close its files."""
        if self._run is not None:
            self._run.close()


class Trackers(TrainerCallback):
    """Passes what the Trainer logs to every tracker; at the end of the block their runs end.

    A tracker that raises is named in one warning and left out from then on.

    Args:
        trackers: By name; empty on every process but the main one.

    Attributes:
        names: Those of the trackers, or "none".
    """

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self.names = ", ".join(trackers) or "none"
        self._active = dict(trackers)
        self._ids: dict[str, str] = {}
        self._moment = (0, 0.0)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, error: Any, *_: Any) -> None:
        self._tell(lambda name, tracker: tracker.close(failed=error is not None))

    def open(self, run: RunFacts) -> None:
        """Start the trackers' runs, or continue those whose ids :meth:`load` found."""

        # The id of a tracker that fails today stays, so that the next checkpoint does not lose it.
        def start(name: str, tracker: Tracker) -> None:
            self._ids[name] = tracker.open(run, self._ids.get(name))

        self._tell(start)

    def save(self, directory: Path) -> None:
        """Write the ids of the runs into a checkpoint."""
        if self._ids:
            write_json(directory / IDS_FILE, self._ids)

    def load(self, directory: Path) -> None:
        """Read the ids of the runs from a checkpoint; those of open runs stay."""
        path = directory / IDS_FILE
        if path.is_file():
            with reading(path):
                self._ids = read_json(path) | self._ids

    def finish(self, collect: Callable[[], FinalResults]) -> None:
        """Log the results of the saved weights, which are collected only if they are wanted."""
        if not self._active:
            return
        results = collect()
        test = {f"test/{name}": value for name, value in results.metrics["test"].items()}
        self._tell(lambda name, tracker: tracker.log(test, *self._moment))
        self._tell(lambda name, tracker: tracker.log_results(results, *self._moment))

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log one row of the Trainer's log."""
        self._moment = (state.global_step, state.epoch or 0.0)
        if figures := name_figures(logs or {}):
            self._tell(lambda name, tracker: tracker.log(figures, *self._moment))

    def _tell(self, call: Callable[[str, Tracker], None]) -> None:
        for name, tracker in list(self._active.items()):
            try:
                call(name, tracker)
            except Exception as error:
                # Whatever it is, it must not cost the training.
                reason = f"{type(error).__name__}: {error}"
                logger.warning("%s failed (%s); the run continues without it.", name, reason)
                with contextlib.suppress(Exception):
                    self._active.pop(name).close(failed=True)


def name_figures(logs: Mapping[str, float]) -> dict[str, float]:
    """Return the figures of a row of the Trainer's log by name, as :meth:`Tracker.log` takes them.

    ``batch_loss`` and ``batch_accuracy`` are means over the (augmented) training batches since the
    previous row; ``loss`` and the other metrics are measured on unaugmented images of their split.
    """
    if "train_runtime" in logs:
        # The train_loss of the closing summary has another meaning.
        return {}
    figures = {}
    for key, value in logs.items():
        if key.startswith("eval_"):
            split, _, name = key.removeprefix("eval_").partition("_")
            if name not in _SPEEDS:
                figures[f"{split}/{name}"] = value
        elif key in ("loss", "accuracy"):
            figures[f"train/batch_{key}"] = value
        elif key != "epoch":
            figures[key] = value
    return figures
