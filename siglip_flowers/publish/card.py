"""The model card (``README.md``) of a finished run, from what the run recorded and nothing else."""

import html
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from siglip_flowers.model.towers import is_naflex
from siglip_flowers.publish.figures import (
    TASK,
    build_eval_results,
    format_losses,
    format_results,
)
from siglip_flowers.publish.finished import FinishedRun
from siglip_flowers.publish.settings import choose_settings

# The data set's own name, and what the Hub's index calls its kind.
OXFORD = ("oxford_flowers102", "Oxford Flowers102")
PLOT_TITLES = {
    "loss_plot.png": "Loss over the training",
    "accuracy_plot.png": "Accuracy over the training",
}
MARKDOWN_SIGNS = re.compile(r"([\\`*_{}\[\]|#~$])")


def escape(text: str) -> str:
    """Return text that Markdown and HTML show as it is, in one line."""
    return MARKDOWN_SIGNS.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def build_card(
    run: FinishedRun,
    config: Any,
    *,
    model_id: str,
    license: str,
    language: str,
    native: bool,
    plots: Iterable[str],
    weights: Mapping[str, str],
) -> ModelCard:
    """Return the card of a run.

    Args:
        run: The run.
        config: The configuration of the published model.
        model_id: ``ORG/NAME`` on the Hub, or the name of a directory.
        license: The Hub's name of the license.
        language: ISO 639 code of the class names' language.
        native: Whether the model is a plain class of transformers.
        plots: File names of the images beside the card.
        weights: SHA-256 of every file of weights beside the card.
    """
    dataset_type, dataset_name = _name_dataset(run)
    dataset = run.dataset_id or (OXFORD[0] if run.metrics["data"]["source"] == "oxford" else None)
    tags = [TASK, "siglip2" if is_naflex(config.vision_config) else "siglip", "vision"]
    # A model from random weights is no child of the one whose architecture it has.
    parent = None if run.metrics["model"]["from_scratch"] else run.base_model
    # An entry that the class does not name.
    relation: dict[str, Any] = {} if parent is None else {"base_model_relation": "finetune"}
    data = ModelCardData(
        license=license,
        language=language,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=tags if native else [*tags, "custom_code"],
        base_model=parent,
        **relation,
        datasets=None if dataset is None else [dataset],
        metrics=["accuracy", "precision", "recall", "f1"],
        model_name=model_id.split("/")[-1],
        eval_results=build_eval_results(run, dataset_type, dataset_name),
    )
    sections = (
        f"# {escape(model_id.split('/')[-1])}",
        _introduce(run, config),
        "## How to use",
        _explain_use(model_id, config, native),
        "## Results",
        _report_results(run, weights),
        "## Plots",
        "\n\n".join(f"![{PLOT_TITLES.get(name, Path(name).stem)}]({name})" for name in plots),
        "## Training",
        _report_training(run),
        "## Data",
        _report_data(run),
        "## Intended use and limits",
        _state_limits(run, config),
        "## Environment",
        _report_environment(run),
    )
    text = "\n\n".join(sections)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def _name_dataset(run: FinishedRun) -> tuple[str, str]:
    """Return type and name of the data set for the Hub's index."""
    facts = run.metrics["data"]
    if facts["source"] == "oxford":
        return OXFORD
    if run.dataset_id is not None:
        return run.dataset_id, run.dataset_id
    kind = {"folder": "imagefolder"}.get(facts["source"], facts["source"])
    return kind, facts["description"].split(", splits ")[0]


def _describe_architecture(config: Any) -> str:
    vision = config.vision_config
    if is_naflex(vision):
        size = f"patches of {vision.patch_size} pixels at each image's own aspect ratio"
    else:
        size = f"images of {vision.image_size} pixels in patches of {vision.patch_size}"
    return (
        f"a SigLIP vision encoder of {vision.num_hidden_layers} layers and width "
        f"{vision.hidden_size}, which sees {size}"
    )


def _introduce(run: FinishedRun, config: Any) -> str:
    model, data = run.metrics["model"], run.metrics["data"]
    architecture = _describe_architecture(config)
    if model["from_scratch"]:
        origin = "trained from random weights"
    elif run.base_model is not None:
        origin = f"fine-tuned from [{run.base_model}](https://huggingface.co/{run.base_model})"
    else:
        origin = "fine-tuned from a local checkpoint"
    accuracy = run.metrics["splits"]["test"]["accuracy"]
    pooling = {
        "map": "the encoder's attention-pooling head",
        "mean": "the mean of the patch tokens",
    }[model["pooling"]]
    return (
        f"An image classifier of {len(config.id2label)} classes: {architecture}, {origin} on "
        f"{escape(data['description'])}. Its features are {pooling}, its outputs a "
        f"{model['activation']}, and it has {model['parameters']:,} parameters. It is right on "
        f"{accuracy:.2%} of the test images."
    )


