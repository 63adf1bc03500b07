"""The analysis of one pass over a split: the numbers of a report, and the images it shows."""

import importlib.util
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import confusion_matrix
from threadpoolctl import threadpool_limits

from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.evaluation.predict import SplitResult
from siglip_flowers.evaluation.run import HEADLINE, Evaluation, list_metrics
from siglip_flowers.metrics import calibration
from siglip_flowers.metrics.classification import IntArray, activation_losses
from siglip_flowers.metrics.neighbors import normalize_rows
from siglip_flowers.metrics.statistics import wilson_interval
from siglip_flowers.plots.examples import spread_classes
from siglip_flowers.report.images import SplitImages, encode_thumbnail, find_duplicates

GALLERY = SUSPECTS = 24
PAIRS, IMAGES_PER_PAIR = 15, 4
RISK = 0.05
# Training images of a class: fewer than the first are rare, more than the second are frequent.
# Source: Liu et al. 2019, "Large-scale long-tailed recognition in an open world".
RARE, FREQUENT = 20, 100
# More would be a cloud on the page, and minutes of work.
MAP_IMAGES = 1020
_COMPONENTS = 50
_PERPLEXITY = 30.0


@dataclass(frozen=True)
class Report:
    """What a report shows of one pass over a split of N images.

    Attributes:
        evaluation: With the result of the pass.
        numbers: The contents of ``metrics.json``: names of classes and ids of images, no arrays.
        confidence: The probabilities of the predicted classes (N,).
        map_rows: The images on the feature map (M,).
        map_places: Where they are on it (M, 2).
        thumbnails: A JPEG of every image that is shown, by split and id.
    """

    evaluation: Evaluation
    numbers: dict[str, Any]
    confidence: np.ndarray
    map_rows: np.ndarray
    map_places: np.ndarray
    thumbnails: dict[tuple[str, str], bytes]

    @property
    def result(self) -> SplitResult:
        """The predictions."""
        assert self.evaluation.result is not None
        return self.evaluation.result

    @property
    def captions(self) -> dict[str, str]:
        """A caption of every image of the split, by its id."""
        names = self.numbers["class_names"]
        rows = zip(
            self.result.ids, self.result.labels, self.result.predicted, self.confidence, strict=True
        )
        return {
            image: escape_unprintable(
                f"{image}: {names[label]}"
                + ("" if label == predicted else f", predicted {names[predicted]}")
                + f" ({100 * confidence:.1f}%)"
            )
            for image, label, predicted, confidence in rows
        }


def analyze(
    evaluation: Evaluation,
    splits: Mapping[str, SplitImages],
    temperature: float | None,
    unknowns: list[dict[str, Any]],
) -> Report:
    """Analyze one pass over a split of N images with C classes.

    Args:
        evaluation: With the result of the pass.
        splits: All splits, to look for near-duplicates in.
        temperature: What the logits are divided by for calibrated probabilities; None without.
        unknowns: How well each score separates images of no class; see ``measure_unknowns``.

    Raises:
        RunError: Logits that are not finite.
    """
    result = evaluation.result
    assert result is not None
    probabilities = calibration.to_probabilities(result.logits, evaluation.model.config.activation)
    numbers = _list_numbers(evaluation, splits, probabilities, temperature)
    numbers |= {
        "unknowns": unknowns,
        **evaluation.figures,
        "environment": evaluation.environment,
        "command": evaluation.command,
    }
    map_rows, map_places = map_features(result.features, result.labels)
    thumbnails = _encode_thumbnails(numbers, splits, [result.ids[row] for row in map_rows])
    confidence = probabilities.max(axis=1)
    return Report(evaluation, numbers, confidence, map_rows, map_places, thumbnails)


