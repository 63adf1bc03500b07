"""What every tracker does, and what it is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from transformers import TrainerControl, TrainerState, TrainingArguments

from siglip_flowers.plots.examples import Example

# Of each evaluation; the Trainer's own, which say nothing about the model.
_SPEEDS = ("runtime", "samples_per_second", "steps_per_second")


@dataclass(frozen=True)
class RunFacts:
    """What is known before the first step.

    Attributes:
        name: Of the run: that of its output directory.
        config: Every option, by name; no secrets.
        output_dir: Of the run.
    """

    name: str
    config: Mapping[str, Any]
    output_dir: Path


@dataclass(frozen=True)
class FinalResults:
    """What is known once the kept weights were measured.

    Attributes:
        metrics: By split and name.
        examples: Test images, each with its true class, predicted class and confidence.
        confusion: An image of the confusion matrix of the test split.
        model_dir: Directory of the kept model.
    """

    metrics: Mapping[str, Mapping[str, float]]
    examples: Sequence[Example]
    confusion: Image.Image
    model_dir: Path


class TrainerView(NamedTuple):
    """The Trainer's state of the moment."""

    args: TrainingArguments
    state: TrainerState
    control: TrainerControl


class Value(NamedTuple):
    """One figure; ``split`` is None for what belongs to none, as the learning rate."""

    name: str
    split: str | None
    value: float


class Tracker:
    """One tracker's run. Any method may raise: :class:`Trackers` then goes on without it."""

    def open(self, run: RunFacts, run_id: str | None) -> str:
        """Start the run, or go on with the one of this id; return its id."""
        raise NotImplementedError

    def begin(self, view: TrainerView, model: Any) -> None:
        """Take note that the Trainer begins."""

    def log(self, logs: Mapping[str, float], view: TrainerView) -> None:
        """Log one row of the Trainer's log."""
        raise NotImplementedError

    def finish(self, results: FinalResults, view: TrainerView) -> None:
        """Log what the kept weights achieve."""
        raise NotImplementedError

    def close(self, *, failed: bool) -> None:
        """End the run and let go of its files."""


def name_values(logs: Mapping[str, float]) -> list[Value]:
    """Return the figures of a row of the Trainer's log, by name and split.

    ``batch_loss`` and ``batch_accuracy`` are means over the (augmented) training batches since the
    last row; ``loss`` and the other metrics are measured on unaugmented images of their split.
    """
    if "train_runtime" in logs:
        # The closing summary has a train_loss of another meaning.
        return []
    values = []
    for key, value in logs.items():
        if not isinstance(value, (int, float)) or key == "epoch":
            continue
        if key.startswith("eval_"):
            split, _, name = key.removeprefix("eval_").partition("_")
            if name and name not in _SPEEDS:
                values.append(Value(name, split, value))
        elif key in ("loss", "accuracy"):
            values.append(Value(f"batch_{key}", "train", value))
        else:
            values.append(Value(key, None, value))
    return values
