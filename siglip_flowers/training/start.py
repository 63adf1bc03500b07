"""A run whose model classifies before its first step: measure it there, and return to it."""

import json
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from safetensors.torch import load_file

from siglip_flowers.base.files import atomic_directory, write_json
from siglip_flowers.base.run_dir import CHECKPOINT_DIR
from siglip_flowers.evaluation.predict import PassOptions, evaluate_split
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.ensemble import interpolate_weights

START_DIR = "start"
START_METRICS = "metrics.json"


def measure_start(
    model: SiglipClassifier,
    processor: Any,
    validation: datasets.Dataset,
    output_dir: Path,
    options: PassOptions,
) -> dict[str, float]:
    """Keep the untrained classifier under the checkpoints and return its validation metrics.

    A resumed run finds both there.
    """
    directory = output_dir / CHECKPOINT_DIR / START_DIR
    path = directory / START_METRICS
    if not path.is_file():
        result = evaluate_split(model, processor, validation, "the start", options)
        if PartialState().is_main_process:
            with atomic_directory(directory) as temporary:
                model.save_pretrained(temporary)
                write_json(temporary / START_METRICS, result.metrics)
    PartialState().wait_for_everyone()
    metrics: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return metrics


def ensemble_with_start(
    model: SiglipClassifier,
    processor: Any,
    validation: datasets.Dataset,
    output_dir: Path,
    alphas: list[float],
    options: PassOptions,
) -> dict[str, Any]:
    """Interpolate the model's weights with the start's, in place, at the best of the alphas.

    Best is the highest accuracy on the validation split; among equals, the alpha nearest to the
    fine-tuned model. Returns that ``alpha``, its ``validation_accuracy``, and under ``sweep`` both
    for each alpha.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT).
    """
    start = load_file(output_dir / CHECKPOINT_DIR / START_DIR / "model.safetensors")
    tuned = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    rows = []
    for alpha in alphas:
        model.load_state_dict(interpolate_weights(start, tuned, alpha))
        result = evaluate_split(model, processor, validation, f"alpha {alpha:g}", options)
        rows.append({"alpha": alpha, "validation_accuracy": result.metrics["accuracy"]})
    best = max(rows, key=lambda row: (row["validation_accuracy"], row["alpha"]))
    model.load_state_dict(interpolate_weights(start, tuned, best["alpha"]))
    return {**best, "sweep": rows}
