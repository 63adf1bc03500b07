"""Fit heads on the features of a frozen encoder and keep the one that validation favors."""

import dataclasses
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import set_seed

from siglip_flowers.base.run_dir import PROBE_GRID_FILE
from siglip_flowers.config import find_probe_obstacle
from siglip_flowers.data import ClassificationData
from siglip_flowers.evaluation.features import FeatureExtractor
from siglip_flowers.metrics.modules import compute_metrics
from siglip_flowers.model.classifier import SiglipClassifier, SiglipClassifierConfig
from siglip_flowers.model.heads import set_probe_head
from siglip_flowers.model.probe_solvers import (
    PROBE_STRENGTHS,
    RIDGE_STRENGTHS,
    fit_logistic_heads,
    fit_ridge_heads,
    scale_to_probabilities,
)
from siglip_flowers.probe.features import SplitFeatures, collect_features
from siglip_flowers.probe.report import (
    describe_winner,
    measure_neighbors,
    tabulate_settings,
    warn_at_edge,
    write_grid,
)
from siglip_flowers.probe.setup import build_probe_trainer, name_activation
from siglip_flowers.probe.trainer import ProbeSetting, ProbeTrainer
from siglip_flowers.tracking import Trackers
from siglip_flowers.training.build import (
    RunArguments,
    build_model,
    has_measured_start,
    name_start,
)


@dataclass(frozen=True)
class ProbeResult:
    """What a fit on features leaves.

    Attributes:
        trainer: The Trainer; its log is the winner's.
        outcome: As ``TrainOutput.metrics``.
        model: The winner, with a trained head.
        start: Validation metrics of the head before the first step, where it classified.
        facts: What goes into the metrics file, under ``probe`` and ``knn``.
    """

    trainer: ProbeTrainer
    outcome: dict[str, float]
    model: SiglipClassifier
    start: dict[str, float] | None
    facts: dict[str, Any]


def fits_on_features(arguments: RunArguments) -> bool:
    """Return whether a run encodes its images once and fits heads on the features."""
    obstacle = find_probe_obstacle(
        arguments.probe, arguments.augmentation, arguments.model, arguments.training
    )
    return obstacle is None


def list_probe_poolings(arguments: RunArguments) -> list[str]:
    """Return the poolings of the grid."""
    return arguments.probe.probe_poolings or [arguments.model.pooling]


def encoder_arguments(arguments: RunArguments, pooling: str | None = None) -> RunArguments:
    """Return the arguments to build the encoder by: one whose tower gives every pooling asked for.

    The head starts at random where it is to start from a probe, which the features then serve.
    """
    poolings = list_probe_poolings(arguments)
    pooling = pooling or ("map" if "map" in poolings else "mean")
    head_init = arguments.model.head_init
    model = dataclasses.replace(
        arguments.model,
        pooling=pooling,
        head_init="random" if head_init == "probe" else head_init,
    )
    return dataclasses.replace(arguments, model=model)


def fit_probe(
    arguments: RunArguments,
    data: ClassificationData,
    model: SiglipClassifier,
    processor: Any,
    checkpoint: str | None = None,
    trackers: Trackers | None = None,
) -> ProbeResult:
    """Encode every image once, fit the whole grid of heads, and choose on validation.

    Args:
        arguments: Of the run; :func:`fits_on_features` holds.
        data: The images.
        model: What ``build_model`` made of :func:`encoder_arguments`.
        processor: Its image processor.
        checkpoint: Directory to resume from.
        trackers: Open ones.

    Raises:
        RunError: Every setting diverged, or there is too little memory.
    """
    began = time.perf_counter()
    extractor = FeatureExtractor(model, processor, arguments.data, arguments.training)
    features = collect_features(arguments, data, extractor)
    model.to("cpu")  # type: ignore[arg-type]
    encoding_seconds = time.perf_counter() - began
    if extractor.encoded and PartialState().is_main_process:
        print(f"encoded {extractor.encoded} images once, in {encoding_seconds:.1f} s")
    starts = _start_heads(arguments, data, model, processor, features)
    start = None
    if has_measured_start(arguments):
        start = _measure_start(arguments, model, starts, features)
    began = time.perf_counter()
    settings, solved = _solve(arguments, features, len(data.class_names))
    trainer = build_probe_trainer(arguments, model, starts, features, settings, trackers)
    if solved is None:
        outcome = dict(trainer.train(resume_from_checkpoint=checkpoint).metrics)
    else:
        trainer.grid.load_heads(solved)
        # The curve is this one point.
        trainer.state.epoch = 1.0
        outcome = {}
    trainer.finish()
    outcome.setdefault("train_runtime", time.perf_counter() - began)
    winner = trainer.leader
    rows = tabulate_settings(trainer)
    warn_at_edge(settings, winner)
    trainer.show_only(winner)
    final = install_head(model, settings[winner].pooling, trainer.grid.get_kept(winner))
    knn = measure_neighbors(features, settings[winner].pooling, len(data.class_names), trainer)
    if PartialState().is_main_process:
        write_grid(Path(str(arguments.training.output_dir)) / PROBE_GRID_FILE, rows)
        print(describe_winner(rows, winner))
        print(
            f"k-NN on the features (k = {knn['neighbors']}, cosine): validation accuracy "
            f"{knn['validation_accuracy']:.2%}, test accuracy {knn['test_accuracy']:.2%}"
        )
    facts = {
        "solver": arguments.probe.probe_solver,
        "winner": rows[winner],
        "settings": rows,
        "encoded_images": extractor.encoded,
        "encoding_seconds": encoding_seconds,
        "fit_seconds": outcome["train_runtime"],
        "augmented_views": len(features.train_views) if arguments.augmentation.augment else None,
    }
    return ProbeResult(trainer, outcome, final, start, {"probe": facts, "knn": knn})


