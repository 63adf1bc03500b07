"""Files beside a model's weights: the out-of-distribution (OOD) threshold and others."""

import json
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import try_to_load_from_cache
from transformers.utils import cached_file

from siglip_flowers.base.files import read_json, reading, write_text
from siglip_flowers.metrics.ood import LOGIT_SCORES, score_class_means, score_logits

logger = logging.getLogger(__name__)

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
    asked = path is not None or os.path.isdir(model)
    # Otherwise it is known to be absent, or could not be looked up, now or before.
    if not asked and try_to_load_from_cache(os.fspath(model), name) is None:
        logger.warning("%s of %s cannot be looked up on the Hub, and is not used.", name, model)
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


def load_ood_detector(model: str | os.PathLike[str], width: int) -> OodDetector | None:
    """Return the detector of a model in a directory or on the Hub, or None if it has none.

    Args:
        model: The directory or Hub id.
        width: Of the model's features.

    Raises:
        RunError: The file is damaged.
    """
    path = find_sidecar_file(model, OOD_FILE)
    if path is None:
        return None
    remedy = f"Fit it again with 'siglip-flowers threshold --model {model}', or pass --no_threshold"
    with reading(path, remedy):
        facts = read_json(path)
        score, means, threshold = facts["score"], facts["class_means"], float(facts["threshold"])
        if score not in SCORES or (score == CLASS_MEAN and means is None):
            raise ValueError(f"its score is {score!r}")
        if not math.isfinite(threshold):
            raise ValueError(f"its threshold is {threshold}")
        if means is not None:
            means = np.asarray(means, dtype=np.float32)
            if means.ndim != 2 or means.shape[1] != width or not np.isfinite(means).all():
                raise ValueError(f"its class means are not a table of {width} columns")
    return OodDetector(score, threshold, facts["accepted"], means)


def load_temperature(model: str | os.PathLike[str]) -> float | None:
    """Return the temperature of a model in a directory or on the Hub, or None if it has none.

    Raises:
        RunError: The file is damaged.
    """
    path = find_sidecar_file(model, CALIBRATION_FILE)
    if path is None:
        return None
    with reading(path, "Delete the file, or train the model again"):
        temperature = float(read_json(path)["temperature"])
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"it is {temperature}")
    return temperature
