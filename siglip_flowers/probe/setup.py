"""Put the Trainer of a grid of heads together."""

import datasets
import numpy as np
import torch

from siglip_flowers.config import SiglipTrainingArguments
from siglip_flowers.data.splits import draw_rows
from siglip_flowers.evaluation.features import FeatureDataset
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.probe.features import SplitFeatures
from siglip_flowers.probe.head_grid import (
    HeadGrid,
    cross_entropy_of_heads,
    sigmoid_loss_of_heads,
)
from siglip_flowers.probe.trainer import HeadLoss, ProbeSetting, ProbeTrainer
from siglip_flowers.tracking import Trackers
from siglip_flowers.training.build import (
    RunArguments,
    build_callbacks,
    copy_for_trainer,
    show_progress,
)
from siglip_flowers.training.objectives import balance_classes


def build_probe_trainer(
    arguments: RunArguments,
    model: SiglipClassifier,
    starts: dict[str, dict[str, torch.Tensor]],
    features: SplitFeatures,
    settings: list[ProbeSetting],
    trackers: Trackers | None = None,
) -> ProbeTrainer:
    """Put features, heads, losses and callbacks together.

    Args:
        arguments: Of the run.
        model: The classifier whose head is fitted.
        starts: By pooling, the state that every head of the pooling starts from.
        features: Of all splits.
        settings: Of the heads, pooling by pooling in the order of ``starts``.
        trackers: Open ones.
    """
    training = arguments.training
    poolings = list(starts)
    columns = [features.poolings.index(pooling) for pooling in poolings]
    counts = {name: sum(one.pooling == name for one in settings) for name in poolings}
    labels = features.labels
    # The same images as in any run: numbers are drawn as rows are.
    numbered = datasets.Dataset.from_dict({"row": np.arange(len(labels["train"]))})
    sample = np.array(
        draw_rows(numbered, training.train_eval_samples, arguments.data.split_seed, "train")["row"]
    )
    trainer = ProbeTrainer(
        settings=settings,
        head_loss=_build_head_loss(training, labels["train"], len(model.class_names)),
        activation=name_activation(training),
        poolings=poolings,
        model=HeadGrid(starts, counts, normalize_features=model.config.normalize_features),
        args=_copy_arguments(training),
        train_dataset=FeatureDataset(features.train_views, labels["train"], columns, training.seed),
        eval_dataset={
            "train": FeatureDataset(
                [features.arrays["train"][sample]], labels["train"][sample], columns
            ),
            "validation": FeatureDataset(
                [features.arrays["validation"]], labels["validation"], columns
            ),
        },
        callbacks=build_callbacks(training),
        trackers=trackers,
    )
    show_progress(trainer)
    return trainer


def _copy_arguments(training: SiglipTrainingArguments) -> SiglipTrainingArguments:
    """Return the run's arguments without what concerns an encoder."""
    copied = copy_for_trainer(training)
    # Gathering features takes less time than handing them over from another process.
    copied.dataloader_num_workers = 0
    copied.dataloader_prefetch_factor = None
    copied.dataloader_persistent_workers = False
    copied.gradient_checkpointing = False
    copied.torch_compile = False
    # The loss of the heads sees to it; the Trainer would want to know what kind of model this is.
    copied.label_smoothing_factor = 0.0
    # The best heads lie in buffers, the same in every process.
    copied.ddp_broadcast_buffers = False
    return copied


def _build_head_loss(
    training: SiglipTrainingArguments, labels: np.ndarray, num_classes: int
) -> HeadLoss:
    if training.objective == "sigmoid":
        return sigmoid_loss_of_heads
    weights = None
    if training.class_weights == "balanced":
        weights = balance_classes(torch.from_numpy(labels), num_classes).to(training.device)
    smoothing = training.label_smoothing_factor
    return lambda logits, labels: cross_entropy_of_heads(logits, labels, smoothing, weights)


def name_activation(training: SiglipTrainingArguments) -> str:
    """Name what turns the logits of the run's head into probabilities."""
    return "softmax" if training.objective == "cross_entropy" else "sigmoid"
