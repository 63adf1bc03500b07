"""Files beside a model's weights: the out-of-distribution threshold and the temperature."""

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


def find_sidecar_file(model: str | os.PathLike[str], name: str) -> Path | None:
    """Return the path of a model's file of this name, or None where it has none."""
    path = cached_file(
        os.fspath(model),
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


OPEN_SET_FILE = "open_set.json"
CLASS_MEAN = "class_mean"
SCORES = (CLASS_MEAN, *LOGIT_SCORES)


@dataclass(frozen=True)
class OpenSet:
    """How a model tells images of its classes from others.

    Attributes:
        score: One of ``SCORES``; higher means better known.
        threshold: Images below it show none of the known classes.
        accepted: The share of validation images that reach it; None where it was set by hand.
        class_means: Mean features of the classes (C, D) float32, which ``class_mean`` needs.
    """

    score: str
    threshold: float
    accepted: float | None = None
    class_means: np.ndarray | None = None

    def score_images(self, features: np.ndarray, logits: np.ndarray, activation: str) -> np.ndarray:
        """Return how known images look, (N,), from features (N, D) and logits (N, C)."""
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
        write_text(directory / OPEN_SET_FILE, json.dumps(facts, allow_nan=False) + "\n")


def load_open_set(model: str | os.PathLike[str]) -> OpenSet | None:
    """Return what lies beside a model in a directory or on the Hub, or None.

    Raises:
        InputError: The file is damaged.
    """
    path = find_sidecar_file(model, OPEN_SET_FILE)
    if path is None:
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        means = facts["class_means"]
        open_set = OpenSet(
            facts["score"],
            float(facts["threshold"]),
            facts["accepted"],
            None if means is None else np.asarray(means, dtype=np.float32),
        )
        if open_set.score not in SCORES or (open_set.score == CLASS_MEAN and means is None):
            raise ValueError(f"its score is {open_set.score!r}")
        if means is not None and np.ndim(means) != 2:
            raise ValueError("its class means are no table")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"The threshold in {path} cannot be read ({error}); fit it again with "
            f"'siglip-flowers threshold --model {model}', or pass --no_threshold."
        ) from error
    return open_set


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
