"""Evaluate a saved classifier on a split: load it and the data, run it, write what was measured."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from siglip_flowers.base.environment import describe_environment
from siglip_flowers.base.files import write_json
from siglip_flowers.base.prompts import load_templates
from siglip_flowers.config import DataArguments, EvaluationArguments
from siglip_flowers.data import check_data_arguments, load_data
from siglip_flowers.data.names import follow_model_classes
from siglip_flowers.evaluation.extension import Evaluation, EvaluationExtension
from siglip_flowers.evaluation.predict import evaluate_split
from siglip_flowers.evaluation.tables import write_predictions
from siglip_flowers.model.heads import load_zero_shot_classifier
from siglip_flowers.model.loading import load_image_processor, load_saved_classifier
from siglip_flowers.model.text_head import check_text_tower
from siglip_flowers.runtime.devices import describe_device, resolve_dtype


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
    if options.zero_shot:
        check_text_tower(name)
        templates = load_templates(options.prompt_templates)
    else:
        model = load_saved_classifier(name)
    processor = load_image_processor(name)
    with state.main_process_first():
        data = load_data(data_arguments)
    rows = data.splits[options.split]
    if options.zero_shot:
        model = load_zero_shot_classifier(name, data.class_names, templates)
    else:
        rows = follow_model_classes(rows, model.class_names, name)
    # The dtype that "auto" stands for on this device.
    dtype = str(resolve_dtype(options.dtype, state.device)).removeprefix("torch.")
    return Evaluation(
        options=dataclasses.replace(options, dtype=dtype),
        data_arguments=data_arguments,
        command=command,
        name=name,
        title=f"{name}{' (zero-shot)' if options.zero_shot else ''} on {data.description}",
        model=model,
        processor=processor,
        data=data,
        rows=rows,
        environment=describe_environment(describe_device(state.device)),
    )


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
        "title": evaluation.title,
        "model": evaluation.name,
        "zero_shot": options.zero_shot,
        "split": options.split,
        "source": data.source,
        "split_protocol": data.split_protocol,
        "dtype": options.dtype,
        "n": len(result.labels),
        **result.metrics,
        "per_class": result.per_class,
        **evaluation.figures,
        "environment": evaluation.environment,
    }
    write_json(directory / f"metrics_{options.split}.json", values)
