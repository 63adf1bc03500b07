"""Evaluate a saved classifier on a split: load it and the data, run it, write what was measured.

What a feature adds to an evaluation is an :class:`EvaluationExtension`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from accelerate import PartialState

from siglip_flowers.base.environment import describe_environment
from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import METRICS_FILE, atomic_path, is_finished, read_json, write_json
from siglip_flowers.base.text import align_columns
from siglip_flowers.config import DataArguments, EvaluationArguments
from siglip_flowers.data.inspection import check_images
from siglip_flowers.data.names import follow_model_classes
from siglip_flowers.data.sources.load import check_data_arguments, open_data
from siglip_flowers.data.splits import ClassificationData
from siglip_flowers.evaluation.predict import PassOptions, SplitResult, evaluate_split
from siglip_flowers.metrics.bootstrap import bootstrap_headline
from siglip_flowers.metrics.classification import are_in_top_k, rank_classes
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.heads import load_zero_shot_classifier
from siglip_flowers.model.loading import load_image_processor, load_saved_classifier
from siglip_flowers.model.text_head import check_prompts, check_text_tower, read_prompts
from siglip_flowers.runtime.devices import describe_device, resolve_dtype

# Macro averages are the headline; accuracy and macro recall differ if class sizes do.
HEADLINE = {
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "precision_macro": "precision (macro)",
    "recall_macro": "recall (macro)",
    "f1_macro": "F1 (macro)",
    "precision_weighted": "precision (weighted)",
    "recall_weighted": "recall (weighted)",
    "f1_weighted": "F1 (weighted)",
}
TOP_K = 5


@dataclass
class Evaluation:
    """One evaluation: what is evaluated, and after the pass over the split its result.

    Attributes:
        options: Those of the command.
        data_arguments: Where the images come from.
        command: The command line, for reports.
        name: The model's directory or Hub id.
        title: One line that names model and data.
        model: The classifier.
        processor: Its image processor.
        data: All splits.
        rows: The split that is evaluated, with the model's class numbers.
        environment: Versions and hardware.
        result: Predictions and metrics; None before the pass.
        figures: What extensions measured, by the key of the metrics file that it is written to.
    """

    options: EvaluationArguments
    data_arguments: DataArguments
    command: str
    name: str
    title: str
    model: SiglipClassifier
    processor: Any
    data: ClassificationData
    rows: datasets.Dataset
    environment: dict[str, Any] = field(default_factory=dict)
    result: SplitResult | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def pass_options(self) -> PassOptions:
        """How a pass over the split runs."""
        options = self.options
        return PassOptions(options.per_device_eval_batch_size, self.data_arguments, options.dtype)

    @functools.cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95% interval of every metric that has one; see ``bootstrap_headline``."""
        result = self.result
        assert result is not None
        return bootstrap_headline(
            result.labels,
            result.predicted,
            len(self.model.class_names),
            hits=are_in_top_k(result.labels, result.logits, TOP_K),
        )


