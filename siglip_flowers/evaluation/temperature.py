"""Fit the temperature of a model on its validation images and keep it beside the weights."""

from pathlib import Path

from siglip_flowers.evaluation.predict import SplitResult
from siglip_flowers.inference.temperature import save_temperature
from siglip_flowers.metrics.calibration import fit_temperature


def fit_and_save_temperature(model_dir: Path, validation: SplitResult, activation: str) -> float:
    """Fit, write ``calibration.json`` into the model's directory, and return the temperature.

    Raises:
        RunError: Logits that are not finite.
    """
    temperature = fit_temperature(validation.logits, validation.labels, activation)
    save_temperature(model_dir, temperature, validation.split, len(validation.labels))
    return temperature
