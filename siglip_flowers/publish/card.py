"""The model card (``README.md``) of a finished run, from what the run recorded and nothing else."""

import dataclasses
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from siglip_flowers.base.files import digest_weight_files
from siglip_flowers.base.text import count
from siglip_flowers.config import (
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    TrainingOptions,
)
from siglip_flowers.evaluation.run import HEADLINE, TOP_K
from siglip_flowers.metrics.bootstrap import bootstrap_headline
from siglip_flowers.model.towers import is_naflex
from siglip_flowers.publish.check import LOAD_IMAGE, NOT_LOADED
from siglip_flowers.publish.finished import FinishedRun
from siglip_flowers.publish.options import PublishArguments

TASK = "image-classification"
# The name of the data set in the Hub's index.
OXFORD_ID = "oxford_flowers102"
TEST_METRICS = {**HEADLINE, "loss": "loss", "nll": "negative log-likelihood"}
# Shown whether or not they have their defaults.
ESSENTIAL_SETTINGS = (
    *("objective", "pooling", "head_init", "trainable", "num_train_epochs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("head_learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim"),
    *("bf16", "seed", "split_seed"),
)
# Of data and training, shown if changed, as are all settings of model and augmentation.
OPTIONAL_SETTINGS = (
    *("shots", "shots_seed", "max_train_samples", "validation_fraction", "max_steps"),
    *("lr_scheduler_kwargs", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "label_smoothing_factor", "fp16", "tf32", "data_seed"),
    *("metric_for_best_model", "load_best_model_at_end", "early_stopping_patience"),
    *("layer_decay", "class_balance", "class_balance_strength", "patch_drop", "patch_drop_until"),
    *("train_text_tower", "ema", "wise_ft", "save_dtype"),
)
# Stated elsewhere, a path of the machine, or of no influence.
HIDDEN_SETTINGS = ("model_name_or_path", "prompt_templates", "class_prompts", "attn_implementation")


# Plots of the training; sheets of examples show images of the data set and stay private.
PLOTS = {
    "loss_plot.png": "Loss over the training",
    "accuracy_plot.png": "Accuracy over the training",
}


def escape(value: Any) -> str:
    """Return a value as text that Markdown and HTML show as it is, in one line."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", text)


def build_card(
    run: FinishedRun,
    config: Any,
    options: PublishArguments,
    directory: Path,
    differences: Mapping[str, float],
) -> ModelCard:
    """Return the card of a run.

    Args:
        run: The run.
        config: The configuration of the published model.
        options: What is published, and where.
        directory: The weights beside the card.
        differences: Of the pipeline; see :func:`~siglip_flowers.publish.check.check_published`.
    """
    splits, data, predictions = run.metrics["splits"], run.metrics["data"], run.predictions
    classes = splits["test"]["per_class"]
    shown = list_shown_metrics(len(classes))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("siglip_flowers.publish", "."),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"text": escape, "count": count, "percent": "{:.2%}".format}
    text = environment.get_template("card.md.jinja").render(
        metadata=_build_metadata(run, config, options).to_yaml(),
        model_id=options.hub_model_id or options.model_name,
        name=options.model_name,
        native=not hasattr(config, "auto_map"),
        plots={name: title for name, title in PLOTS.items() if (run.directory / name).is_file()},
        weights=digest_weight_files(directory),
        differences=differences,
        options=options,
        load_image=LOAD_IMAGE,
        not_loaded=NOT_LOADED,
        classes=config.id2label,
        vision=config.vision_config,
        naflex=is_naflex(config.vision_config),
        base_model=run.base_model,
        dataset=run.dataset_title,
        headline={name: title for name, title in HEADLINE.items() if name in shown},
        intervals=bootstrap_headline(
            *(predictions["label"], predictions["predicted"], len(classes)),
            hits=predictions["hit"].to_numpy(),
        ),
        hardest=sorted(
            (row for row in classes if row["support"]), key=lambda row: (row["f1"], row["label"])
        )[:5],
        shared_with_test=sum("test" in (pair[0], pair[2]) for pair in data["shared_images"]),
        skipped=sum(data["skipped_images"].values()),
        settings=choose_settings(run.settings),
        **{name: splits[name] for name in ("test", "validation")},
        **{name: run.metrics[name] for name in ("model", "data", "training", "environment")},
    )
    return ModelCard(text + "\n")


def list_shown_metrics(num_classes: int) -> dict[str, str]:
    """Return the titles of the test metrics; of few classes the top-5 accuracy is always 1."""
    few = num_classes <= TOP_K
    return {n: title for n, title in TEST_METRICS.items() if not (few and n == "top5_accuracy")}


def _build_metadata(run: FinishedRun, config: Any, options: PublishArguments) -> ModelCardData:
    source = run.metrics["data"]["source"]
    dataset = OXFORD_ID if source == "oxford" else run.dataset_id
    tags = [TASK, "siglip2" if is_naflex(config.vision_config) else "siglip", "vision"]
    # A model from random weights does not descend from the one whose architecture it has.
    parent = None if run.metrics["model"]["from_scratch"] else run.base_model
    # An entry that the class does not name.
    relation: dict[str, Any] = {} if parent is None else {"base_model_relation": "finetune"}
    return ModelCardData(
        license=options.license,
        language=options.language,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=[*tags, "custom_code"] if hasattr(config, "auto_map") else tags,
        base_model=parent,
        **relation,
        datasets=None if dataset is None else [dataset],
        metrics=["accuracy", "precision", "recall", "f1"],
        model_name=options.model_name,
        eval_results=[
            _describe_result(run, dataset or ("imagefolder" if source == "folder" else source), key)
            for key in list_shown_metrics(len(run.metrics["splits"]["test"]["per_class"]))
        ],
    )


def _describe_result(run: FinishedRun, dataset_type: str, key: str) -> EvalResult:
    """Return a test metric by the Hub's id of it, with the arguments that tell ours apart."""
    metric_type, _, average = key.partition("_")
    arguments: dict[str, Any] | None = {"average": average} if average else None
    if key == "top5_accuracy":
        metric_type, arguments = "accuracy", {"top_k": 5}
    return EvalResult(
        task_type=TASK,
        task_name="Image Classification",
        dataset_type=dataset_type,
        dataset_name=run.dataset_title,
        dataset_split="test",
        dataset_args={"split_protocol": run.metrics["data"]["split_protocol"]},
        metric_type=metric_type,
        metric_name=f"test {TEST_METRICS[key]}",
        metric_value=run.metrics["splits"]["test"][key],
        metric_args=arguments,
    )


def choose_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return those settings of a run that decide its result, as text."""
    names = list(ESSENTIAL_SETTINGS)
    for kind in (AugmentationArguments, ModelArguments, DataArguments, TrainingOptions):
        names += [
            field.name
            for field in dataclasses.fields(kind)
            if (kind in (AugmentationArguments, ModelArguments) or field.name in OPTIONAL_SETTINGS)
            and field.name not in (*ESSENTIAL_SETTINGS, *HIDDEN_SETTINGS)
            and settings.get(field.name, field.default) != field.default
        ]
    return {name: _format_setting(settings[name]) for name in names if name in settings}


def _format_setting(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
