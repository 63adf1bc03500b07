"""The objectives, each a function of the model and one training batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from siglip_flowers.data.augmentation import encode_labels, uniform_numbers
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


# Returns the loss of each image (B,) and the logits (B, C); of a contrastive batch a scalar, its
# mean, and None.
Objective = Callable[[nn.Module, TrainingBatch], tuple[Tensor, Tensor | None]]


def smooth_targets(labels: Tensor, num_labels: int, smoothing: float) -> Tensor:
    """Return target distributions: ``(1 - smoothing) * target + smoothing / num_labels``.

    ``labels`` (B,) integer ids or (B, C) distributions. Returns (B, C) float32 whose rows sum to
    1, for either loss; without smoothing ``labels`` as they are.

    Source: Szegedy et al. 2016, "Rethinking the Inception architecture", section 7.
    """
    if smoothing == 0:
        return labels
    targets = encode_labels(labels, num_labels) if labels.dim() == 1 else labels
    return (1 - smoothing) * targets + smoothing / num_labels


def build_classification(
    activation: str, label_smoothing: float, adjustment: Tensor | None
) -> Objective:
    """Return the loss between images and classes: softmax cross-entropy or pairwise sigmoid.

    Args:
        activation: ``softmax`` or ``sigmoid``.
        label_smoothing: Share of each target that is spread over all classes.
        adjustment: (C,) float32, added to the logits while training, not to those returned; see
            :func:`~siglip_flowers.training.balance.adjust_logits`.
    """
    loss_function = sigmoid_loss if activation == "sigmoid" else cross_entropy_loss

    def objective(model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        logits = model(**batch.inputs).logits
        adjusted = logits if adjustment is None else logits + adjustment.to(logits.device)
        targets = smooth_targets(batch.targets, logits.shape[1], label_smoothing)
        return loss_function(adjusted, targets, reduction="none"), logits

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