def _list_numbers(
    evaluation: Evaluation,
    splits: Mapping[str, SplitImages],
    probabilities: np.ndarray,
    temperature: float | None,
) -> dict[str, Any]:
    """Return what the predictions say, as JSON values."""
    result = evaluation.result
    assert result is not None
    labels, ids, names = result.labels, result.ids, list(evaluation.model.class_names)
    activation = evaluation.model.config.activation
    predicted = result.predicted
    confidence, correct = probabilities.max(axis=1), predicted == labels
    confusion = confusion_matrix(labels, predicted, labels=range(len(names)))
    wrong, right = np.flatnonzero(~correct), np.flatnonzero(correct)
    trained = np.bincount(splits["train"].labels, minlength=len(names))
    per_class = score_classes(result, confusion, trained)

    def describe(row: int) -> dict[str, Any]:
        return {
            "id": ids[row],
            "label": names[labels[row]],
            "predicted": names[predicted[row]],
            "confidence": float(confidence[row]),
        }

    return {
        "title": evaluation.title,
        "model": evaluation.name,
        "split": result.split,
        "description": evaluation.data.description,
        "dtype": evaluation.options.dtype,
        "n": len(ids),
        "headline": measure_headline(evaluation),
        "calibration": _calibrate(result, activation, 1.0),
        "calibrated": None if temperature is None else _calibrate(result, activation, temperature),
        "selective": {
            "aurc": calibration.area_under_risk_coverage(confidence, correct),
            "best_aurc": calibration.best_area_under_risk_coverage(correct),
            "coverage_at_5_percent_risk": calibration.coverage_at_risk(confidence, correct, RISK),
        },
        "class_names": names,
        "class_order": order_classes(confusion).tolist(),
        "confusion": confusion.tolist(),
        "per_class": per_class,
        "class_groups": group_classes(per_class),
        "confused_pairs": find_pairs(confusion, result, confidence, names),
        "confident_mistakes": [
            describe(row) for row in wrong[np.argsort(-confidence[wrong], kind="stable")][:GALLERY]
        ],
        "least_certain_hits": [
            describe(row) for row in right[np.argsort(confidence[right], kind="stable")][:GALLERY]
        ],
        "label_suspects": [
            describe(row) | {"suggested": names[suggested], "label_quality": quality}
            for row, suggested, quality in find_label_suspects(labels, probabilities)
        ],
        "near_duplicates": [
            describe(row)
            | {"other_split": name, "other_id": splits[name].ids[place], "hash_distance": distance}
            | {"other_label": names[splits[name].labels[place]]}
            for distance, row, name, place in find_duplicates(result.split, splits)
        ],
    }


def _encode_thumbnails(
    numbers: dict[str, Any], splits: Mapping[str, SplitImages], mapped: list[str]
) -> dict[tuple[str, str], bytes]:
    """Return a JPEG of every image that is shown, by split and id."""
    own = {*mapped, *(image for pair in numbers["confused_pairs"] for image in pair["images"])}
    for part in ("confident_mistakes", "least_certain_hits", "label_suspects", "near_duplicates"):
        own |= {each["id"] for each in numbers[part]}
    shown = {(numbers["split"], image) for image in own}
    shown |= {(each["other_split"], each["other_id"]) for each in numbers["near_duplicates"]}
    thumbnails = {}
    for name, images in splits.items():
        wanted = [row for row, image in enumerate(images.ids) if (name, image) in shown]
        for row, image in zip(wanted, images.read(wanted), strict=True):
            thumbnails[name, images.ids[row]] = encode_thumbnail(image)
    return thumbnails


