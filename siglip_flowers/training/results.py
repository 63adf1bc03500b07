"""What a run found, in files and for trackers: metrics, curve, predictions and images."""

import csv
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import PartialState
from sklearn.metrics import confusion_matrix

from siglip_flowers.base.environment import describe_environment
from siglip_flowers.base.files import (
    METRICS_FILE,
    MODEL_DIR,
    atomic_path,
    digest_weight_files,
    write_json,
)
from siglip_flowers.base.text import count, shorten_description
from siglip_flowers.data.pixels.array_cache import locate_cache
from siglip_flowers.data.pixels.tensors import PixelForm
from siglip_flowers.data.splits import ClassificationData, get_labels
from siglip_flowers.evaluation.predict import SplitResult
from siglip_flowers.evaluation.run import write_predictions
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.plots.examples import Example, choose_examples, save_examples
from siglip_flowers.plots.figures import draw_confusion, plot_curves
from siglip_flowers.plots.theme import to_image
from siglip_flowers.runtime.devices import describe_device, measure_products
from siglip_flowers.tracking.trackers import FinalResults, RunFacts
from siglip_flowers.training.build import RunArguments, fits_on_features
from siglip_flowers.training.checkpoints import estimate_checkpoint_bytes
from siglip_flowers.training.trainer import SiglipTrainer

EXAMPLES_RIGHT, EXAMPLES_WRONG = 6, 4
_TRAIN = ("loss", "nll", "accuracy")
_VALIDATION = (*_TRAIN, "top5_accuracy", "precision_macro", "recall_macro", "f1_macro")
COLUMNS = (
    *("step", "epoch", "learning_rate", "grad_norm", "loss", "accuracy"),
    *(f"train_{name}" for name in _TRAIN),
    *(f"validation_{name}" for name in _VALIDATION),
)


def build_history(
    log_history: list[dict[str, Any]], start: dict[str, float] | None = None
) -> list[dict[str, float | None]]:
    """Merge the Trainer's log entries to one row per step, with the columns of ``COLUMNS``.

    ``loss`` and ``accuracy`` are means over the (augmented) training batches since the last row;
    ``train_*`` and ``validation_*`` are measured on unaugmented images. ``start`` are the
    validation metrics before the first step, where the model classified already: row 0.
    """
    rows: dict[int, dict[str, float | None]] = {}
    if start is not None:
        values = {f"validation_{key}": value for key, value in start.items()}
        rows[0] = {key: values.get(key) for key in COLUMNS} | {"step": 0, "epoch": 0.0}
    for entry in log_history:
        if "train_runtime" in entry:
            # The Trainer's closing summary has a train_loss of another meaning.
            continue
        values = {key.removeprefix("eval_"): value for key, value in entry.items()}
        row = rows.setdefault(int(entry["step"]), dict.fromkeys(COLUMNS))
        row.update({key: values[key] for key in COLUMNS if values.get(key) is not None})
    return [rows[step] for step in sorted(rows)]


def list_final_point(results: Mapping[str, SplitResult]) -> list[dict[str, Any]]:
    """Return a log with a single entry, for a model fitted in one go: its final figures."""
    figures = {
        f"eval_{split}_{name}": value
        for split in ("train", "validation")
        for name, value in results[split].metrics.items()
    }
    return [{"step": 0, "epoch": 0.0, **figures}]


