"""The model card (``README.md``) of a finished run, from what the run recorded and nothing else."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from siglip_flowers.base.text import count
from siglip_flowers.model.towers import is_naflex
from siglip_flowers.publish.check import LOAD_IMAGE
from siglip_flowers.publish.finished import FinishedRun
from siglip_flowers.publish.results import (
    choose_settings,
    format_results,
    format_setting,
    list_test_metrics,
    name_metric,
)

TASK = "image-classification"
# The name of the data set in the Hub's index.
OXFORD_ID = "oxford_flowers102"
PLOT_TITLES = {
    "loss_plot.png": "Loss over the training",
    "accuracy_plot.png": "Accuracy over the training",
}
# Metric ids of the Hub, with the arguments that tell ours apart.
METRIC_TYPES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "accuracy": ("accuracy", None),
    "top5_accuracy": ("accuracy", {"top_k": 5}),
    **{
        f"{name}_{average}": (name, {"average": average})
        for name in ("precision", "recall", "f1")
        for average in ("macro", "weighted")
    },
}


@dataclass(frozen=True)
class CardFacts:
    """What a card states besides the run.

    Attributes:
        model_id: ``ORG/NAME`` on the Hub, or the name of a directory.
        license: The Hub's name of the license; None: not stated.
        language: ISO 639 code of the class names' language; None: not stated.
        native: Whether the model is a plain class of transformers.
        plots: File names of the plots beside the card.
        weights: SHA-256 of every file of weights beside the card.
        pipeline_differences: See :class:`~siglip_flowers.publish.check.Checked`.
    """

    model_id: str
    license: str | None
    language: str | None
    native: bool
    plots: Sequence[str]
    weights: Mapping[str, str]
    pipeline_differences: Mapping[str, float]


def escape(text: str) -> str:
    """Return text that Markdown and HTML show as it is, in one line."""
    return re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def build_card(run: FinishedRun, config: Any, facts: CardFacts) -> ModelCard:
    """Return the card of a run; ``config`` is the configuration of the published model."""
    name = facts.model_id.split("/")[-1]
    sections = {
        "How to use": _explain_use(config, facts),
        "Results": _report_results(run, facts),
        "Plots": "\n\n".join(f"![{PLOT_TITLES[plot]}]({plot})" for plot in facts.plots),
        "Training": _report_training(run),
        "Data": _report_data(run, facts),
        "Intended use and limits": _state_limits(run, config),
        "License": f"License of the model: {facts.license or 'not stated'}.",
        "Environment": _report_environment(run),
    }
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections.items())
    metadata = _build_metadata(run, config, facts).to_yaml()
    return ModelCard(
        f"---\n{metadata}\n---\n\n# {escape(name)}\n\n{_introduce(run, config)}\n\n{text}\n"
    )


def _build_metadata(run: FinishedRun, config: Any, facts: CardFacts) -> ModelCardData:
    source = run.metrics["data"]["source"]
    dataset = OXFORD_ID if source == "oxford" else run.dataset_id
    dataset_type = dataset or {"folder": "imagefolder"}.get(source, source)
    tags = [TASK, "siglip2" if is_naflex(config.vision_config) else "siglip", "vision"]
    # A model from random weights does not descend from the one whose architecture it has.
    parent = None if run.metrics["model"]["from_scratch"] else run.base_model
    # An entry that the class does not name.
    relation: dict[str, Any] = {} if parent is None else {"base_model_relation": "finetune"}
    return ModelCardData(
        license=facts.license,
        language=facts.language,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=tags if facts.native else [*tags, "custom_code"],
        base_model=parent,
        **relation,
        datasets=None if dataset is None else [dataset],
        metrics=["accuracy", "precision", "recall", "f1"],
        model_name=facts.model_id.split("/")[-1],
        eval_results=[
            EvalResult(
                task_type=TASK,
                task_name="Image Classification",
                dataset_type=dataset_type,
                dataset_name=run.dataset_title,
                dataset_split="test",
                dataset_args={"split_protocol": run.metrics["data"]["split_protocol"]},
                metric_type=METRIC_TYPES.get(key, (key, None))[0],
                metric_name=f"test {name_metric(key)}",
                metric_value=value,
                metric_args=METRIC_TYPES.get(key, (key, None))[1],
            )
            for key, value in list_test_metrics(run).items()
        ],
    )


def _introduce(run: FinishedRun, config: Any) -> str:
    model, vision = run.metrics["model"], config.vision_config
    if is_naflex(vision):
        size = f"patches of {vision.patch_size} pixels at each image's own aspect ratio"
    else:
        size = f"images of {vision.image_size} pixels in patches of {vision.patch_size}"
    if model["from_scratch"]:
        origin = "trained from random weights"
    elif run.base_model is not None:
        origin = f"fine-tuned from [{run.base_model}](https://huggingface.co/{run.base_model})"
    else:
        origin = "fine-tuned from a local checkpoint"
    pooling = {
        "map": "the encoder's attention-pooling head",
        "mean": "the mean of the patch tokens",
    }[model["pooling"]]
    accuracy = run.metrics["splits"]["test"]["accuracy"]
    return (
        f"An image classifier for {count(len(config.id2label), 'class')}: a SigLIP vision encoder "
        f"({vision.num_hidden_layers} layers, width {vision.hidden_size}, {size}), {origin} on "
        f"{escape(run.metrics['data']['description'])}. It pools features by {pooling}, applies a "
        f"{model['activation']} to its outputs and has {model['parameters']:,} parameters. Its "
        f"accuracy on the test images is {accuracy:.2%}."
    )


def _explain_use(config: Any, facts: CardFacts) -> str:
    trust = "" if facts.native else ", trust_remote_code=True"
    lines = [
        "```python",
        "from transformers import pipeline",
        "",
        f"classifier = pipeline({json.dumps(TASK)}, model={json.dumps(facts.model_id)}{trust})",
        'print(classifier("image.jpg", top_k=5))',
        "```",
        "",
    ]
    if facts.native:
        lines.append("The model is a plain class of transformers; nothing else is required.")
    else:
        plain = f"Siglip{'2' if is_naflex(config.vision_config) else ''}ForImageClassification"
        lines.append(
            "`trust_remote_code=True` runs `modeling_siglip_classifier.py` of this repository, "
            "because transformers has no class that pools or normalizes as this model does. Read "
            "the file first. Do not load the model through "
            f"`{plain}.from_pretrained`, which pools in another way."
        )
    if facts.pipeline_differences:
        kinds = [
            f"| {kind} | {difference:.2f} |"
            for kind, difference in facts.pipeline_differences.items()
        ]
        lines += [
            "",
            "The pipeline opens some files differently from the training: it ignores transparency "
            "and clips 16-bit samples. Measured with this model:",
            "",
            "| files with | largest difference of a score |",
            "|---|---:|",
            *kinds,
            "",
            "Open such files with these lines and pass `image` to the classifier instead:",
            "",
            "```python",
            f"{LOAD_IMAGE}```",
        ]
    return "\n".join(lines)


def _report_results(run: FinishedRun, facts: CardFacts) -> str:
    splits = run.metrics["splits"]
    test = splits["test"]
    hardest = sorted(
        (row for row in test["per_class"] if row["support"]),
        key=lambda row: (row["f1"], row["label"]),
    )[:5]
    names = ", ".join(f"{escape(row['name'])} ({row['f1']:.2f})" for row in hardest)
    weights = ", ".join(f"`{name}`, SHA-256 `{digest}`" for name, digest in facts.weights.items())
    return "\n\n".join(
        (
            format_results(run),
            f"The loss on the test split is {test['loss']:.4f}; the negative log-likelihood under "
            f"the softmax is {test['nll']:.4f}.",
            "The intervals are those of a studentized bootstrap over the test images of each "
            f"class. They describe this run (seed {run.metrics['training']['seed']})"
            ", not other seeds. Weights and settings were chosen on the validation split, so its "
            "figures do not estimate the accuracy on new images.",
            f"Lowest F1 by class: {names}.",
            f"The figures were measured with the weights published here: {weights}.",
        )
    )


def _report_training(run: FinishedRun) -> str:
    facts = run.metrics["training"]
    done = count(facts["steps"], "step")
    if facts.get("epochs") is not None:
        done += f" ({facts['epochs']:g} epochs)"
    precision = "float32" if facts["precision"] == "no" else facts["precision"]
    best = ""
    if facts.get("best_step"):
        best = f" The weights are those after step {facts['best_step']}, the best on validation."
    rows = [
        f"| {escape(name)} | {escape(format_setting(value))} |"
        for name, value in choose_settings(run.settings).items()
    ]
    return "\n".join(
        (
            f"{done} in {facts['seconds']:.0f} seconds on "
            f"{count(facts['processes'], 'process')}, precision {precision}.{best}",
            "",
            "| setting | value |",
            "|---|---|",
            *rows,
        )
    )


def _report_data(run: FinishedRun, facts: CardFacts) -> str:
    data = run.metrics["data"]
    lines = [
        f"{escape(data['description'])}; source {data['source']}, split protocol "
        f"{escape(str(data['split_protocol']))}.",
        f"Language of the class names: {facts.language or 'not stated'}.",
    ]
    if data.get("shots") is not None:
        lines.append(f"The training used {count(data['shots'], 'image')} per class.")
    shared = data.get("shared_images") or []
    if shared:
        touching = sum("test" in (pair[0], pair[2]) for pair in shared)
        lines.append(
            f"Duplicates across splits: {count(len(shared), 'pair')}, {touching} of them with the "
            "test split."
        )
    skipped = sum((data.get("skipped_images") or {}).values())
    if skipped:
        lines.append(f"Unreadable and left out: {count(skipped, 'image')}.")
    return " ".join(lines)


def _state_limits(run: FinishedRun, config: Any) -> str:
    shares = {
        "softmax": "The scores of an image add up to 1",
        "sigmoid": "Each class has a score of its own; the scores of an image need not add up to 1",
    }[run.metrics["model"]["activation"]]
    classes = count(len(config.id2label), "class")
    return "\n".join(
        (
            f"- The model tells {classes} of {escape(run.dataset_title)} apart, in images like "
            "those it was trained on.",
            "- It knows no other class: an image of something else gets one of these names too.",
            f"- {shares}. They are not calibrated for images of another origin.",
            "- The figures hold for the test split named above; other sources were not measured.",
        )
    )


def _report_environment(run: FinishedRun) -> str:
    facts = run.metrics["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    commit = f" at commit {facts['commit']}" if facts.get("commit") else ""
    return (
        f"Trained with siglip_flowers{commit} on {facts['device']}, Python {facts['python']}, "
        f"{packages}."
    )
