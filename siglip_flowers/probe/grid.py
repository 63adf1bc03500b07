"""Fit a head per pooling and penalty on cached features, and keep the best on validation."""

import dataclasses
import itertools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from siglip_flowers.base.files import PROBE_GRID_FILE, write_text
from siglip_flowers.base.text import format_csv
from siglip_flowers.config import AugmentationArguments, DataArguments, ModelArguments
from siglip_flowers.config.saved import dump_configuration
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.data.rows import get_labels
from siglip_flowers.data.splits import ClassificationData
from siglip_flowers.evaluation.features import FittedHead, load_split_features
from siglip_flowers.metrics.neighbors import vote_neighbors
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.heads import PENALTIES, HeadFit, choose_fit, fit_and_validate, set_head
from siglip_flowers.probe.options import ProbeArguments
from siglip_flowers.training.build import RunArguments, build_model

logger = logging.getLogger(__name__)


@dataclass
class ProbeRun(RunArguments):
    """A run that fits a grid of heads; its saved configuration is that of the probe command."""

    probe: ProbeArguments

    def dump(self) -> str:
        """Return the configuration as YAML text that ``--config`` reads back."""
        return dump_configuration(self.probe, self.data)


def make_run(probe: ProbeArguments, data: DataArguments) -> ProbeRun:
    """Return the run whose training the grid replaces."""
    model = ModelArguments(
        model_name_or_path=probe.model_name_or_path,
        trainable="head",
        # A tower with attention pooling gives both poolings in one pass.
        pooling="map" if "map" in probe.poolings else "mean",
        image_size=probe.image_size,
        max_num_patches=probe.max_num_patches,
    )
    training = SiglipTrainingArguments(
        output_dir=probe.output_dir,
        overwrite_output_dir=probe.overwrite_output_dir,
        per_device_eval_batch_size=probe.per_device_eval_batch_size,
        bf16=probe.bf16,
        report_to=probe.report_to,
    )
    return ProbeRun(data, AugmentationArguments(augment=False), model, training, probe)


def fit_grid(
    arguments: ProbeRun,
    model: SiglipClassifier,
    processor: Any,
    data: ClassificationData,
    data_arguments: DataArguments,
    training: SiglipTrainingArguments,
) -> FittedHead:
    """Fit every head of the grid and return the model with the one that validation favors.

    Protocol: each image is encoded once; multinomial logistic regression on half-whitened features
    for each pooling, class weights and penalty; the head with the highest validation accuracy is
    kept. The grid is written as CSV. k-NN accuracies on the features of the chosen pooling are a
    reference that fits nothing.
    """
    probe = arguments.probe
    penalties = sorted(probe.penalties or PENALTIES, reverse=True)
    classes, device = len(data.class_names), training.device
    features = {
        split: load_split_features(model, processor, data, split, data_arguments, training)
        for split in data.splits
    }
    labels = {split: get_labels(rows) for split, rows in data.splits.items()}
    fits: list[HeadFit] = []
    rows: list[dict[str, Any]] = []
    for pooling, weights in itertools.product(probe.poolings, probe.class_weights):
        train, validation = (
            (features[split][pooling], labels[split]) for split in ("train", "validation")
        )
        found = fit_and_validate(
            train, validation, classes, penalties, balanced=weights == "balanced", device=device
        )
        fits += found
        for fit in found:
            figures = {name: value for name, value in vars(fit).items() if name != "head"}
            rows.append({"pooling": pooling, "class_weights": weights, **figures})
    best = choose_fit(fits)
    for row, fit in zip(rows, fits, strict=True):
        row["chosen"] = fit is best
    chosen = next(row for row in rows if row["chosen"])
    neighbors = _measure_neighbors(arguments, features, labels, chosen["pooling"])
    if PartialState().is_main_process:
        cells = [list(rows[0]), *(list(row.values()) for row in rows)]
        write_text(Path(probe.output_dir) / PROBE_GRID_FILE, format_csv(cells))
        _report(chosen, neighbors, len(rows))
        if len(penalties) > 1 and best.penalty in (penalties[0], penalties[-1]):
            logger.warning(
                "The best penalty, %g, is at the edge of the grid; add some beyond it to "
                "--penalties.",
                best.penalty,
            )
    if chosen["pooling"] != model.config.pooling:
        other = dataclasses.replace(arguments.model, pooling=chosen["pooling"])
        built = build_model(dataclasses.replace(arguments, model=other), data, processor)
        assert isinstance(built, SiglipClassifier)
        model = built
    set_head(model, best.head)
    return FittedHead(model, {"probe": {"chosen": chosen, "grid": rows}, "knn": neighbors})


def _measure_neighbors(
    arguments: ProbeRun,
    features: dict[str, dict[str, np.ndarray]],
    labels: dict[str, np.ndarray],
    pooling: str,
) -> dict[str, Any]:
    """Return the accuracy of a vote of the nearest training images."""
    train = features["train"][pooling]
    count = min(arguments.probe.neighbors, len(train))
    accuracies = {}
    for split in ("validation", "test"):
        votes = vote_neighbors(
            train,
            labels["train"],
            features[split][pooling],
            int(labels["train"].max()) + 1,
            neighbors=count,
            device=arguments.training.device,
        )
        accuracies[f"{split}_accuracy"] = float(np.mean(votes.argmax(axis=1) == labels[split]))
    return {"neighbors": count, "pooling": pooling, **accuracies}


def _report(chosen: dict[str, Any], neighbors: dict[str, Any], count: int) -> None:
    print(
        f"best of {count} heads on validation: pooling {chosen['pooling']}, class_weights "
        f"{chosen['class_weights']}, penalty {chosen['penalty']:.2g}, accuracy "
        f"{chosen['validation_accuracy']:.2%}"
    )
    print(
        f"k-NN on the same features (k = {neighbors['neighbors']}): validation accuracy "
        f"{neighbors['validation_accuracy']:.2%}, test accuracy {neighbors['test_accuracy']:.2%}"
    )