def _explain_use(model_id: str, config: Any, native: bool) -> str:
    family = "Siglip2" if is_naflex(config.vision_config) else "Siglip"
    plain = f"{family}ForImageClassification"
    trust = "" if native else ", trust_remote_code=True"
    lines = [
        "```python",
        "from transformers import pipeline",
        "",
        f"classifier = pipeline({json.dumps(TASK)}, model={json.dumps(model_id)}{trust})",
        'print(classifier("flower.jpg", top_k=5))',
        "```",
        "",
    ]
    if native:
        lines.append("It is a plain class of transformers, and nothing else needs installing.")
    else:
        lines.append(
            "`trust_remote_code=True` runs `modeling_siglip_classifier.py` of this repository, "
            "since transformers has no class that pools or normalizes as this model does; read it "
            "first. Without it the call is refused. Do not load it through "
            f"`{plain}.from_pretrained`: that class averages patches under a plain head, and is "
            "another model."
        )
    return "\n".join(lines)


def _report_results(run: FinishedRun, weights: Mapping[str, str]) -> str:
    splits, training = run.metrics["splits"], run.metrics["training"]
    hardest = sorted(
        (row for row in splits["test"]["per_class"] if row["support"]),
        key=lambda row: (row["f1"], row["label"]),
    )[:5]
    names = ", ".join(f"{escape(row['name'])} ({row['f1']:.2f})" for row in hardest)
    return "\n\n".join(
        (
            format_results(run),
            format_losses(splits),
            "Intervals of the two accuracies are Wilson's, the others those of a bootstrap over "
            f"the test images of each class. They are of this one run (seed {training['seed']}) "
            "and say nothing about other seeds. Choices among weights and settings are made on the "
            "validation split, so that its figures are no estimate for new images.",
            f"Lowest F1 by class: {names}.",
            "All of this was measured with the weights published here: "
            + ", ".join(f"`{name}`, SHA-256 `{digest}`" for name, digest in weights.items())
            + ".",
        )
    )


def _report_training(run: FinishedRun) -> str:
    facts = run.metrics["training"]
    done = f"{facts['steps']} steps"
    if facts.get("epochs") is not None:
        done = f"{facts['epochs']:g} epochs, {done}"
    precision = "float32" if facts["precision"] == "no" else facts["precision"]
    best = ""
    if facts.get("best_step"):
        best = f"; best on validation after step {facts['best_step']}"
    rows = [
        f"| {escape(name)} | {escape(_format_setting(value))} |"
        for name, value in choose_settings(run.settings).items()
    ]
    return "\n".join(
        (
            f"{done[0].upper()}{done[1:]} in {facts['seconds']:.0f} seconds on "
            f"{facts['processes']} process(es), precision {precision}{best}. The settings that "
            "matter most, and every other one that is not at its default:",
            "",
            "| setting | value |",
            "|---|---|",
            *rows,
        )
    )


def _format_setting(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _report_data(run: FinishedRun) -> str:
    facts, splits = run.metrics["data"], run.metrics["splits"]
    lines = [
        f"{escape(facts['description'])}; source {facts['source']}, split protocol "
        f"{escape(str(facts['split_protocol']))}, measured on {splits['test']['n']} test images."
    ]
    if facts.get("shots") is not None:
        lines.append(f"It was trained on {facts['shots']} images a class only.")
    shared = facts.get("shared_images") or []
    if shared:
        touching = sum("test" in (pair[0], pair[2]) for pair in shared)
        lines.append(
            f"{len(shared)} pairs of images stand in two splits, {touching} of them with one in "
            "the test split."
        )
    skipped = sum((facts.get("skipped_images") or {}).values())
    if skipped:
        lines.append(f"{skipped} unreadable images were left out.")
    return " ".join(lines)


def _state_limits(run: FinishedRun, config: Any) -> str:
    classes = len(config.id2label)
    shares = {
        "softmax": "The scores of an image add up to 1",
        "sigmoid": "Each class has a score of its own, and those of an image need not add up to 1",
    }[run.metrics["model"]["activation"]]
    return "\n".join(
        (
            f"- Meant for telling these {classes} classes apart in photographs like those it was "
            "trained on, for study and as a start for other work.",
            "- It knows no other class: an image that shows none of them is given one all the "
            "same.",
            f"- {shares}. They were not calibrated on images of other origin and are no measure "
            "of certainty there.",
            "- Its figures hold for the test split named above. Other cameras, places and seasons "
            "were not measured.",
            "- Not for deciding what may be eaten, touched or used as medicine, nor for any other "
            "decision about health or safety.",
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
