"""Evaluate a saved classifier: ``eval.py`` and ``siglip-flowers-eval``."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siglip_flowers.commands.entry import run_command
from siglip_flowers.commands.models import find_model
from siglip_flowers.config import DataArguments, EvaluationArguments
from siglip_flowers.errors import InputError
from siglip_flowers.parsing import check_command_line, parse_arguments, read_yaml
from siglip_flowers.prompts import load_templates
from siglip_flowers.records import describe_environment, write_json
from siglip_flowers.training.output import CONFIG_FILE

if TYPE_CHECKING:
    import datasets

PROG = "eval.py"
DESCRIPTION = "Evaluate a classifier on a split and print its metrics."
KINDS = (EvaluationArguments, DataArguments)
# Together they name the source of the data.
SOURCE_OPTIONS = ("data_source", "data_dir", "dataset_name", "dataset_config_name")


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, evaluate, and print the metrics table."""
    given = sys.argv[1:] if argv is None else argv
    return run_command(PROG, lambda: _evaluate(given), check=lambda: _check(given))


def _check(argv: list[str]) -> None:
    check_command_line(KINDS, argv, prog=PROG, description=DESCRIPTION)


def _evaluate(argv: list[str]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    import torch
    from accelerate import PartialState

    from siglip_flowers.data import check_data_arguments, load_flowers
    from siglip_flowers.evaluation.predict import evaluate_split
    from siglip_flowers.evaluation.predictions import write_predictions
    from siglip_flowers.evaluation.tables import format_metrics
    from siglip_flowers.model.heads import load_zero_shot_classifier
    from siglip_flowers.model.loading import load_image_processor, load_saved_classifier
    from siglip_flowers.model.text_head import check_text_tower
    from siglip_flowers.training.compute import set_cpu_threads
    from siglip_flowers.training.report import describe_device

    options, data_arguments = _parse(argv)
    model_path = options.model_name_or_path or options.model
    assert model_path is not None
    # Without an accelerator the processes of a launch join only if they are told to use the CPU.
    PartialState(cpu=not torch.accelerator.is_available())
    set_cpu_threads(None)
    check_data_arguments(data_arguments)
    if options.zero_shot:
        check_text_tower(model_path)
        templates = load_templates(options.prompt_templates)
    else:
        model = load_saved_classifier(model_path)
    processor = load_image_processor(model_path)
    with PartialState().main_process_first():
        data = load_flowers(data_arguments)
    rows = data.splits[options.split]
    if options.zero_shot:
        model = load_zero_shot_classifier(model_path, data.class_names, templates)
    else:
        rows = _follow_model_classes(rows, model.class_names, model_path)
    result = evaluate_split(
        model,
        processor,
        rows,
        options.split,
        batch_size=options.per_device_eval_batch_size,
        num_workers=options.dataloader_num_workers,
        dtype=options.dtype,
        compile=options.compile,
        data_arguments=data_arguments,
    )
    state = PartialState()
    if not state.is_main_process:
        return
    metrics = {"n": len(result.labels), **result.metrics}
    title = f"{model_path}{' (zero-shot)' if options.zero_shot else ''} on {data.description}"
    print(title)
    print(format_metrics({options.split: metrics}))
    if options.output_dir is not None:
        output_dir = Path(options.output_dir)
        write_predictions(
            output_dir / f"predictions_{options.split}.parquet",
            result,
            model.class_names,
            data.description,
        )
        write_json(
            output_dir / f"metrics_{options.split}.json",
            {
                "title": title,
                "model": model_path,
                "zero_shot": options.zero_shot,
                "split": options.split,
                "source": data.source,
                "split_protocol": data.split_protocol,
                "dtype": options.dtype,
                **metrics,
                "per_class": result.per_class,
                "environment": describe_environment(describe_device(state.device)),
            },
        )


def _parse(argv: list[str]) -> tuple[EvaluationArguments, DataArguments]:
    """Read the options; the data options default to those that the model was trained with."""
    options, given = parse_arguments(KINDS, argv, prog=PROG, description=DESCRIPTION)
    if options.zero_shot:
        return options, given
    options.model = find_model(options.model)
    defaults: dict[str, Any] = {}
    run_config = Path(options.model).parent / CONFIG_FILE
    if run_config.is_file():
        known = {item.name for item in dataclasses.fields(DataArguments)}
        if any(getattr(given, name) is not None for name in SOURCE_OPTIONS[:3]):
            # Another source was named: the run's own must not contradict it.
            known -= set(SOURCE_OPTIONS)
        defaults = {k: v for k, v in read_yaml(run_config).items() if k in known}
    _, data_arguments = parse_arguments(
        KINDS, argv, prog=PROG, description=DESCRIPTION, defaults=defaults
    )
    return options, data_arguments


def _follow_model_classes(
    rows: "datasets.Dataset", model_names: list[str], model_path: str
) -> "datasets.Dataset":
    """Give the rows the model's class numbers, by name; the data may lack some of its classes."""
    # See _evaluate.
    import datasets

    names: list[str] = rows.features["label"].names
    if names == model_names:
        return rows
    number_of = {name: number for number, name in enumerate(model_names)}
    unknown = [name for name in names if name not in number_of]
    if unknown:
        raise InputError(
            f"The model {model_path} does not know {len(unknown)} of the data's {len(names)} "
            f"classes ({unknown[0]!r} for one); evaluate it on data with the classes it was "
            "trained on."
        )
    labels = [number_of[names[label]] for label in rows["label"]]
    return (
        rows.remove_columns("label")
        .add_column("label", labels)
        .cast_column("label", datasets.ClassLabel(names=model_names))
    )