def write_history(path: Path, history: list[dict[str, float | None]]) -> None:
    """Write the rows as CSV; a column that was not measured at a step is empty."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(history)


def describe_run(
    arguments: RunArguments, data: ClassificationData, model: SiglipClassifier
) -> dict[str, Any]:
    """Return the facts that go beside a run's figures."""
    return {
        "data": {
            "source": data.source,
            "split_protocol": data.split_protocol,
            "description": data.description,
            "shots": arguments.data.shots,
            "shared_images": [list(pair) for pair in data.shared],
            "skipped_images": {name: len(ids) for name, ids in data.skipped.items()},
        },
        "model": {
            "model_id": arguments.model.model_name_or_path,
            "local": Path(arguments.model.model_name_or_path).is_dir(),
            "from_scratch": arguments.model.from_scratch,
            "head_init": arguments.model.head_init,
            "objective": arguments.training.objective,
            "pooling": model.config.pooling,
            "activation": model.config.activation,
            # A NaFlex tower has none.
            "image_size": getattr(model.config.vision_config, "image_size", None),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        "environment": describe_environment(describe_device(arguments.training.device)),
    }


def describe_training(trainer: SiglipTrainer, seconds: float) -> dict[str, Any]:
    """Return how a model was trained, in how many seconds."""
    state, is_best = trainer.state, trainer.args.load_best_model_at_end
    return {
        "seed": trainer.args.seed,
        "epochs": state.epoch,
        "steps": state.global_step,
        "skipped_steps": trainer.anomalies.skipped,
        # Of the weights that are kept.
        "best_step": state.best_global_step if is_best else None,
        "best_metric": trainer.args.metric_for_best_model,
        "best_value": state.best_metric if is_best else None,
        "seconds": seconds,
        "processes": trainer.accelerator.num_processes,
        "precision": trainer.accelerator.mixed_precision,
    }


def estimate_minutes(
    arguments: RunArguments, images: int, model: Any, form: PixelForm, step: int
) -> float:
    """Return roughly how many minutes a run takes after a step.

    Counted are the products in the encoder, at half of the speed that products alone reach here.
    ``images`` are those of an epoch, or all that are encoded if a head is fitted on features.
    """
    training, patch_size = arguments.training, model.vision_model.config.patch_size
    side = arguments.augmentation.train_image_size
    tokens = (math.prod(form.shape) if side is None else 3 * side**2) / (3 * patch_size**2)
    tokens *= 1 - training.patch_drop * training.patch_drop_until
    matrices = [value for value in model.vision_model.parameters() if value.ndim == 2]
    # A backward pass takes twice as long as a forward pass.
    passes = 3 if any(matrix.requires_grad for matrix in matrices) else 1
    flops = 2 * passes * tokens * sum(matrix.numel() for matrix in matrices)
    steps = training.max_steps
    total = images * training.num_train_epochs if steps < 0 else steps * training.images_per_step
    left = max(0.0, total - step * training.images_per_step)
    if fits_on_features(arguments):
        left = images
    dtype = getattr(torch, training.precision)
    speed = measure_products(training.device, dtype) * PartialState().num_processes
    return left * flops / (speed / 2) / 60


def describe_plan(
    arguments: RunArguments,
    data: ClassificationData,
    model: Any,
    step: int,
    forms: Mapping[str, PixelForm],
    trackers: str,
) -> list[str]:
    """Return what a run is about to do after a step, in five lines."""
    training, names = arguments.training, data.class_names
    counts = np.bincount(get_labels(data.splits["train"]), minlength=len(names)).tolist()
    most, spread = max(counts), count(min(counts), "training image")
    if min(counts) < most:
        smallest, largest = names[counts.index(min(counts))], names[counts.index(most)]
        spread = f"{smallest} ({spread}) the smallest, {largest} ({most}) the largest"
    else:
        spread += " each"
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    size = sum(value.numel() for value in model.parameters())
    train = "all trainable" if trained == size else f"{trained:,} trainable"
    processes = PartialState().num_processes
    begin = f"resumed from step {step}" if step else "from the start"
    fits = fits_on_features(arguments)
    batch = training.per_device_eval_batch_size if fits else training.images_per_step
    images = sum(map(len, data.splits.values())) if fits else len(data.splits["train"])
    minutes = estimate_minutes(arguments, images, model, forms["validation"], step)
    duration = count(math.ceil(minutes), "minute") if minutes < 90 else f"{minutes / 60:,.0f} hours"
    # The best checkpoint is kept besides those of the limit.
    limit = training.save_total_limit or 0
    disk = estimate_checkpoint_bytes(model) * (limit + 1)
    content = "of checkpoints" if limit else "per checkpoint"
    if fits or training.save_strategy == "no":
        disk, content = size * getattr(torch, training.save_dtype).itemsize, "for the model"
    pixels = ""
    if arguments.data.pixel_cache:
        sizes = (len(data.splits[split]) * math.prod(form.shape) for split, form in forms.items())
        place = locate_cache(arguments.data)
        pixels = f" and {sum(sizes) / 1e6:,.1f} MB of pixels in {place}"
    return [
        f"data: {data.description} (train/validation/test); "
        f"{count(len(names), 'class')}, {spread}; {data.checked}",
        f"model: {arguments.model.model_name_or_path}, {size / 1e6:.2f} million parameters, "
        f"{train}",
        f"device: {processes} x {describe_device(training.device)}, {training.precision}, "
        f"{count(batch, 'image')} per {'batch' if fits else 'step'}",
        f"output: {training.output_dir}, {begin}; trackers: {trackers}",
        f"disk: about {disk / 1e6:,.1f} MB {content}{pixels}; time: roughly {duration}"
        f"{'' if fits else '; the log shows a better estimate'}",
    ]


def list_examples(test: SplitResult, data: ClassificationData, seed: int) -> list[Example]:
    """Return test images, right and wrong ones, with true class, predicted class, confidence."""
    names, predicted = data.class_names, test.predicted
    rows = choose_examples(test.labels, test.probabilities, EXAMPLES_RIGHT, EXAMPLES_WRONG, seed)
    return [
        (
            data.splits["test"][row]["image"],
            names[test.labels[row]],
            names[predicted[row]],
            float(test.probabilities[row].max()),
        )
        for row in rows
    ]


def write_results(
    output_dir: Path,
    results: Mapping[str, SplitResult],
    history: list[dict[str, float | None]],
    data: ClassificationData,
    examples: list[Example],
    facts: dict[str, Any],
) -> None:
    """Write every file of a finished run; ``metrics.json`` comes last and marks it as finished."""
    title = f"{Path(facts['model']['model_id']).name} on {data.description}"
    write_history(output_dir / "history.csv", history)
    plot_curves(history, output_dir / "loss_plot.png", title, "loss")
    plot_curves(history, output_dir / "accuracy_plot.png", title, "accuracy")
    save_examples(examples, output_dir, title)
    write_predictions(
        output_dir / "predictions_test.parquet", results["test"], data.class_names, data.description
    )
    splits = {
        name: {"n": len(result.labels), **result.metrics, "per_class": result.per_class}
        for name, result in results.items()
    }
    # Ties the figures to these weights and no others.
    weights = digest_weight_files(output_dir / MODEL_DIR)
    facts = {"title": title, "finished": datetime.now(UTC).isoformat(timespec="seconds"), **facts}
    write_json(output_dir / METRICS_FILE, {**facts, "weights": weights, "splits": splits})


def describe_facts(arguments: RunArguments, data: ClassificationData, step: int) -> RunFacts:
    """Return what is known before the first step; a configuration contains no secrets."""
    output_dir = Path(str(arguments.training.output_dir))
    config = yaml.safe_load(arguments.dump())
    config["data_description"] = data.description
    config["num_classes"] = len(data.class_names)
    # W&B refuses some characters, and names of more than 128.
    project = re.sub(r"[^\w.-]+", "-", shorten_description(data.description))[:100].strip("-")
    name = arguments.training.run_name or output_dir.resolve().name
    return RunFacts(name, project, config, output_dir, step)


def collect_results(
    results: Mapping[str, SplitResult], names: list[str], examples: list[Example]
) -> FinalResults:
    """Return figures, example images and the confusion matrix of a finished run."""
    test = results["test"]
    counts = confusion_matrix(test.labels, test.predicted, labels=range(len(names)))
    return FinalResults(
        metrics={split: dict(result.metrics) for split, result in results.items()},
        examples=examples,
        confusion=to_image(draw_confusion(counts, names, "Confusion on the test split")),
    )
