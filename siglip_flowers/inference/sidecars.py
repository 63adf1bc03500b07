"""Files beside a model's weights: the out-of-distribution (OOD) threshold and others."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers.utils import cached_file

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import write_json, write_text
from siglip_flowers.metrics.ood import LOGIT_SCORES, score_class_means, score_logits

OOD_FILE = "open_set.json"
CALIBRATION_FILE = "calibration.json"
# A test image of each of the first classes, by the number of the class, if its owner allowed it.
EXAMPLE_FILES = tuple(f"examples/{label}.jpg" for label in range(4))
CLASS_MEAN = "class_mean"
SCORES = (CLASS_MEAN, *LOGIT_SCORES)


def find_sidecar_file(model: str | os.PathLike[str], name: str) -> Path | None:
    """Return the path of a file in a model's directory or Hub repository, or None."""
    path = cached_file(
        os.fspath(model),
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


@dataclass(frozen=True)
class OodDetector:
    """A score and a threshold that separate images of a model's classes from others.

    Attributes:
        score: One of ``SCORES``; it is higher for images of known classes.
        threshold: Images that score lower are out-of-distribution.
        accepted: The share of validation images that reach it; None if it was set by hand.
        class_means: Mean features of the classes (C, D) float32, which ``class_mean`` requires.
    """

    score: str
    threshold: float
    accepted: float | None = None
    class_means: np.ndarray | None = None

    def score_images(self, features: np.ndarray, logits: np.ndarray, activation: str) -> np.ndarray:
        """Return the score of each image, (N,), from features (N, D) and logits (N, C)."""
        if self.score != CLASS_MEAN:
            return score_logits(logits, self.score, activation)
        assert self.class_means is not None
        return score_class_means(self.class_means, features)

    def save(self, directory: Path) -> None:
        """Write the file into a model's directory."""
        means = None if self.class_means is None else self.class_means.astype(float).tolist()
        facts = {
            "score": self.score,
            "threshold": self.threshold,
            "accepted": self.accepted,
            "class_means": means and [[float(f"{x:.7g}") for x in mean] for mean in means],
        }
        # Not indented: there are a hundred thousand numbers.
        write_text(directory / OOD_FILE, json.dumps(facts, allow_nan=False) + "\n")


def load_ood_detector(model: str | os.PathLike[str]) -> OodDetector | None:
    """Return the detector of a model in a directory or on the Hub, or None if it has none.

    Raises:
        InputError: The file is damaged.
    """
    path = find_sidecar_file(model, OOD_FILE)
    if path is None:
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        means = facts["class_means"]
        detector = OodDetector(
            facts["score"],
            float(facts["threshold"]),
            facts["accepted"],
            None if means is None else np.asarray(means, dtype=np.float32),
        )
        if detector.score not in SCORES or (detector.score == CLASS_MEAN and means is None):
            raise ValueError(f"its score is {detector.score!r}")
        if means is not None and np.ndim(means) != 2:
            raise ValueError("its class means are not a table")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"The OOD threshold in {path} cannot be read ({error}). Fit it again with "
            f"'siglip-flowers threshold --model {model}', or pass --no_threshold."
        ) from error
    return detector


def save_temperature(directory: Path, temperature: float, split: str, n: int) -> None:
    """Write the temperature, fitted on ``n`` images of ``split``, into a model's directory."""
    write_json(directory / CALIBRATION_FILE, {"temperature": temperature, "split": split, "n": n})


def load_temperature(model: str | os.PathLike[str]) -> float | None:
    """Return the temperature of a model in a directory or on the Hub, or None if it has none.

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
            f"The temperature in {path} cannot be read ({error}). Delete the file, or train the "
            "model again."
        ) from error
    return temperature


def require_temperature(model: str | os.PathLike[str]) -> float:
    """Return the temperature of a model.

    Raises:
        InputError: It has none, or the file is damaged.
    """
    temperature = load_temperature(model)
    if temperature is None:
        raise InputError(
            f"The model {os.fspath(model)} has no {CALIBRATION_FILE} with the temperature for "
            "calibrated scores. Remove --calibrated, or train the model again."
        )
    return temperature
