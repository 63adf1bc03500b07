"""Classes of different sizes: weights, a sampler, or margins that grow as a class shrinks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


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
    """A data set of as many images, drawn anew in each epoch with a chance by class.

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
