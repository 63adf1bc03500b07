"""What a report says: plain data, filled by the analysis and shown by every kind of report.

Rows are numbers of images in the split that was evaluated, N of them, with C classes.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from siglip_flowers.metrics.calibration import ReliabilityBin

# The source of unknown images that the user names.
GIVEN = "images in --unknown_dir"


@dataclass(frozen=True)
class Figure:
    """A figure with the two ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CalibrationFigures:
    """How far probabilities can be believed, at one temperature."""

    temperature: float
    ece_equal_width: float
    ece_equal_mass: float
    brier: float
    loss: float
    bins: list[ReliabilityBin]


@dataclass(frozen=True)
class ClassRow:
    """One class of the split: support, scores, and Wilson's interval of its recall."""

    label: int
    support: int
    predicted: int
    precision: float
    recall: Figure
    f1: float


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that were given another: how many, their share of the class, which."""

    label: int
    predicted: int
    count: int
    share: float
    rows: list[int]


@dataclass(frozen=True)
class LabelSuspect:
    """An image whose label the model doubts: what it would be, and how well the label fits."""

    row: int
    suggested: int
    label_quality: float


@dataclass(frozen=True)
class NearDuplicate:
    """An image of the split that looks like one of a split (perhaps the same).

    ``hash_distance`` counts the differing bits of two 64-bit perceptual hashes, ``cosine`` is of
    the features. ``found_by`` is ``hash``, or ``features`` where the hashes are not alike.
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
    """Risk against coverage when the least certain images are left out."""

    coverage: np.ndarray
    risk: np.ndarray
    aurc: float
    best_aurc: float
    coverage_at_5_percent_risk: float


@dataclass(frozen=True)
class UnknownRow:
    """How well one score tells the split's images from those of one source of no flowers."""

    source: str
    score: str
    n: int
    auroc: float
    fpr95: float


@dataclass(frozen=True)
class FeatureMap:
    """Images on a plane: rows (M,) and their places (M, 2) in [0, 1]."""

    rows: np.ndarray
    places: np.ndarray
    method: str


@dataclass(frozen=True)
class Attention:
    """An image with what the model looked at: JPEG bytes of the image and of the overlay."""

    row: int
    image: bytes
    overlay: bytes


@dataclass(frozen=True)
class ReportContents:
    """Everything a report shows. ``thumbnails`` holds a JPEG for every row that is shown.

    ``trained_on`` says that the model was trained on these images.
    """

    title: str
    model: str
    split: str
    description: str
    command: str
    environment: dict[str, Any]
    class_names: list[str]
    ids: list[str]
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    headline: dict[str, Figure]
    calibration: CalibrationFigures
    calibrated: CalibrationFigures | None
    confusion: np.ndarray
    class_order: np.ndarray
    per_class: list[ClassRow]
    confused_pairs: list[ConfusedPair]
    mistakes: list[int]
    uncertain_hits: list[int]
    label_suspects: list[LabelSuspect]
    near_duplicates: list[NearDuplicate]
    selective: Selective
    knn_accuracy: Figure
    feature_map: FeatureMap
    unknowns: list[UnknownRow] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)
    trained_on: bool = False
    robustness: list[dict[str, Any]] = field(default_factory=list)
    augmented: list[dict[str, Any]] = field(default_factory=list)
    thumbnails: dict[int, bytes] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