def _start_heads(
    arguments: RunArguments,
    data: ClassificationData,
    model: SiglipClassifier,
    processor: Any,
    features: SplitFeatures,
) -> dict[str, dict[str, torch.Tensor]]:
    """Return, by pooling, the head that the step-by-step run of that pooling would start from."""
    starts = {}
    for pooling in list_probe_poolings(arguments):
        built: Any = model
        if pooling != model.config.pooling:
            # Random heads are drawn after the tower's weights: another tower, other numbers.
            set_seed(arguments.training.seed)
            built = build_model(encoder_arguments(arguments, pooling), data, processor)
        if arguments.model.head_init == "probe":
            weight = "balanced" if arguments.training.class_weights == "balanced" else None
            train, validation = (
                (features.get(split, pooling), features.labels[split])
                for split in ("train", "validation")
            )
            set_probe_head(built, train, validation, weight)
        state = built.classifier.state_dict()
        starts[pooling] = {name: value.detach().clone() for name, value in state.items()}
    return starts


def _measure_start(
    arguments: RunArguments,
    model: SiglipClassifier,
    starts: dict[str, dict[str, torch.Tensor]],
    features: SplitFeatures,
) -> dict[str, float]:
    pooling = list_probe_poolings(arguments)[0]
    started = install_head(model, pooling, starts[pooling])
    with torch.no_grad():
        logits = started.classify_features(torch.from_numpy(features.get("validation", pooling)))
    metrics = compute_metrics(
        logits.numpy(), features.labels["validation"], name_activation(arguments.training)
    )
    if PartialState().is_main_process:
        kind = name_start(arguments)
        print(f"before the first step: {kind} validation accuracy {metrics['accuracy']:.2%}")
    return metrics


def _solve(
    arguments: RunArguments, features: SplitFeatures, num_classes: int
) -> tuple[list[ProbeSetting], list[dict[str, np.ndarray]] | None]:
    """Return the settings of the grid, and the heads where the solver needs no steps."""
    probe, training = arguments.probe, arguments.training
    poolings = list_probe_poolings(arguments)
    if probe.probe_solver == "adamw":
        own_rate = training.head_learning_rate or training.learning_rate
        grid = itertools.product(
            poolings,
            probe.probe_learning_rates or [own_rate],
            probe.probe_weight_decays or [training.weight_decay],
        )
        return [ProbeSetting(*values) for values in grid], None
    settings, heads = [], []
    class_weight = "balanced" if training.class_weights == "balanced" else None
    labels = features.labels["train"]
    for pooling in poolings:
        views = features.get_views(pooling)
        if probe.probe_solver == "lbfgs":
            strengths = [1 / value for value in PROBE_STRENGTHS]
            stacked, repeated = np.concatenate(views), np.tile(labels, len(views))
            found = fit_logistic_heads(
                stacked, repeated, num_classes, PROBE_STRENGTHS, class_weight
            )
        else:
            found, strengths = fit_ridge_heads(
                views, labels, num_classes, RIDGE_STRENGTHS, class_weight
            )
            held_out = features.get("validation", pooling), features.labels["validation"]
            found = [scale_to_probabilities(head, *held_out) for head in found]
        settings += [ProbeSetting(pooling, strength=strength) for strength in strengths]
        heads += [{"weight": weight, "bias": bias} for weight, bias in found]
    return settings, heads


def install_head(
    model: SiglipClassifier, pooling: str, head: dict[str, torch.Tensor]
) -> SiglipClassifier:
    """Return the model with this head and pooling; the given one itself where it pools so."""
    if pooling != model.config.pooling:
        config = SiglipClassifierConfig.from_dict({**model.config.to_dict(), "pooling": pooling})
        config._attn_implementation = model.config._attn_implementation
        other = SiglipClassifier(config)
        # The attention pooling has no place in a tower whose tokens are averaged.
        known = other.vision_model.state_dict()
        tower = {name: v for name, v in model.vision_model.state_dict().items() if name in known}
        other.vision_model.load_state_dict(tower)
        model = other
    model.classifier.load_state_dict(head)
    return model.eval()
