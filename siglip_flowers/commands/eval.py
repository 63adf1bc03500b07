"""Evaluate a saved classifier: ``eval.py`` and ``siglip-flowers-eval``."""

import dataclasses
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState

from siglip_flowers.commands.entry import run_command
from siglip_flowers.config import DataArguments, check_choice, check_positive
from siglip_flowers.data import check_data_arguments, load_flowers
from siglip_flowers.errors import InputError
from siglip_flowers.evaluation.predict import evaluate_split
from siglip_flowers.evaluation.predictions import write_predictions
from siglip_flowers.evaluation.tables import format_metrics
from siglip_flowers.model.heads import load_zero_shot_classifier
from siglip_flowers.model.loading import load_image_processor, load_saved_classifier
from siglip_flowers.model.text_head import check_text_tower
from siglip_flowers.parsing import parse_arguments, read_yaml
from siglip_flowers.prompts import load_templates
from siglip_flowers.records import describe_environment, write_json
from siglip_flowers.training.output import CONFIG_FILE, MODEL_DIR
from siglip_flowers.training.report import describe_device

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
# Together they name the source of the data.
SOURCE_OPTIONS = ("data_source", "data_dir", "dataset_name", "dataset_config_name")


@dataclass
class EvaluationArguments:
    """What to evaluate, and on which split."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "A model directory (results/my-run/model, or the run's directory) or a Hub "
            "id; left out, the newest model under results/."
        },
    )
    split: str = field(default="test", metadata={"help": "train, validation or test."})
    zero_shot: bool = field(
        default=False,
        metadata={"help": "Evaluate --model_name_or_path by its text tower, without training."},
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The two-tower SigLIP checkpoint of --zero_shot."}
    )
    prompt_templates: str | None = field(
        default=None,
        metadata={"help": "--zero_shot: a file with one prompt a line, {} for the class name."},
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Write metrics_SPLIT.json and predictions_SPLIT.parquet here."},
    )
    per_device_eval_batch_size: int = field(
        default=128, metadata={"help": "Pictures per device and step."}
    )
    dataloader_num_workers: int = field(default=0, metadata={"help": "Decoding processes."})

    def __post_init__(self) -> None:
        check_choice("split", self.split, SPLITS)
        check_positive("per_device_eval_batch_size", self.per_device_eval_batch_size)
        if self.zero_shot != (self.model_name_or_path is not None):
            raise InputError(
                "--zero_shot and --model_name_or_path go together; a trained model is named with "
                "--model."
            )
        if self.zero_shot and self.model is not None:
            raise InputError(
                f"--model {self.model} is a trained model and --zero_shot evaluates a checkpoint; "
                "give one of the two."
            )


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, evaluate, and print the metrics table."""
    return run_command("eval.py", lambda: _evaluate(sys.argv[1:] if argv is None else argv))


def _evaluate(argv: list[str]) -> None:
    options, data_arguments = _parse(argv)
    model_path = options.model_name_or_path or options.model
    assert model_path is not None
    # Without an accelerator the processes of a launch join only if they are told to use the CPU.
    PartialState(cpu=not torch.accelerator.is_available())
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
                **metrics,
                "per_class": result.per_class,
                "environment": describe_environment(describe_device(state.device)),
            },
        )


def _parse(argv: list[str]) -> tuple[EvaluationArguments, DataArguments]:
    """Read the options; the data options default to those that the model was trained with."""
    kinds = (EvaluationArguments, DataArguments)
    description = "Evaluate a classifier on a split and print its metrics."
    options, given = parse_arguments(kinds, argv, prog="eval.py", description=description)
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
        kinds, argv, prog="eval.py", description=description, defaults=defaults
    )
    return options, data_arguments


def find_model(model: str | None, results: Path = Path("results")) -> str:
    """Return the model directory or Hub id to use.

    Raises:
        InputError: No model was named and none lies under ``results``.
    """
    if model is not None:
        inner = Path(model) / MODEL_DIR
        return str(inner) if (inner / "config.json").is_file() else model
    found = [
        path.parent
        for path in (
            results / MODEL_DIR / "config.json",
            *results.glob(f"*/{MODEL_DIR}/config.json"),
        )
        if path.is_file()
    ]
    if not found:
        raise InputError(
            f"There is no model under {results}/; train one with 'accelerate launch train.py', or "
            "name one with --model."
        )
    newest = max(found, key=lambda path: (path / "config.json").stat().st_mtime)
    if len(found) > 1:
        logger.warning("%d models under %s/; taking the newest, %s.", len(found), results, newest)
    return str(newest)


def _follow_model_classes(
    rows: datasets.Dataset, model_names: list[str], model_path: str
) -> datasets.Dataset:
    """Give the rows the model's class numbers, by name; the data may lack some of its classes."""
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
