"""Steps that would spoil the weights: a loss or gradient norm that is not finite."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather, gather_object
from torch import Tensor
from transformers import TrainerCallback, TrainerControl

from siglip_flowers.base.errors import RunError
from siglip_flowers.base.files import read_json, reading, write_json
from siglip_flowers.base.text import abbreviate
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.training.checkpoints import list_checkpoints

logger = logging.getLogger(__name__)

SKIPPED_FILE = "skipped_steps.json"
SHOWN_IMAGES = 64
# A scaler that starts at 2**16 and halves finds a scale that fits in fewer steps.
MAX_OVERFLOWS = 10


class BadStepError(RunError):
    """A step is not finite and may not be skipped; the training seems to diverge."""


@dataclass
class _Mark:
    """Whether a value is bad, on the device; its step, and the rows of the images of a loss."""

    step: int
    what: str
    bad: Tensor
    rows: list[int]


class AnomalyWatch(TrainerCallback):
    """Watches losses and gradient norms without waiting for the device.

    Bad values are marked on the device. :meth:`check` waits for the marks, when the Trainer waits
    anyway and before every checkpoint. Steps are counted from 1.

    With a gradient scaler (float16) norms that overflow are usual, and the scaler skips their
    steps; only too many of them in a row are bad.

    Args:
        args: With ``on_nan``: ``stop`` ends the run at a bad step; ``skip`` skips its update, at
            most ``max_bad_steps`` times, and waits for the device in every step.
        name_images: Returns the names of rows of the training split.
    """

    def __init__(
        self, args: SiglipTrainingArguments, name_images: Callable[[Sequence[int]], list[str]]
    ) -> None:
        self.args = args
        self.name_images = name_images
        self.skipped: list[int] = []
        self._marks: list[_Mark] = []
        self._last_loss: Tensor | None = None
        self._overflows: list[Tensor] = []
        self._overflows_in_a_row = 0

    def see_loss(self, step: int, loss: Tensor, rows: np.ndarray) -> Tensor:
        """Mark the loss () of a micro-batch of rows (B,); return it, or the last finite one."""
        finite = torch.isfinite(loss)
        self._marks.append(_Mark(step, "loss", ~finite, rows.tolist()))
        last = torch.zeros_like(loss) if self._last_loss is None else self._last_loss
        # The Trainer resets the log's mean by subtraction, which would keep a NaN forever.
        self._last_loss = torch.where(finite, loss, last)
        return self._last_loss

    def see_norm(self, norm: Tensor | float, *, is_scaled: bool) -> None:
        """Mark the gradient norm of the step whose losses were seen last."""
        last = self._marks[-1]
        bad = ~torch.isfinite(torch.as_tensor(norm, device=last.bad.device))
        if is_scaled:
            self._overflows.append(bad)
        else:
            self._marks.append(_Mark(last.step, "gradient norm", bad, []))

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **kwargs: Any) -> None:
        """Drop the gradients of a bad step if it is to be skipped: the optimizer then rests."""
        found = self._find() if self.args.on_nan == "skip" else None
        if found is None:
            return
        step, description = found
        if len(self.skipped) >= self.args.max_bad_steps:
            raise BadStepError(
                f"{description}, after {self.args.max_bad_steps} skipped steps, as many as "
                f"--max_bad_steps allows{self._name_checkpoint()}. Lower --learning_rate."
            )
        self.skipped.append(step)
        logger.warning("%s; its update is skipped.", description)
        model.zero_grad(set_to_none=True)

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Check what was marked if the Trainer is about to wait for the device."""
        if control.should_log or control.should_evaluate or control.should_save:
            self.check()

    def on_epoch_end(self, *_: Any, **kwargs: Any) -> None:
        """Check before the evaluation and the checkpoint of the epoch."""
        self.check()

    def check(self) -> None:
        """Look at the marks since the last call; to be called by all processes.

        Raises:
            BadStepError: A bad step.
        """
        for overflows in torch.stack(self._overflows).tolist() if self._overflows else ():
            self._overflows_in_a_row = self._overflows_in_a_row + 1 if overflows else 0
            if self._overflows_in_a_row >= MAX_OVERFLOWS:
                raise BadStepError(
                    f"The gradients overflowed float16 in {MAX_OVERFLOWS} steps in a row"
                    f"{self._name_checkpoint()}. Lower --learning_rate, or use --bf16 false."
                )
        self._overflows = []
        found = self._find()
        if found is not None:
            raise BadStepError(
                f"{found[1]}; the run stops there{self._name_checkpoint()}. Look at these "
                "images, lower --learning_rate, or resume past them with --on_nan skip."
            )

    def save(self, directory: Path) -> None:
        """Keep the numbers of the skipped steps with a checkpoint."""
        if self.skipped:
            write_json(directory / SKIPPED_FILE, self.skipped)

    def load(self, directory: Path) -> None:
        """Read what :meth:`save` wrote."""
        path = directory / SKIPPED_FILE
        with reading(path):
            self.skipped = list(map(int, read_json(path))) if path.is_file() else []

    def _name_checkpoint(self) -> str:
        checkpoints = list_checkpoints(Path(self.args.checkpoint_dir))
        if not checkpoints:
            return ", with no checkpoint yet"
        return f", and {checkpoints[-1]} is the last good checkpoint"

    def _find(self) -> tuple[int, str] | None:
        """Return the first bad step and a description of it, or None; forget the marks."""
        marks, self._marks = self._marks, []
        if not marks:
            return None
        # Of all processes: (P, marks).
        bad = gather(torch.stack([mark.bad for mark in marks]).int()[None]).any(dim=0).tolist()
        if not any(bad):
            return None
        first = marks[bad.index(True)]
        # Those of bad losses; a norm is of all images of its step.
        guilty = [m for m in marks if m.step == first.step and (m.bad or first.what != "loss")]
        rows = gather_object([row for mark in guilty for row in mark.rows])
        images = abbreviate(self.name_images(rows), SHOWN_IMAGES)
        description = f"The {first.what} is not finite in step {first.step} (images {images})"
        return first.step, description
