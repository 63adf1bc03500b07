"""What a card shows of a run: test metrics with intervals, and settings."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from siglip_flowers.config import (
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    TrainingOptions,
)
from siglip_flowers.evaluation.run import HEADLINE
from siglip_flowers.metrics.bootstrap import bootstrap_headline
from siglip_flowers.publish.finished import FinishedRun, Predictions

LOSSES = {"loss": "loss", "nll": "negative log-likelihood"}
# Settings that decide the result. These are shown whether or not they have their defaults,
ESSENTIAL = (
    *("objective", "pooling", "head_init", "trainable", "num_train_epochs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("head_learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim"),
    *("bf16", "seed", "split_seed"),
)
# and so are all of augmentation and model, and these, if they do not.
OPTIONAL = (
    *("shots", "shots_seed", "max_train_samples", "validation_fraction", "max_steps"),
    *("lr_scheduler_kwargs", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "label_smoothing_factor", "fp16", "tf32", "data_seed"),
    *("metric_for_best_model", "load_best_model_at_end", "early_stopping_patience"),
    *("layer_decay", "class_weights", "train_text_tower", "ema", "wise_ft"),
)
# Stated elsewhere, a path of the machine, or of no influence.
NOT_SHOWN = ("model_name_or_path", "prompt_templates", "attn_implementation")


def list_test_metrics(run: FinishedRun) -> dict[str, float]:
    """Return every figure of the test split, the headline first."""
    test = run.metrics["splits"]["test"]
    numbers = {
        name: value
        for name, value in test.items()
        if name != "n" and isinstance(value, (int, float))
    }
    return {name: numbers[name] for name in (*HEADLINE, *LOSSES) if name in numbers} | numbers


def name_metric(key: str) -> str:
    """Return a metric's name for readers."""
    return {**HEADLINE, **LOSSES}.get(key, key.replace("_", " "))


def compute_intervals(predictions: Predictions, num_classes: int) -> dict[str, tuple[float, float]]:
    """Return the 95 % bootstrap interval of each figure that has one."""
    return bootstrap_headline(
        predictions.labels, predictions.predicted, num_classes, hits=predictions.hits
    )


def format_results(run: FinishedRun) -> str:
    """Return the results as a table in Markdown: test with intervals, and validation."""
    splits = run.metrics["splits"]
    test, validation = splits["test"], splits["validation"]
    intervals = compute_intervals(run.predictions, len(test["per_class"]))
    lines = [
        f"| | test (n = {test['n']}) | 95 % interval | validation (n = {validation['n']}) |",
        "|---|---:|---:|---:|",
    ]
    for key, name in HEADLINE.items():
        ends = "{:.2%} to {:.2%}".format(*intervals[key]) if key in intervals else "none"
        lines.append(f"| {name} | {test[key]:.2%} | {ends} | {validation[key]:.2%} |")
    return "\n".join(lines)


def choose_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a card shows: those that decide the result.

    Args:
        settings: The resolved configuration of the run.
    """
    chosen = {name: settings[name] for name in ESSENTIAL if name in settings}
    for kind in (AugmentationArguments, ModelArguments, DataArguments, TrainingOptions):
        names = {item.name: item.default for item in dataclasses.fields(kind)}
        if kind in (DataArguments, TrainingOptions):
            names = {name: names[name] for name in OPTIONAL if name in names}
        for name, default in names.items():
            if name not in (*ESSENTIAL, *NOT_SHOWN) and settings.get(name, default) != default:
                chosen[name] = settings[name]
    return chosen


def format_setting(value: Any) -> str:
    """Return the value of a setting for readers."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
