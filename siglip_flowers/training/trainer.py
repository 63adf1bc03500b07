"""The Hugging Face Trainer with a picture input path and metrics that do not depend on sharding."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from siglip_flowers.config import FlowersTrainingArguments
from siglip_flowers.data.augment import BatchAugmenter
from siglip_flowers.data.pixels import PixelNormalizer
from siglip_flowers.training.optimizer import build_parameter_groups

# Maps logits (B, C) and labels (B,) int64 or (B, C) soft to a scalar loss.
LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class FlowersTrainer(Trainer):
    """Trains a picture classifier on uint8 pixels; see ``Trainer`` for everything else.

    Args:
        loss_function: The training objective.
        normalizer: Turns pixels into the model's inputs, on the device.
        augmenter: Varies training batches, on the device; None trains on pictures as they are.
        **kwargs: The arguments of ``Trainer``.
    """

    args: FlowersTrainingArguments

    def __init__(
        self,
        *,
        loss_function: LossFunction,
        normalizer: PixelNormalizer,
        augmenter: BatchAugmenter | None,
        **kwargs: Any,
    ) -> None:
        self.loss_function = loss_function
        self.normalizer = normalizer
        self.augmenter = augmenter
        super().__init__(**kwargs)
        # compute_loss returns the mean of one micro-batch; the Trainer averages micro-batches.
        self.model_accepts_loss_kwargs = False
        self._running_hits: list[torch.Tensor] = []

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimiser with one learning rate for the encoder and one for the head."""
        if self.optimizer is None:
            model = self.model if model is None else model
            groups = build_parameter_groups(
                model,
                learning_rate=self.args.learning_rate,
                head_learning_rate=self.args.head_learning_rate or self.args.learning_rate,
                weight_decay=self.args.weight_decay,
            )
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
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
        pixels, labels = inputs["pixel_values"], inputs["labels"]
        targets = labels
        if self.augmenter is not None:
            pixels, targets = self.augmenter(
                pixels, labels, inputs["index"], self.state.global_step
            )
        outputs = model(pixel_values=self.normalizer(pixels))
        loss = self.loss_function(outputs.logits, targets)
        hard = targets if targets.ndim == 1 else targets.argmax(dim=-1)
        self._running_hits.append((outputs.logits.detach().argmax(dim=-1) == hard).float().mean())
        return (loss, outputs) if return_outputs else loss

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

    def _get_output_dir(self, trial: Any) -> str:
        return self.args.checkpoint_dir
