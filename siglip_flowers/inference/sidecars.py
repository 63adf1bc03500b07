"""Files beside a model's weights: the out-of-distribution (OOD) threshold and others."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from transformers.utils import cached_file

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import write_text
from siglip_flowers.metrics.ood import LOGIT_SCORES, score_class_means, score_logits

OOD_FILE = "open_set.json"
CALIBRATION_FILE = "calibration.json"
# A test image of each of the first classes, by the number of the class, if its owner allowed it.
EXAMPLE_FILES = tuple(f"examples/{label}.jpg" for label in range(4))
T = TypeVar("T")
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

    def build(facts: dict[str, Any]) -> OodDetector:
        score, means = facts["score"], facts["class_means"]
        if score not in SCORES or (score == CLASS_MEAN and means is None):
            raise ValueError(f"its score is {score!r}")
        if means is not None:
            means = np.asarray(means, dtype=np.float32)
            if means.ndim != 2:
                raise ValueError("its class means are not a table")
        return OodDetector(score, float(facts["threshold"]), facts["accepted"], means)

    remedy = f"Fit it again with 'siglip-flowers threshold --model {model}', or pass --no_threshold"
    return _read_sidecar_file(model, OOD_FILE, build, remedy)


def _read_sidecar_file(
    model: str | os.PathLike[str], name: str, build: Callable[[dict[str, Any]], T], remedy: str
) -> T | None:
    path = find_sidecar_file(model, name)
    try:
        return None if path is None else build(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}). {remedy}.") from error


def load_temperature(model: str | os.PathLike[str]) -> float | None:
    """Return the temperature of a model in a directory or on the Hub, or None if it has none.

    Raises:
        InputError: The file is damaged.
    """

    def build(facts: dict[str, Any]) -> float:
        temperature = float(facts["temperature"])
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"it is {temperature}")
        return temperature

    remedy = "Delete the file, or train the model again"
    return _read_sidecar_file(model, CALIBRATION_FILE, build, remedy)