def measure_headline(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Return the metrics with the ends of their intervals, of no width if they have none."""
    assert evaluation.result is not None
    metrics, ends = list_metrics(evaluation.result), evaluation.intervals
    headline = {}
    for name in (*HEADLINE, "loss"):
        if name in metrics:
            value = metrics[name]
            low, high = ends.get(name, (value, value))
            headline[name] = {"value": value, "low": low, "high": high}
    return headline


def order_classes(counts: IntArray) -> np.ndarray:
    """Return the C classes in an order that puts confused classes side by side.

    The distance of two classes is smaller the more of their images are confused; the order is that
    of the leaves of an average-linkage tree, turned so that neighbors are as close as possible.

    counts: (C, C), true classes in rows.

    Source: Bar-Joseph, Gifford and Jaakkola 2001, "Fast optimal leaf ordering".
    """
    classes = len(counts)
    if classes < 3:
        return np.arange(classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    distances = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), "average", optimal_ordering=True)
    return leaves_list(tree).astype(np.int64)


def find_pairs(
    confusion: IntArray, result: SplitResult, confidence: np.ndarray, names: list[str]
) -> list[dict[str, Any]]:
    """Return the class pairs with the most confused images, the most confused pair first.

    Equal counts are ordered by the share of the true class. Each pair has its most confident
    images.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    found = [pair for pair in np.argwhere(confusion).tolist() if pair[0] != pair[1]]
    found.sort(key=lambda pair: (-confusion[*pair], -shares[*pair]))
    predicted = result.predicted
    pairs = []
    for label, other in found[:PAIRS]:
        rows = np.flatnonzero((result.labels == label) & (predicted == other))
        surest = rows[np.argsort(-confidence[rows], kind="stable")][:IMAGES_PER_PAIR]
        pairs.append(
            {
                "label": names[label],
                "predicted": names[other],
                "count": int(confusion[label, other]),
                "share": float(shares[label, other]),
                "images": [result.ids[row] for row in surest],
            }
        )
    return pairs


def score_classes(
    result: SplitResult, confusion: IntArray, trained: IntArray
) -> list[dict[str, Any]]:
    """Return one row per class, in label order; a class without images has recall 0 in [0, 1].

    trained: (C,) number of training images.
    """
    rows = []
    for row in result.per_class:
        label, support = row["label"], row["support"]
        low, high = wilson_interval(int(confusion[label, label]), support) if support else (0, 1)
        recall = {"value": row["recall"], "low": low, "high": high}
        counts = {"trained": int(trained[label]), "predicted": int(confusion[:, label].sum())}
        rows.append({**row, **counts, "recall": recall})
    return rows


def group_classes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average rare, medium and frequent classes; nothing if all classes are of one kind."""
    groups = []
    for name, low, high in (
        (f"rare (fewer than {RARE} training images)", 0, RARE - 1),
        (f"medium ({RARE} to {FREQUENT})", RARE, FREQUENT),
        (f"frequent (more than {FREQUENT})", FREQUENT + 1, np.inf),
    ):
        found = [row for row in rows if row["support"] and low <= row["trained"] <= high]
        if found:
            groups.append(
                {
                    "name": name,
                    "classes": len(found),
                    "support": sum(row["support"] for row in found),
                    "recall": float(np.mean([row["recall"]["value"] for row in found])),
                    "f1": float(np.mean([row["f1"] for row in found])),
                }
            )
    return groups if len(groups) > 1 else []


def find_label_suspects(
    labels: IntArray, probabilities: np.ndarray
) -> list[tuple[int, int, float]]:
    """Return (row, more probable class, label quality) of doubtful labels, worst first.

    The model must not have been trained on the images. Classes without an image in the split are
    left out. Nothing is found without the package cleanlab, or in fewer than two classes.

    labels: (N,); probabilities: (N, C), rows need not sum to 1.

    Source: Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in
    dataset labels".
    """
    present = np.unique(labels)
    if len(present) < 2 or importlib.util.find_spec("cleanlab") is None:
        return []
    # A second of imports.
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    logging.getLogger("cleanlab").setLevel(logging.ERROR)
    place = np.searchsorted(present, labels)
    kept = probabilities[:, present].astype(np.float64) + np.finfo(np.float64).tiny
    shares = kept / kept.sum(axis=1, keepdims=True)
    with warnings.catch_warnings():
        # About classes with few images, which every small split has.
        warnings.simplefilter("ignore", UserWarning)
        rows = find_label_issues(
            place, shares, return_indices_ranked_by="self_confidence", n_jobs=1, verbose=False
        )
    quality = get_label_quality_scores(place, shares)
    return [
        (int(row), int(probabilities[row].argmax()), float(quality[row])) for row in rows[:SUSPECTS]
    ]


def map_features(features: np.ndarray, labels: IntArray) -> tuple[np.ndarray, np.ndarray]:
    """Place images on a plane so that images with similar features are close.

    At most ``MAP_IMAGES`` images are drawn, as many of each class if there are enough. The
    features are scaled to length 1 and reduced to 50 principal components first.

    features: (N, D) float32; labels: (N,). Returns rows (M,) and places (M, 2).

    Source: van der Maaten and Hinton 2008, "Visualizing data using t-SNE".
    """
    order = np.random.default_rng(0).permutation(len(labels))
    rows = np.sort(spread_classes(order, labels)[:MAP_IMAGES])
    values = normalize_rows(features)[rows].astype(np.float64)
    if len(rows) < 3:
        # t-SNE has nothing to do.
        return rows, values[:, :2]
    # Its threads would wait for each other longer than they work.
    with threadpool_limits(1):
        reduced = PCA(min(_COMPONENTS, *values.shape), random_state=0).fit_transform(values)
        places = TSNE(
            perplexity=min(_PERPLEXITY, (len(rows) - 1) / 3),
            # Features may all be equal.
            init=reduced[:, :2] / max(reduced[:, 0].std(), 1e-12) * 1e-4,
            random_state=0,
            # Half of the default: the map hardly changes after that.
            max_iter=500,
        ).fit_transform(reduced)
    return rows, places


def _calibrate(result: SplitResult, activation: str, temperature: float) -> dict[str, Any]:
    """Measure how well probabilities match accuracy at a temperature."""
    labels = result.labels
    probabilities = calibration.to_probabilities(result.logits, activation, temperature)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    losses = activation_losses(result.logits / temperature, labels, activation)
    return {
        "temperature": temperature,
        "ece_equal_width": calibration.expected_calibration_error(confidence, correct),
        "ece_equal_mass": calibration.expected_calibration_error(
            confidence, correct, binning="equal_mass"
        ),
        "brier": calibration.brier_score(probabilities, labels),
        "loss": float(losses.mean()),
        "bins": calibration.reliability_bins(confidence, correct),
    }
