"""The analysis of one pass over a split."""

import importlib.util
import logging
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.sparse.linalg import svds
from scipy.spatial.distance import squareform
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from siglip_flowers.evaluation.predict import SplitResult
from siglip_flowers.evaluation.run import HEADLINE, Evaluation, list_metrics
from siglip_flowers.metrics import calibration
from siglip_flowers.metrics.classification import (
    IntArray,
    activation_losses,
    confusion_matrix,
)
from siglip_flowers.metrics.neighbors import normalize_rows
from siglip_flowers.metrics.statistics import wilson_interval
from siglip_flowers.plots.examples import spread_classes
from siglip_flowers.report import contents
from siglip_flowers.report.images import SplitRows, encode_thumbnail, find_duplicates

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


def analyze(
    evaluation: Evaluation, splits: Mapping[str, SplitRows], temperature: float | None
) -> contents.Report:
    """Analyze one pass over a split of N images with C classes.

    Args:
        evaluation: With the result of the pass.
        splits: All splits, to look for near-duplicates in.
        temperature: What the logits are divided by for calibrated probabilities; None without.

    Raises:
        RunError: Logits that are not finite.
    """
    result = evaluation.result
    assert result is not None
    labels, classes = result.labels, len(evaluation.model.class_names)
    activation = evaluation.model.config.activation
    # The slowest part releases the interpreter, so the others run meanwhile.
    background = ThreadPoolExecutor(1)
    placing = background.submit(map_features, result.features, labels)
    background.shutdown(wait=False)
    predicted = result.logits.argmax(axis=1)
    probabilities = calibration.to_probabilities(result.logits, activation)
    confidence = probabilities.max(axis=1)
    correct = predicted == labels
    headline = _measure_headline(evaluation, result)
    confusion = confusion_matrix(labels, predicted, classes)
    pairs = find_pairs(confusion, labels, predicted, confidence)
    wrong, right = np.flatnonzero(~correct), np.flatnonzero(correct)
    mistakes = wrong[np.argsort(-confidence[wrong], kind="stable")][:GALLERY].tolist()
    hits = right[np.argsort(confidence[right], kind="stable")][:GALLERY].tolist()
    suspects = find_label_suspects(labels, probabilities)
    duplicates = find_duplicates(result.split, splits)
    trained = np.bincount(splits["train"].labels, minlength=classes)
    per_class = score_classes(result, confusion, trained)
    feature_map = placing.result()
    shown = {
        *mistakes,
        *hits,
        *feature_map.rows.tolist(),
        *(row for pair in pairs for row in pair.rows),
        *(suspect.row for suspect in suspects),
        *(duplicate.row for duplicate in duplicates),
    }
    images = splits[result.split].images.read(sorted(shown))
    return contents.Report(
        evaluation=evaluation,
        predicted=predicted,
        confidence=confidence,
        headline=headline,
        calibration=_calibrate(result, activation, 1.0),
        calibrated=None if temperature is None else _calibrate(result, activation, temperature),
        confusion=confusion,
        class_order=order_classes(confusion),
        per_class=per_class,
        groups=group_classes(per_class),
        confused_pairs=pairs,
        mistakes=mistakes,
        uncertain_hits=hits,
        label_suspects=suspects,
        near_duplicates=duplicates,
        selective=_select(confidence, correct),
        feature_map=feature_map,
        thumbnails=dict(zip(sorted(shown), map(encode_thumbnail, images), strict=True)),
    )


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
    confusion: IntArray, labels: IntArray, predicted: IntArray, confidence: np.ndarray
) -> list[contents.ConfusedPair]:
    """Return the class pairs with the most confused images, the most confused pair first.

    Equal counts are ordered by the share of the true class. Each pair has its most confident
    images.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    found = [pair for pair in np.argwhere(confusion).tolist() if pair[0] != pair[1]]
    found.sort(key=lambda pair: (-confusion[*pair], -shares[*pair]))
    pairs = []
    for label, other in found[:PAIRS]:
        rows = np.flatnonzero((labels == label) & (predicted == other))
        surest = rows[np.argsort(-confidence[rows], kind="stable")][:IMAGES_PER_PAIR]
        counted = int(confusion[label, other]), float(shares[label, other])
        pairs.append(contents.ConfusedPair(label, other, *counted, surest.tolist()))
    return pairs


def score_classes(
    result: SplitResult, confusion: IntArray, trained: IntArray
) -> list[contents.ClassRow]:
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


def group_classes(rows: list[contents.ClassRow]) -> list[contents.ClassGroup]:
    """Average rare, medium and frequent classes; nothing if all classes are of one kind."""
    groups = []
    for name, low, high in (
        (f"rare (fewer than {RARE} training images)", 0, RARE - 1),
        (f"medium ({RARE} to {FREQUENT})", RARE, FREQUENT),
        (f"frequent (more than {FREQUENT})", FREQUENT + 1, np.inf),
    ):
        found = [row for row in rows if row["support"] and low <= row["trained"] <= high]
        if found:
            support = sum(row["support"] for row in found)
            recall = float(np.mean([row["recall"]["value"] for row in found]))
            f1 = float(np.mean([row["f1"] for row in found]))
            groups.append(contents.ClassGroup(name, len(found), support, recall, f1))
    return groups if len(groups) > 1 else []


def find_label_suspects(labels: IntArray, probabilities: np.ndarray) -> list[contents.LabelSuspect]:
    """Return the images whose label confident learning doubts, the most doubtful first.

    The model must not have been trained on them. Classes without an image in the split are left
    out. Nothing is found without the package cleanlab, or in fewer than two classes.

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
        contents.LabelSuspect(int(row), int(probabilities[row].argmax()), float(quality[row]))
        for row in rows[:SUSPECTS]
    ]


