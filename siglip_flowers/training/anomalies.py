"""Steps that would spoil the weights: a loss or gradient norm that is not finite, or too large."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import gather, gather_object
from torch import Tensor

from siglip_flowers.base.errors import RunError
from siglip_flowers.base.files import write_json

logger = logging.getLogger(__name__)

SKIPPED_FILE = "skipped_steps.json"
# Steps that are looked at together at the latest, where nothing is logged or saved for long.
LONGEST_WATCH = 500
SHOWN_IMAGES = 64


class BadStepError(RunError):
    """Training met a step that is not finite, and may not leave it out; it diverges, it seems."""


@dataclass
class _Step:
    """What was seen of one step: its number, and by micro-batch the rows and whether it is bad."""

    number: int
    rows: list[list[int]] = field(default_factory=list)
    bad_losses: list[Tensor] = field(default_factory=list)
    bad_norm: Tensor | None = None

    def list_marks(self, device: torch.device) -> list[Tensor]:
        """Return what was seen as booleans () on one device."""
        marks = self.bad_losses if self.bad_norm is None else [*self.bad_losses, self.bad_norm]
        return [mark.reshape(()).to(device) for mark in marks]


class AnomalyWatch:
    """Watches losses and gradient norms without waiting for the device.

    What is bad is marked on the device; :meth:`check` waits for the marks, where the Trainer waits
    anyway and before every checkpoint. Steps are counted from 1.

    Args:
        policy: What a bad step leads to. ``stop``: RunError. ``skip``: no update for it, which
            waits for the device in every step.
        limit: Bad steps that are skipped before the run stops all the same.
        largest_norm: Gradient norm above which a step is bad; None: only one that is not finite.
    """

    def __init__(self, policy: str, limit: int, largest_norm: float | None) -> None:
        self.policy = policy
        self.limit = limit
        self.largest_norm = largest_norm
        self.skipped: list[int] = []
        self.name_images: Callable[[Sequence[int]], list[str]] = lambda rows: [
            f"row {row}" for row in rows
        ]
        self.newest_checkpoint: Callable[[], str | None] = lambda: None
        self._steps: list[_Step] = []
        self._last_loss: Tensor | None = None

    def see_loss(self, step: int, loss: Tensor, rows: Tensor) -> Tensor:
        """Mark the loss () of a micro-batch of rows (B,); return it, or the last finite one."""
        finite = torch.isfinite(loss)
        if not self._steps or self._steps[-1].number != step:
            self._steps.append(_Step(step))
        self._steps[-1].bad_losses.append(~finite)
        self._steps[-1].rows.append(rows.tolist())
        last = torch.zeros_like(loss) if self._last_loss is None else self._last_loss
        # The log's mean would stay spoilt for good: it is set back by subtraction.
        self._last_loss = torch.where(finite, loss, last)
        return self._last_loss

    def see_norm(self, norm: Tensor | float) -> None:
        """Mark the gradient norm of the step whose losses were seen last."""
        largest = torch.finfo(torch.float32).max if self.largest_norm is None else self.largest_norm
        # Not "above the largest", which is false for NaN.
        self._steps[-1].bad_norm = ~(torch.as_tensor(norm) <= largest)

    def is_full(self) -> bool:
        """Return whether the marks should be looked at, should no other occasion come."""
        return len(self._steps) >= LONGEST_WATCH

    def drops_update(self, step: int) -> bool:
        """Return whether the step's gradients must be dropped before the optimizer sees them."""
        if self.policy != "skip":
            return False
        found = self._find()
        if found is None:
            return False
        bad, description = found
        self._count(description)
        self.skipped.append(bad)
        logger.warning("%s; its update is left out.", description)
        return True

    def check(self) -> None:
        """Look at the marks since the last call; to be called by all processes.

        Raises:
            BadStepError: A bad step and the policy ``stop``.
        """
        found = self._find()
        if found is None:
            return
        _, description = found
        raise BadStepError(
            f"{description}; the run stops there{self._name_checkpoint()}: look at these "
            "images, lower --learning_rate, or resume past them with --on_nan skip."
        )

    def save(self, directory: Path) -> None:
        """Keep the numbers of the skipped steps with a checkpoint."""
        if self.skipped:
            write_json(directory / SKIPPED_FILE, self.skipped)

    def load(self, directory: Path) -> None:
        """Read what :meth:`save` wrote."""
        path = directory / SKIPPED_FILE
        self.skipped = json.loads(path.read_text("utf-8")) if path.is_file() else []

    def _count(self, description: str) -> None:
        if len(self.skipped) >= self.limit:
            raise BadStepError(
                f"{description}, after {self.limit} bad steps that were left out, which is as many "
                f"as --max_bad_steps allows{self._name_checkpoint()}: lower --learning_rate."
            )

    def _name_checkpoint(self) -> str:
        newest = self.newest_checkpoint()
        if newest is None:
            return ", with no checkpoint yet"
        return f", and {newest} is the last good checkpoint"

    def _find(self) -> tuple[int, str] | None:
        """Return the first bad step and a description of it, or None; forget the marks."""
        steps, self._steps = self._steps, []
        if not steps:
            return None
        device = steps[0].bad_losses[0].device
        marks = torch.stack([torch.stack(step.list_marks(device)).any() for step in steps])
        # The number of the first bad step, or how many there are.
        first = torch.cat([marks, marks.new_ones(1)]).long().argmax()
        first_of_all = int(gather(first.reshape(1)).min())
        if first_of_all == len(steps):
            return None
        step = steps[first_of_all]
        losses = [bool(flag) for flag in step.bad_losses]
        spoilt = [row for flag, rows in zip(losses, step.rows, strict=True) if flag for row in rows]
        own = (spoilt, [row for rows in step.rows for row in rows])
        found = gather_object([own])
        by_loss = [row for rows, _ in found for row in rows]
        rows = by_loss or [row for _, everything in found for row in everything]
        what = "loss is not finite" if by_loss else self._describe_norm()
        names = self.name_images(rows)
        more = f" and {len(names) - SHOWN_IMAGES} more" if len(names) > SHOWN_IMAGES else ""
        listed = ", ".join(names[:SHOWN_IMAGES])
        return step.number, f"The {what} in step {step.number} (images {listed}{more})"

    def _describe_norm(self) -> str:
        if self.largest_norm is None:
            return "gradient norm is not finite"
        return f"gradient norm exceeds --max_grad_norm_stop {self.largest_norm:g}"
