"""How fast training is, and what the user sees of it."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import ProgressCallback

from siglip_flowers.base.files import write_json

CLOCK_FILE = "clock.json"


class Throughput:
    """Counts images and seconds of training; evaluation and saving are left out.

    Seconds are those of the host. On a GPU, whose work the host only queues, they are right over
    many steps, and the wait for data is what remains visible of it.
    """

    def __init__(self) -> None:
        self._window_images = 0
        self._window_waited = 0.0
        self._window_start: float | None = None
        self._paused = 0.0
        self._pauses = 0
        # Of the whole run, with evaluation and saving, up to the checkpoint that was resumed.
        self._earlier_seconds = 0.0
        self._began = time.perf_counter()

    def start(self) -> None:
        """Start counting."""
        self._began = time.perf_counter()
        self._open_window()

    def _open_window(self) -> None:
        self._window_start = time.perf_counter()
        self._paused = 0.0

    def count(self, images: int) -> None:
        """Count images that were trained on."""
        self._window_images += images

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        began = time.perf_counter()
        yield
        self._window_waited += time.perf_counter() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out; a block within another counts as part of it."""
        began = time.perf_counter()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
        if self._pauses == 0:
            self._paused += time.perf_counter() - began

    def close_window(self) -> dict[str, float]:
        """Return ``images_per_second`` and ``data_wait``, a share, since the last call."""
        if self._window_start is None:
            return {}
        seconds = time.perf_counter() - self._window_start - self._paused
        images, waited = self._window_images, self._window_waited
        self._window_images, self._window_waited = 0, 0.0
        self._open_window()
        if seconds <= 0 or not images:
            return {}
        return {"images_per_second": images / seconds, "data_wait": min(1.0, waited / seconds)}

    def total_seconds(self) -> float:
        """Return the duration of the run's training, over all its interruptions."""
        return self._earlier_seconds + time.perf_counter() - self._began

    def save(self, directory: Path) -> None:
        """Write the duration so far into a checkpoint."""
        write_json(directory / CLOCK_FILE, {"seconds": self.total_seconds()})

    def load(self, directory: Path) -> None:
        """Continue from the duration of a checkpoint."""
        path = directory / CLOCK_FILE
        if path.is_file():
            self._earlier_seconds = json.loads(path.read_text(encoding="utf-8"))["seconds"]


def average_losses(log_history: list[dict[str, Any]], default: float) -> float:
    """Return the mean training loss of all logged steps, or the default if none was logged."""
    rows = [(row["step"], row["loss"]) for row in log_history if "loss" in row]
    if not rows:
        return default
    starts = [0, *(step for step, _ in rows[:-1])]
    weighted = (loss * (step - start) for (step, loss), start in zip(rows, starts, strict=True))
    return float(sum(weighted) / rows[-1][0])


def describe_log(logs: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures of a row of the log that a user watches, by name."""
    if "loss" in logs:
        shown = {"loss": f"{logs['loss']:.3f}"}
        if "accuracy" in logs:
            shown["accuracy"] = f"{logs['accuracy']:.1%}"
        if "images_per_second" in logs:
            shown["images/s"] = f"{logs['images_per_second']:.0f}"
            shown["waiting for data"] = f"{logs['data_wait']:.0%}"
        return shown
    return {
        f"{split} {name}": f"{logs[f'eval_{split}_{name}']:{form}}"
        for split in ("train", "validation")
        for name, form in (("accuracy", ".2%"), ("loss", ".3f"))
        if f"eval_{split}_{name}" in logs
    }


class Progress(ProgressCallback):
    """Shows loss, accuracy and speed, and the figures of each evaluation.

    On a terminal as a progress bar, with a line for each evaluation; in a file or a pipe, or with
    ``--disable_tqdm``, as a line for each row of the log.
    """

    def __init__(self, bars: bool) -> None:
        super().__init__()
        self.bars = bars and sys.stderr.isatty()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Open the bar."""
        if self.bars:
            super().on_train_begin(*args, **kwargs)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.bars:
            super().on_step_end(*args, **kwargs)

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Move the bar of an evaluation."""
        if self.bars:
            super().on_prediction_step(*args, **kwargs)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bars:
            super().on_train_end(*args, **kwargs)

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show a row of the log."""
        shown = describe_log(logs or {})
        if not state.is_world_process_zero or not shown:
            return
        if self.training_bar is not None and "loss" in shown:
            self.training_bar.set_postfix(shown, refresh=False)
            return
        figures = ", ".join(f"{name} {value}" for name, value in shown.items())
        line = f"step {state.global_step}/{state.max_steps}, epoch {state.epoch:.1f}: {figures}"
        if self.training_bar is not None:
            self.training_bar.write(line)
        else:
            print(line, flush=True)
