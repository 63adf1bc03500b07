"""The contents of a report as plain data, and how its numbers and names are written.

Rows are numbers of images in the evaluated split, which has N images of C classes.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.evaluation.predict import SplitResult
from siglip_flowers.evaluation.run import HEADLINE, Evaluation
from siglip_flowers.metrics.calibration import ReliabilityBin

# {"label", "name", "support", "trained", "predicted", "precision", "recall": {"value", "low",
# "high"}, "f1"}: one class; support, trained and predicted count images.
ClassRow = dict[str, Any]
# {"source", "score", "n", "auroc", "fpr95"}: how well a score separates the split's images from n
# unknown ones.
UnknownRow = dict[str, Any]


@dataclass(frozen=True)
class Estimate:
    """A value with the two ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """How well probabilities match accuracy, at one temperature."""

    temperature: float
    ece_equal_width: float
    ece_equal_mass: float
    brier: float
    loss: float
    bins: list[ReliabilityBin]


@dataclass(frozen=True)
class ClassGroup:
    """Classes with about as many training images: mean recall and F1 of those in this split."""

    name: str
    classes: int
    support: int
    recall: float
    f1: float


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that were classified as another: count, share of the class, rows."""

    label: int
    predicted: int
    count: int
    share: float
    rows: list[int]


@dataclass(frozen=True)
class LabelSuspect:
    """An image whose label may be wrong, the more probable class, and the label's quality."""

    row: int
    suggested: int
    label_quality: float


@dataclass(frozen=True)
class NearDuplicate:
    """An image of the split and a similar one of a split (perhaps the same).

    ``hash_distance`` counts the differing bits of two 64-bit perceptual hashes, ``cosine`` is that
    of the features. ``found_by`` is ``hash``, or ``features`` if the hashes differ.
    ``other_image`` is a JPEG thumbnail.
    """

    row: int
    other_split: str
    other_id: str
    other_label: int
    hash_distance: int
    cosine: float
    found_by: str
    other_image: bytes


@dataclass(frozen=True)
class Selective:
    """Risk by coverage if the least certain images are left out."""

    coverage: np.ndarray
    risk: np.ndarray
    aurc: float
    best_aurc: float
    coverage_at_5_percent_risk: float


@dataclass(frozen=True)
class FeatureMap:
    """Images on a plane: rows (M,) and their places (M, 2) in [0, 1]."""

    rows: np.ndarray
    places: np.ndarray
    method: str


@dataclass(frozen=True)
class Report:
    """Everything that a report shows. ``thumbnails`` has a JPEG for every row that is shown.

    ``trained_on`` means that the model was trained on these images.
    """

    evaluation: Evaluation
    predicted: np.ndarray
    confidence: np.ndarray
    headline: dict[str, Estimate]
    calibration: Calibration
    calibrated: Calibration | None
    confusion: np.ndarray
    class_order: np.ndarray
    per_class: list[ClassRow]
    groups: list[ClassGroup]
    confused_pairs: list[ConfusedPair]
    mistakes: list[int]
    uncertain_hits: list[int]
    label_suspects: list[LabelSuspect]
    near_duplicates: list[NearDuplicate]
    selective: Selective
    feature_map: FeatureMap
    thumbnails: dict[int, bytes]
    unknowns: list[UnknownRow] = field(default_factory=list)
    trained_on: bool = False

    @property
    def result(self) -> SplitResult:
        """The predictions."""
        assert self.evaluation.result is not None
        return self.evaluation.result

    @property
    def names(self) -> list[str]:
        """The C class names."""
        return list(self.evaluation.model.class_names)


def percent(value: float, digits: int = 2) -> str:
    """Return a share as text."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "none"


def format_metric(name: str, value: float) -> str:
    """Return a metric as text: in percent, except for a loss."""
    return f"{value:.4f}" if name == "loss" else percent(value)


def format_interval(name: str, estimate: Estimate) -> str:
    """Return the two ends of an interval as text."""
    if name == "loss":
        return f"{estimate.low:.4f} to {estimate.high:.4f}"
    return f"{100 * estimate.low:.2f} to {percent(estimate.high)}"


def name_metric(name: str) -> str:
    """Return the title of a metric."""
    title = HEADLINE.get(name, name.replace("_", " "))
    return title[0].upper() + title[1:]


def clean_names(report: Report) -> tuple[list[str], list[str]]:
    """Return class names and image ids without characters that a terminal or page obeys."""
    return (
        [escape_unprintable(name) for name in report.names],
        [escape_unprintable(name) for name in report.result.ids],
    )


def describe_rows(report: Report) -> list[str]:
    """Return a caption for every image of the split."""
    names, ids = clean_names(report)
    rows = zip(ids, report.result.labels, report.predicted, report.confidence, strict=True)
    return [
        f"{image}: {names[label]}"
        + ("" if label == predicted else f", predicted {names[predicted]}")
        + f" ({percent(float(confidence), 1)})"
        for image, label, predicted, confidence in rows
    ]