class EvaluationExtension:
    """What a feature does in an evaluation; each step does nothing unless it is overridden.

    A feature's ``extension.py`` has a class ``Extension``, which is made with an instance of the
    feature's ``EXTENDS["eval"]`` if any of its options is set.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    def run_instead(self, options: EvaluationArguments) -> bool:
        """Do something other than evaluate and return True."""
        return False

    def check(self, evaluation: Evaluation) -> None:
        """Raise InputError for what cannot work, before the pass over the split."""

    def measure(self, evaluation: Evaluation) -> None:
        """Measure more after the pass; called by every process of a launch."""

    def write(self, evaluation: Evaluation) -> None:
        """Print and write what was measured; called by the main process."""


def prepare_evaluation(
    options: EvaluationArguments, data_arguments: DataArguments, command: str = ""
) -> Evaluation:
    """Load the model and the data that the options name.

    Args:
        options: Which model, on which split.
        data_arguments: Where the images come from.
        command: The command line, for reports.

    Raises:
        InputError: A model or data that cannot be used, or classes that the model does not know.
    """
    # Without an accelerator the processes of a launch join only if they are told to use the CPU.
    state = PartialState(cpu=not torch.accelerator.is_available())
    name = options.model_name_or_path or options.model
    assert name is not None
    check_data_arguments(data_arguments)
    if options.output_dir is not None:
        _keep_own_predictions(Path(options.output_dir), options.split)
    if options.zero_shot:
        check_text_tower(name)
    else:
        model = load_saved_classifier(name)
    processor = load_image_processor(name)
    with state.main_process_first():
        data = open_data(data_arguments)
        if options.zero_shot:
            prompts = read_prompts(data.class_names, options)
            check_prompts(name, data.class_names, prompts)
        data = check_images(data, data_arguments)
    rows = data.splits[options.split]
    if options.zero_shot:
        model = load_zero_shot_classifier(name, data.class_names, prompts)
    else:
        rows = follow_model_classes(rows, model.class_names, name)
    # The dtype that "auto" stands for on this device.
    dtype = str(resolve_dtype(options.dtype, state.device)).removeprefix("torch.")
    return Evaluation(
        dataclasses.replace(options, dtype=dtype), data_arguments, command, name,
        title=f"{name}{' (zero-shot)' if options.zero_shot else ''} on {data.description}",
        model=model, processor=processor, data=data, rows=rows,
        environment=describe_environment(describe_device(state.device)),
    )  # fmt: skip


def run_evaluation(evaluation: Evaluation, extensions: Sequence[EvaluationExtension] = ()) -> None:
    """Classify the split and fill in ``evaluation.result``; every process of a launch calls it.

    Args:
        evaluation: From :func:`prepare_evaluation`.
        extensions: What else to measure, in this order.

    Raises:
        InputError: An extension cannot work on this model or split.
    """
    for extension in extensions:
        extension.check(evaluation)
    evaluation.result = evaluate_split(
        evaluation.model,
        evaluation.processor,
        evaluation.rows,
        evaluation.options.split,
        evaluation.pass_options,
    )
    for extension in extensions:
        extension.measure(evaluation)


def describe_choice(training: dict[str, Any], ensemble: dict[str, Any] | None) -> list[str]:
    """Return which weights the final figures are of, and the figure that chose them."""
    notes = []
    if training.get("best_step") and "best_metric" in training:
        precision = {"bf16": "bfloat16", "fp16": "float16"}.get(training["precision"], "float32")
        notes.append(
            f"The best checkpoint is step {training['best_step']} of {training['steps']}, with "
            f"{training['best_metric']} {training['best_value']:.4f} during training, in "
            f"{precision}. The table was measured on the saved model."
        )
    if ensemble is not None:
        notes.append(
            f"WiSE-FT: alpha {ensemble['alpha']:g} between the start (0) and the fine-tuned model "
            f"(1), with validation accuracy {ensemble['validation_accuracy']:.2%}."
        )
    return notes


def read_choice(directory: Path) -> list[str]:
    """Return :func:`describe_choice` of a finished run, or nothing for another directory."""
    try:
        metrics = read_json(directory / METRICS_FILE)
        return describe_choice(metrics["training"], metrics.get("wise_ft"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # A model without its run, or a file that another program wrote.
        return []


def _keep_own_predictions(directory: Path, split: str) -> None:
    own = directory / f"predictions_{split}.parquet"
    replaces = own.is_file() and not (directory / f"metrics_{split}.json").is_file()
    if replaces and is_finished(directory):
        raise InputError(
            f"{own} is what the run itself predicted, and would be replaced. Choose another "
            "--output_dir."
        )


def write_evaluation(evaluation: Evaluation, directory: Path) -> None:
    """Write ``metrics_SPLIT.json`` and ``predictions_SPLIT.parquet``."""
    options, data, result = evaluation.options, evaluation.data, evaluation.result
    assert result is not None
    write_predictions(
        directory / f"predictions_{options.split}.parquet",
        result,
        evaluation.model.class_names,
        data.description,
    )
    values: dict[str, Any] = {
        "title": evaluation.title, "model": evaluation.name, "zero_shot": options.zero_shot,
        "split": options.split, "source": data.source, "split_protocol": data.split_protocol,
        "dtype": options.dtype, "n": len(result.labels), **result.metrics,
        "intervals": evaluation.intervals, "per_class": result.per_class,
        **evaluation.figures, "environment": evaluation.environment,
    }  # fmt: skip
    write_json(directory / f"metrics_{options.split}.json", values)


def list_metrics(result: SplitResult) -> dict[str, float]:
    """Return the number of images and the metrics to show.

    Top-5 accuracy is left out if there are fewer than six classes, where it is always 1.
    """
    metrics = {"n": len(result.labels), **result.metrics}
    if result.logits.shape[1] <= TOP_K:
        metrics.pop("top5_accuracy", None)
    return metrics


def format_metrics(
    splits: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """Return a table with one column per split: n, shares in percent, then the losses.

    ``intervals``, of a single split, are a column more.
    """
    lines = [["", *splits], ["n", *(str(int(values["n"])) for values in splits.values())]]
    for key, name in HEADLINE.items():
        if all(key in values for values in splits.values()):
            lines.append([name, *(f"{100 * values[key]:.2f}%" for values in splits.values())])
    lines.append(["loss", *(f"{values['loss']:.4f}" for values in splits.values())])
    if intervals is not None:
        ends = {
            name: f"{100 * intervals[key][0]:.1f} to {100 * intervals[key][1]:.1f}%"
            for key, name in HEADLINE.items()
            if key in intervals
        }
        lines = [[*line, ends.get(line[0], "")] for line in lines]
        lines[0][-1] = "95% interval"
    return align_columns(lines)


def write_predictions(
    path: Path, result: SplitResult, class_names: Sequence[str], description: str
) -> None:
    """Write image id, true label and the five most probable classes with their probabilities.

    ``description`` names the data and the split protocol in the file's metadata.

    Columns: ``image_id``, ``label``, ``label_name``, ``correct``, then lists of up to five:
    ``top_labels``, ``top_names``, ``top_probabilities``, most probable first.
    """
    top = rank_classes(result.logits, TOP_K)
    table = pyarrow.table(
        {
            "image_id": result.ids,
            "label": result.labels,
            "label_name": [class_names[label] for label in result.labels],
            "correct": top[:, 0] == result.labels,
            "top_labels": top.tolist(),
            "top_names": [[class_names[label] for label in row] for row in top],
            "top_probabilities": np.take_along_axis(result.probabilities, top, 1).tolist(),
        }
    )
    table = table.replace_schema_metadata({"data": description, "split": result.split})
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)
