"""The temperature that lies beside a model's weights and makes its probabilities believable."""

import json
import math
import os
from pathlib import Path

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import write_json
from siglip_flowers.inference.companions import find_sidecar_file

CALIBRATION_FILE = "calibration.json"


def save_temperature(directory: Path, temperature: float, split: str, n: int) -> None:
    """Write the file into a model's directory: fitted on ``n`` images of ``split``."""
    write_json(directory / CALIBRATION_FILE, {"temperature": temperature, "split": split, "n": n})


def load_temperature(model: str | os.PathLike[str]) -> float | None:
    """Return what a model's logits are to be divided by, from a directory or the Hub, or None.

    Raises:
        InputError: The file is damaged.
    """
    path = find_sidecar_file(model, CALIBRATION_FILE)
    if path is None:
        return None
    try:
        temperature = float(json.loads(path.read_text(encoding="utf-8"))["temperature"])
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"it is {temperature}")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"The temperature in {path} cannot be read ({error}); delete the file, or train the "
            "model again."
        ) from error
    return temperature


def require_temperature(model: str | os.PathLike[str]) -> float:
    """Return the temperature of a model.

    Raises:
        InputError: There is none, or the file is damaged.
    """
    temperature = load_temperature(model)
    if temperature is None:
        raise InputError(
            f"The model {os.fspath(model)} has no {CALIBRATION_FILE}, which holds the temperature "
            "for calibrated scores; leave --calibrated out, or train the model again."
        )
    return temperature
