"""The Hugging Face Trainer with a picture input path and metrics that do not depend on sharding."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from siglip_flowers.config import FlowersTrainingArguments
from siglip_flowers.data.augment import BatchAugmenter
from siglip_flowers.data.pixels import PixelNormalizer
from siglip_flowers.model.ensemble import WeightAverage
from siglip_flowers.training.objectives import Objective, TrainingBatch
from siglip_flowers.training.optimizer import build_parameter_groups

AVERAGE_FILE = "ema.safetensors"


class FlowersTrainer(Trainer):
    """Trains a picture classifier on uint8 pixels; see ``Trainer`` for everything else.

    Args:
        objective: Maps model and batch to the loss.
        normalizer: Turns pixels into the model's inputs, on the device.
        augmenter: Varies training batches, on the device; None trains on pictures as they are.
        ema: Decay of the moving average of the weights that is evaluated and kept; None: none.
        **kwargs: The arguments of ``Trainer``.
    """

    args: FlowersTrainingArguments

    def __init__(
        self,
        *,
        objective: Objective,
        normalizer: PixelNormalizer,
        augmenter: BatchAugmenter | None,
        ema: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.objective: Objective = objective
        self.normalizer = normalizer
        self.augmenter = augmenter
        super().__init__(**kwargs)
        # compute_loss returns the mean of one micro-batch; the Trainer averages micro-batches.
        self.model_accepts_loss_kwargs = False
        self._running_hits: list[torch.Tensor] = []
        self.average = None if ema is None else WeightAverage(self._trained_model, ema)
        if self.average is not None:
            self.add_callback(_AverageCallback(self.average))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimiser with one learning rate for the encoder and one for the head."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            groups = build_parameter_groups(
                trained,
                learning_rate=self.args.learning_rate,
                head_learning_rate=self.args.head_learning_rate or self.args.learning_rate,
                weight_decay=self.args.weight_decay,
            )
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the objective's mean over a training batch, varied and normalised on the way."""
        pixels, labels, rows = inputs["pixel_values"], inputs["labels"], inputs["index"]
        step = self.state.global_step
        targets = labels
        if self.augmenter is not None:
            pixels, targets = self.augmenter(pixels, labels, rows, step)
        batch = TrainingBatch(self.normalizer(pixels), labels, targets, rows, step)
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
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(pixel_values=self.normalizer(inputs["pixel_values"]))
        return None, outputs.logits.float(), inputs["labels"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the accuracy on the training batches since the last row beside their loss."""
        if "loss" in logs and self._running_hits:
            hits = torch.stack(self._running_hits).mean()
            logs["accuracy"] = self.accelerator.gather(hits).mean().item()
            self._running_hits.clear()
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the averaged weights where there are any, else the current ones."""
        if self.average is None:
            return super().evaluate(*args, **kwargs)
        with self.average.applied_to(self._trained_model):
            return super().evaluate(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights, and beside them in a checkpoint their moving average."""
        super().save_model(output_dir, _internal_call)
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
        # The parent pickles its arguments into every checkpoint, which must hold no secret.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            self.average.load(Path(resume_from_checkpoint) / AVERAGE_FILE)

    def _get_output_dir(self, trial: Any) -> str:
        return self.args.checkpoint_dir


class _AverageCallback(TrainerCallback):
    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def on_step_end(self, *args: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        assert model is not None
        self.average.update(model)