def map_features(features: np.ndarray, labels: IntArray, seed: int = 0) -> contents.FeatureMap:
    """Place images on a plane so that images with similar features are close.

    At most ``MAP_IMAGES`` images are drawn, as many of each class if there are enough. The
    features are scaled to length 1 and reduced to 50 principal components first.

    features: (N, D) float32; labels: (N,).

    Source: van der Maaten and Hinton 2008, "Visualizing data using t-SNE".
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    rows = np.sort(spread_classes(order, labels)[:MAP_IMAGES])
    values = normalize_rows(features)[rows].astype(np.float64)
    values -= values.mean(axis=0)
    components = min(_COMPONENTS, *(side - 1 for side in values.shape))
    if components < 2:
        places = np.stack([np.arange(len(rows)), np.zeros(len(rows))], axis=1)
        return contents.FeatureMap(rows, _scale(places), "in order")
    left, sizes, _ = svds(values, k=components, rng=seed)
    reduced = (left * sizes)[:, ::-1]
    # Its threads would wait for each other longer than they work.
    with threadpool_limits(1):
        places = TSNE(
            perplexity=min(_PERPLEXITY, (len(rows) - 1) / 3),
            init=reduced[:, :2] / max(reduced[:, 0].std(), 1e-12) * 1e-4,
            random_state=seed,
            # Half of the default: the map hardly changes after that.
            max_iter=500,
        ).fit_transform(reduced)
    return contents.FeatureMap(rows, _scale(places), "t-SNE")


def _scale(places: np.ndarray) -> np.ndarray:
    low, high = places.min(axis=0), places.max(axis=0)
    return ((places - low) / np.maximum(high - low, 1e-12)).astype(np.float32)


def _measure_headline(evaluation: Evaluation, result: SplitResult) -> dict[str, contents.Estimate]:
    """Return the metrics of the evaluation with intervals, of no width if they have none."""
    metrics, ends = list_metrics(result), evaluation.intervals
    values = {name: metrics[name] for name in (*HEADLINE, "loss") if name in metrics}
    return {
        name: contents.Estimate(value, *ends.get(name, (value, value)))
        for name, value in values.items()
    }


def _calibrate(result: SplitResult, activation: str, temperature: float) -> contents.Calibration:
    labels = result.labels
    probabilities = calibration.to_probabilities(result.logits, activation, temperature)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    losses = activation_losses(result.logits / temperature, labels, activation)
    return contents.Calibration(
        temperature=temperature,
        ece_equal_width=calibration.expected_calibration_error(confidence, correct),
        ece_equal_mass=calibration.expected_calibration_error(
            confidence, correct, binning="equal_mass"
        ),
        brier=calibration.brier_score(probabilities, labels),
        loss=float(losses.mean()),
        bins=calibration.reliability_bins(confidence, correct),
    )


def _select(confidence: np.ndarray, correct: np.ndarray) -> contents.Selective:
    coverage, risk = calibration.risk_coverage(confidence, correct)
    return contents.Selective(
        coverage=coverage,
        risk=risk,
        aurc=calibration.area_under_risk_coverage(confidence, correct),
        best_aurc=calibration.best_area_under_risk_coverage(correct),
        coverage_at_5_percent_risk=calibration.coverage_at_risk(confidence, correct, RISK),
    )
