"""The features of every split, which heads are fitted on and judged by."""

import math
from dataclasses import dataclass

import numpy as np

from siglip_flowers.data import ClassificationData
from siglip_flowers.data.augmentation import build_augmenter
from siglip_flowers.data.pixels.tensors import scale_size
from siglip_flowers.data.splits import get_labels
from siglip_flowers.evaluation.features import FeatureExtractor
from siglip_flowers.training.build import RunArguments


@dataclass(frozen=True)
class SplitFeatures:
    """Features and labels of the splits; arrays are (N, P, D) float32 and (N,) int64."""

    poolings: tuple[str, ...]
    arrays: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    train_views: list[np.ndarray]

    def get(self, split: str, pooling: str) -> np.ndarray:
        """Return one pooling of a split, unvaried: (N, D)."""
        return np.ascontiguousarray(self.arrays[split][:, self.poolings.index(pooling)])

    def get_views(self, pooling: str) -> list[np.ndarray]:
        """Return one pooling of the training split as it is trained on: arrays (N, D)."""
        position = self.poolings.index(pooling)
        return [np.ascontiguousarray(view[:, position]) for view in self.train_views]


def collect_features(
    arguments: RunArguments, data: ClassificationData, extractor: FeatureExtractor
) -> SplitFeatures:
    """Open the features of every split, and of the augmented views of the training split."""
    training, augmentation = arguments.training, arguments.augmentation
    arrays = {name: extractor.open(rows, name) for name, rows in data.splits.items()}
    views = [arrays["train"]]
    if augmentation.augment:
        size = extractor.size
        augmenter = build_augmenter(augmentation, size, len(data.class_names), training.seed)
        views = [
            extractor.open(
                data.splits["train"],
                f"view {view + 1} of train",
                augmenter=augmenter,
                pixel_size=scale_size(size, augmentation.train_resize_scale),
                view=view,
            )
            for view in range(_count_views(arguments))
        ]
    labels = {name: get_labels(rows) for name, rows in data.splits.items()}
    return SplitFeatures(extractor.poolings, arrays, labels, views)


def _count_views(arguments: RunArguments) -> int:
    """Return the number of views, of which a short run has no use for all."""
    views, training = arguments.probe.augmented_views, arguments.training
    if training.max_steps > 0 or arguments.probe.probe_solver != "adamw":
        return views
    return min(views, math.ceil(training.num_train_epochs))
