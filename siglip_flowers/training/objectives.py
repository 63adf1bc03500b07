"""The three objectives, each a function of the model and one training batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from siglip_flowers.data.augmentation import uniform_numbers
from siglip_flowers.model.losses import cross_entropy_loss, sigmoid_loss


@dataclass(frozen=True)
class TrainingBatch:
    """One batch as the objectives see it.

    Attributes:
        inputs: The images as the model takes them: ``pixel_values`` (B, 3, S, S) float32,
            normalized; or patches with their mask and grids, see ``PixelNormalizer.prepare``.
        labels: (B,) int64, the images' own classes.
        targets: The labels, or (B, C) float32 where images were mixed.
        rows: (B,) int64 in main memory, the images' rows in the training split.
        step: Number of the optimizer step.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    targets: Tensor
    rows: Tensor
    step: int


# Returns the loss, and the logits (B, C) where the objective has any.
Objective = Callable[[nn.Module, TrainingBatch], tuple[Tensor, Tensor | None]]


def build_cross_entropy(label_smoothing: float, class_weights: Tensor | None) -> Objective:
    """Softmax cross-entropy over the classes; ``class_weights`` (C,) float32."""

    def objective(model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        logits = model(**batch.inputs).logits
        loss = cross_entropy_loss(logits, batch.targets, label_smoothing, class_weights)
        return loss, logits

    return objective


def build_sigmoid() -> Objective:
    """SigLIP's pairwise sigmoid loss between images and classes."""

    def objective(model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        logits = model(**batch.inputs).logits
        return sigmoid_loss(logits, batch.targets), logits

    return objective


def build_contrastive(num_templates: int, seed: int) -> Objective:
    """SigLIP's loss between images and prompts, one drawn for each image and step."""

    def objective(model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, None]:
        # Another stream than augmentation's, which starts from the same seed.
        numbers = uniform_numbers(seed + 1, batch.step, batch.rows.numpy(), 1)[:, 0]
        templates = torch.from_numpy(numbers * num_templates).long().to(batch.labels.device)
        outputs = model(**batch.inputs, labels=batch.labels, templates=templates)
        return outputs.loss, None

    return objective


def balance_classes(labels: Tensor, num_labels: int) -> Tensor:
    """Weigh classes by inverse frequency, with mean 1 over the images: (C,) float32.

    The weight of a class without images is 0.
    """
    counts = torch.bincount(labels, minlength=num_labels).float()
    present = counts > 0
    weights = torch.where(present, len(labels) / counts.clamp(min=1), 0.0)
    return weights / present.sum()
