"""The Hugging Face Trainer with an image input path and metrics that do not depend on sharding."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from siglip_flowers.base.errors import RunError
from siglip_flowers.config import SiglipTrainingArguments
from siglip_flowers.data.augmentation import BatchAugmenter
from siglip_flowers.data.pixels.tensors import PixelBatch, PixelNormalizer
from siglip_flowers.model.adapters import has_adapters, select_trained
from siglip_flowers.model.ensemble import WeightAverage
from siglip_flowers.runtime.memory import run_in_parts
from siglip_flowers.tracking import Trackers
from siglip_flowers.training.objectives import Objective, TrainingBatch
from siglip_flowers.training.optimizer import build_parameter_groups
from siglip_flowers.training.safe_trainer import SafeTrainer
from siglip_flowers.training.throughput import Throughput

logger = logging.getLogger(__name__)

AVERAGE_FILE = "ema.safetensors"


class SiglipTrainer(SafeTrainer):
    """Trains an image classifier on uint8 pixels; see ``Trainer`` for everything else.

    Args:
        objective: Maps model and batch to the loss.
        normalizer: Turns pixels into the model's inputs, on the device.
        augmenter: Varies training batches, on the device; None trains on images as they are.
        ema: Decay of the moving average of the weights that is evaluated and kept; None: none.
        trackers: Open ones, which every checkpoint names, so that a resumed run goes on with them.
        **kwargs: The arguments of ``Trainer``.
    """

    args: SiglipTrainingArguments

    def __init__(
        self,
        *,
        objective: Objective,
        normalizer: PixelNormalizer,
        augmenter: BatchAugmenter | None,
        ema: float | None = None,
        trackers: Trackers | None = None,
        **kwargs: Any,
    ) -> None:
        self.objective: Objective = objective
        self.normalizer = normalizer
        self.augmenter = augmenter
        self.trackers = trackers
        callbacks = [
            *(kwargs.pop("callbacks", None) or ()),
            *([] if trackers is None else [trackers]),
        ]
        super().__init__(callbacks=callbacks, **kwargs)
        # compute_loss returns the mean of one micro-batch; the Trainer averages micro-batches.
        self.model_accepts_loss_kwargs = False
        self._running_hits: list[torch.Tensor] = []
        self._largest_eval_batch: int | None = None
        self.throughput = Throughput()
        self.average = None if ema is None else WeightAverage(self._trained_model, ema)
        if self.average is not None:
            self.add_callback(_AverageCallback(self.average))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer with one learning rate for the encoder and one for the head."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            groups = build_parameter_groups(
                trained,
                learning_rate=self.args.learning_rate,
                head_learning_rate=self.args.head_learning_rate or self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                layer_decay=self.args.layer_decay,
            )
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, with a watch on the throughput."""
        self.throughput.start()
        return super().train(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch the batches of one step, and count the time that takes."""
        with self.throughput.waiting():
            samples, count = super().get_batch_samples(*args, **kwargs)
        images = sum(len(batch["labels"]) for batch in samples)
        self.throughput.count(images * self.accelerator.num_processes)
        return samples, count

    def _prepare_inputs(self, inputs: Any) -> Any:
        # Accelerate has sent the batch to the device.
        return inputs.wait() if isinstance(inputs, PixelBatch) else super()._prepare_inputs(inputs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the objective's mean over a training batch, varied and normalized on the way."""
        pixels, labels, rows = inputs["pixel_values"], inputs["labels"], inputs["index"]
        step = self.state.global_step
        targets = labels
        if self.augmenter is not None:
            pixels, targets = self.augmenter(pixels, labels, rows, step)
        batch = TrainingBatch(self.normalizer.prepare(pixels), labels, targets, rows, step)
        # Or the varied images would take memory all through the forward pass.
        del pixels
        loss, logits = self.objective(model, batch)
        if logits is not None:
            hard = targets if targets.ndim == 1 else targets.argmax(dim=-1)
            self._running_hits.append((logits.detach().argmax(dim=-1) == hard).float().mean())
        return (loss, {"logits": logits}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Return logits (B, C) float32 and labels (B,).

        No loss: the Trainer averages the losses of batches, which weighs the padding of the last
        batch of several processes. ``compute_metrics`` takes the loss from the gathered logits.
        """
        inputs = self._prepare_inputs(inputs)
        return None, self._classify(model, inputs["pixel_values"]), inputs["labels"]

    @torch.no_grad()
    def _classify(self, model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C) float32; in halves, from then on at once, where memory runs out.

        Within the step, since the other processes know nothing of it.
        """

        def run(part: torch.Tensor, _: int) -> torch.Tensor:
            with self.compute_loss_context_manager():
                logits: torch.Tensor = model(**self.normalizer.prepare(part)).logits
            return logits

        size = self._largest_eval_batch or len(pixels)
        logits, fitted = run_in_parts(run, pixels, size, self._refuse_parts)
        if fitted < size:
            self._largest_eval_batch = fitted
            logger.warning("Memory ran out; evaluating %d images at once.", fitted)
        return logits.float()

    def _refuse_parts(self, size: int) -> RunError | None:
        """Say why an evaluation of this many images at once cannot go on with half of them."""
        if size == 1:
            return RunError("There is too little memory to evaluate a single image.")
        processes = self.accelerator.num_processes
        if processes > 1 and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            # Their forward passes gather weights from all processes, each the same number.
            return RunError(
                f"There is too little memory to evaluate {size} images at once in one of "
                f"{processes} processes; use --per_device_eval_batch_size {size // 2}."
            )
        return None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the accuracy on the training batches since the last row beside their loss."""
        if "loss" in logs and self._running_hits:
            hits = torch.stack(self._running_hits).mean()
            logs["accuracy"] = self.accelerator.gather(hits).mean().item()
            self._running_hits.clear()
            logs.update(self.throughput.close_window())
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the averaged weights where there are any, else the current ones."""
        average = self.average
        averaged = nullcontext() if average is None else average.applied_to(self._trained_model)
        with self.throughput.paused(), averaged:
            return super().evaluate(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights, and beside them in a checkpoint their average and the tracked runs."""
        super().save_model(output_dir, _internal_call)
        if self.trackers is not None and output_dir is not None and self.args.should_save:
            self.trackers.save(Path(output_dir))
        if self.average is not None and output_dir is not None and self.args.should_save:
            self.average.save(Path(output_dir) / AVERAGE_FILE)

    def finish(self) -> None:
        """Give the model the weights to keep: the moving average, of the best evaluation."""
        if self.average is None:
            return
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None:
            self.average.load(Path(best) / AVERAGE_FILE)
        self.average.copy_to(self._trained_model)

    @property
    def _trained_model(self) -> nn.Module:
        # The Trainer allows None here, for a model_init that this one does not use.
        assert isinstance(self.model, nn.Module)
        return self.model

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        # Of a model with adapters only what is trained: the rest is in the base checkpoint.
        if has_adapters(self.model):
            state_dict = select_trained(self._trained_model, state_dict)
        # The parent pickles its arguments into every checkpoint, which must hold no secret.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.throughput.paused():
            super()._save_checkpoint(model, trial)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        missing = set(load_result.missing_keys)
        if has_adapters(self.model):
            missing &= select_trained(self._trained_model).keys()
            load_result = load_result._replace(missing_keys=sorted(missing))
        super()._issue_warnings_after_load(load_result)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            self.average.load(Path(resume_from_checkpoint) / AVERAGE_FILE)


class _AverageCallback(TrainerCallback):
    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def on_step_end(self, *args: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        assert model is not None
        self.average.update(model)
