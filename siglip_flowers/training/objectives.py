"""The objectives, each a function of the model and one training batch; and class balance.

Classes of different sizes have weights, a sampler, or margins that grow as a class shrinks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.data.augmentation import encode_labels, uniform_numbers
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.contrastive import ContrastiveSiglip
from siglip_flowers.model.losses import cross_entropy_loss, sigmoid_loss


@dataclass(frozen=True)
class TrainingBatch:
    """One batch as the objectives see it.

    Attributes:
        inputs: The images as the model takes them: ``pixel_values`` (B, 3, S, S) float32,
            normalized; or patches with their mask and grids, see ``PixelNormalizer.prepare``.
        labels: (B,) int64, the images' own classes.
        targets: The labels, or (B, C) float32 where images were mixed.
        rows: (B,) int64, the images' rows in the training split.
        step: Number of the optimizer step.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    targets: Tensor
    rows: np.ndarray
    step: int


# Returns the loss of each image (B,) and the logits (B, C); of a contrastive batch a scalar, its
# mean, and None.
Objective = Callable[[nn.Module, TrainingBatch], tuple[Tensor, Tensor | None]]


def name_activation(training: SiglipTrainingArguments) -> str:
    """Return the activation of the model's probabilities, which follows from the objective."""
    return "softmax" if training.objective == "cross_entropy" else "sigmoid"


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
            :func:`adjust_logits`.
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
        numbers = uniform_numbers(seed + 1, batch.step, batch.rows, 1)[:, 0]
        templates = torch.from_numpy(numbers * num_templates).long().to(batch.labels.device)
        outputs = model(**batch.inputs, labels=batch.labels, templates=templates)
        return outputs.loss, None

    return objective


def build_objective(
    model: SiglipClassifier | ContrastiveSiglip,
    training: SiglipTrainingArguments,
    labels: np.ndarray,
) -> Objective:
    """Return the objective of a run; ``labels`` are those of the training split."""
    if isinstance(model, ContrastiveSiglip):
        return build_contrastive(model.num_templates, training.seed)
    adjustment = None
    if training.class_balance == "logit_adjustment":
        classes, strength = len(model.class_names), training.class_balance_strength
        adjustment = adjust_logits(labels, classes, strength)
    return build_classification(
        name_activation(training), training.label_smoothing_factor, adjustment
    )


def count_images(labels: np.ndarray, num_classes: int) -> torch.Tensor:
    """Return the images of each class, (C,) float32; a class without any counts as one image."""
    counts = np.bincount(labels, minlength=num_classes).clip(min=1)
    return torch.from_numpy(counts.astype(np.float32))


def weigh_classes(labels: np.ndarray, num_classes: int, strength: float) -> torch.Tensor:
    """Return weights (C,) float32 that fall with class frequency, with mean 1 over the images."""
    counts = count_images(labels, num_classes)
    weights = counts**-strength
    return weights / weights[torch.from_numpy(labels)].mean()


def weigh_images(targets: torch.Tensor, class_weights: torch.Tensor | None) -> torch.Tensor:
    """Return the weights (B,) float32 of images by class; of a mixed image, those of its classes.

    Args:
        targets: (B,) int64 labels, or (B, C) float32 distributions.
        class_weights: (C,) float32; None: all equal.
    """
    if class_weights is None:
        return torch.ones(len(targets), device=targets.device)
    weights = class_weights.to(targets.device)
    return targets @ weights if targets.ndim == 2 else weights[targets]


def adjust_logits(labels: np.ndarray, num_classes: int, strength: float) -> torch.Tensor:
    """Return what is added to the logits of each class while training, (C,) float32.

    ``strength * log(C * frequency)``: zero on balanced data. For a softmax, which the factor C does
    not change, this is logit adjustment, consistent for the balanced error. For the sigmoid loss it
    is a heuristic.

    Source: Menon et al. 2021, "Long-tail learning via logit adjustment", equation 10.
    """
    counts = count_images(labels, num_classes)
    return strength * (num_classes * counts / counts.sum()).log()


class BalancedImages(torch.utils.data.Dataset[Any]):
    """A data set of the same size, drawn again in each epoch with a probability by class.

    An image of a class of n images is drawn with a probability that is proportional to
    ``n ** -strength``, with replacement; with strength 1 all classes are equally frequent.

    Args:
        images: A data set with ``__getitems__``.
        labels: (N,) class numbers.
        strength: Exponent of the class frequencies.
        seed: Seed of the draws.
    """

    def __init__(self, images: Any, labels: np.ndarray, strength: float, seed: int) -> None:
        self.images = images
        self.seed = seed
        weights = weigh_classes(labels, int(labels.max()) + 1, strength).numpy()[labels]
        self.chances = weights.astype(np.float64) / weights.sum(dtype=np.float64)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the images of an epoch: a function of seed and epoch alone."""
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        count = len(self.chances)
        self.rows: np.ndarray = generator.choice(count, count, p=self.chances)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return self.images.__getitems__([int(row) for row in self.rows[list(indices)]])
