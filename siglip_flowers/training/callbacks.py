"""Callbacks of a run: stop on a signal, check gradients, average weights, show progress."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_callback import ProgressCallback

from siglip_flowers.base.errors import RunError
from siglip_flowers.base.files import read_json, reading, write_json
from siglip_flowers.base.text import abbreviate
from siglip_flowers.config.rules import uses_deepspeed
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.runtime.preemption import Preempted, is_stop_requested
from siglip_flowers.runtime.processes import StopAgreement

# What a user watches in the log: its name, and the form of the figure.
SHOWN = {
    "loss": ("loss", ".3f"),
    "accuracy": ("accuracy", ".1%"),
    "images_per_second": ("images/s", ".0f"),
    "data_wait": ("waiting for data", ".0%"),
    "eval_train_accuracy": ("train accuracy", ".2%"),
    "eval_train_loss": ("train loss", ".3f"),
    "eval_validation_accuracy": ("validation accuracy", ".2%"),
    "eval_validation_loss": ("validation loss", ".3f"),
}
CLOCK_FILE = "clock.json"
SECOND = timedelta(seconds=1)


def ends_epoch(state: TrainerState) -> bool:
    """Return whether a step is the last of its epoch.

    It is complete only with the epoch's evaluation, which a resumed run would not make up for.
    """
    return float(state.epoch or 0).is_integer()


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint and raises ``Preempted`` after the step at which all processes stop."""

    _agreement: StopAgreement
    _is_agreed = False
    _leaves = False

    def on_train_begin(self, args: Any, *_: Any, **kwargs: Any) -> None:
        """Open the group of processes that agree."""
        self._agreement = StopAgreement(args.ddp_timeout_delta)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask whether to stop; called by every process after every step."""
        if self._agreement.decide(is_stop_requested()):
            self._is_agreed = True
        if self._is_agreed and not ends_epoch(state) and not control.should_training_stop:
            self._leave(control)

    def on_epoch_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Stop after the evaluation of the epoch."""
        if self._is_agreed:
            self._leave(control)

    def _leave(self, control: TrainerControl) -> None:
        self._leaves = control.should_save = control.should_log = True

    def on_save(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """End training now that the checkpoint is written."""
        if self._leaves:
            raise Preempted(
                f"stopped by a signal after step {state.global_step}; the same command resumes "
                f"from {args.checkpoint_dir}/checkpoint-{state.global_step}"
            )

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:
        """Wait for the last question; its answer comes too late to matter."""
        self._agreement.close()


class GradientCheck(TrainerCallback):
    """Stops a run before its first step if a parameter that should train has no gradient."""

    _checked = False

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **kwargs: Any) -> None:
        """Look at all gradients once; zeros are fine."""
        if self._checked:
            return
        self._checked = True
        trained = [item for item in model.named_parameters() if item[1].requires_grad]
        idle = [name for name, parameter in trained if parameter.grad is None]
        if idle:
            raise RunError(
                f"{len(idle)} of {len(trained)} trained parameters have no gradient: "
                f"{abbreviate(idle)}. They would not learn; change --trainable."
            )


class WholeCheckpoints(TrainerCallback):
    """Lets a resumed run have the rows and the evaluations of a whole one.

    A row of the log is written with every checkpoint: it is a mean over the steps since the last
    one, of which a checkpoint keeps nothing. The checkpoint of an epoch's last step is written
    after the epoch's evaluation.
    """

    _waits = False

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log if a checkpoint follows, or may follow the evaluation."""
        if control.should_save and args.eval_strategy == "epoch" and ends_epoch(state):
            self._waits, control.should_save = True, False
        self._log(args, control)

    def on_epoch_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Save what had to wait."""
        control.should_save, self._waits = control.should_save or self._waits, False
        self._log(args, control)

    def _log(self, args: Any, control: TrainerControl) -> None:
        may_save = control.should_evaluate and args.save_strategy == "best"
        if args.logging_strategy != "no" and (control.should_save or may_save):
            control.should_log = True


class EarlyStopping(EarlyStoppingCallback):
    """Stops after a number of evaluations without a new best.

    transformers calls it after the evaluation of every split and warns if the metric that chooses
    the best model is not among that split's.
    """

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Count the evaluation if its split has the metric."""
        if f"eval_{args.metric_for_best_model}" in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


class Throughput:
    """Counts images and seconds of training; evaluation and saving are left out.

    Seconds are those of the host. On a GPU, whose work the host only queues, they are right over
    many steps, and the wait for data is what remains visible of it.
    """

    def __init__(self) -> None:
        self._images = self._pauses = 0
        self._waited = self._paused = 0.0
        # Of the whole run, with evaluation and saving, up to the checkpoint that was resumed.
        self._earlier_seconds = 0.0
        self.start()

    def start(self) -> None:
        """Start counting."""
        self._began = self._window_start = time.perf_counter()

    def count(self, images: int, waited: float) -> None:
        """Count images that are trained on, and the seconds that they were waited for."""
        self._images += images
        self._waited += waited

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
        now = time.perf_counter()
        seconds = now - self._window_start - self._paused
        images, waited = self._images, self._waited
        self._images, self._waited, self._paused, self._window_start = 0, 0.0, 0.0, now
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
        with reading(directory / CLOCK_FILE):
            self._earlier_seconds = float(read_json(directory / CLOCK_FILE)["seconds"])


def describe_log(logs: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures of a row of the log that a user watches, by name."""
    return {name: f"{logs[key]:{form}}" for key, (name, form) in SHOWN.items() if key in logs}


def _format_row(state: TrainerState, shown: Mapping[str, str]) -> str:
    figures = ", ".join(f"{name} {value}" for name, value in shown.items())
    return f"step {state.global_step}/{state.max_steps}, epoch {state.epoch:.1f}: {figures}"


class ProgressLines(TrainerCallback):
    """Prints loss, accuracy, speed and the time left, and the figures of each evaluation."""

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any
    ) -> None:
        """Print a row of the log."""
        shown = describe_log(logs or {})
        if "images/s" in shown:
            images = (state.max_steps - state.global_step) * args.images_per_step
            seconds = min(round(images / logs["images_per_second"]), timedelta.max // SECOND)
            shown["left"] = str(seconds * SECOND)
        if state.is_world_process_zero and shown:
            print(_format_row(state, shown), flush=True)


class ProgressBar(ProgressCallback):
    """Shows the same beside the Trainer's progress bar, with a line for each evaluation."""

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any
    ) -> None:
        """Show a row of the log."""
        shown = describe_log(logs or {})
        if self.training_bar is None or not shown:
            return
        if "loss" in shown:
            self.training_bar.set_postfix(shown, refresh=False)
        else:
            self.training_bar.write(_format_row(state, shown))


def list_callbacks(training: SiglipTrainingArguments) -> list[TrainerCallback]:
    """Return what every run has, in the order in which it acts."""
    callbacks: list[TrainerCallback] = [StopOnSignal(), WholeCheckpoints()]
    # DeepSpeed keeps no gradients.
    if not uses_deepspeed():
        callbacks.append(GradientCheck())
    if training.early_stopping_patience is not None:
        callbacks.append(EarlyStopping(training.early_stopping_patience))
    return callbacks


def show_progress(trainer: Trainer, *, hide_bars: bool) -> None:
    """Show progress on a terminal as bars, elsewhere as lines, instead of the Trainer's own way."""
    trainer.remove_callback(PrinterCallback if hide_bars else ProgressCallback)
    bars = sys.stderr.isatty() and not hide_bars
    trainer.add_callback(ProgressBar() if bars else ProgressLines())
