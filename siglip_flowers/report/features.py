"""What the features tell: a map of the images, a vote of neighbors, scores of unknown images."""

import numpy as np
from scipy.sparse.linalg import svds
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from siglip_flowers.data.sources.ood_images import draw_ood_images
from siglip_flowers.evaluation.extension import Evaluation
from siglip_flowers.evaluation.fitting import (
    IMAGES_PER_KIND,
    REPORT_SEED,
    classify_folder,
    classify_images,
)
from siglip_flowers.inference.sidecars import CLASS_MEAN, OodDetector
from siglip_flowers.metrics.functions import IntArray
from siglip_flowers.metrics.neighbors import count_votes, find_neighbors, normalize_rows
from siglip_flowers.metrics.ood import LOGIT_SCORES, measure_separation, score_neighbors
from siglip_flowers.metrics.statistics import wilson_interval
from siglip_flowers.report.contents import GIVEN, Estimate, FeatureMap, UnknownRow

# More would be a cloud on the page, and minutes of work.
MAP_IMAGES = 1020
NEIGHBORS = 5
ALL_DRAWINGS = "all drawings"
_COMPONENTS = 50
_PERPLEXITY = 30.0


def map_features(features: np.ndarray, labels: IntArray, seed: int = 0) -> FeatureMap:
    """Place images on a plane so that images with similar features are close.

    At most ``MAP_IMAGES`` images are drawn, as many of each class if there are enough. The
    features are scaled to length 1 and reduced to 50 principal components first.

    features: (N, D) float32; labels: (N,).

    Source: van der Maaten and Hinton 2008, "Visualizing data using t-SNE".
    """
    rows = _sample_rows(labels, MAP_IMAGES, seed)
    values = normalize_rows(features)[rows].astype(np.float64)
    values -= values.mean(axis=0)
    components = min(_COMPONENTS, *(side - 1 for side in values.shape))
    if components < 2:
        places = np.stack([np.arange(len(rows)), np.zeros(len(rows))], axis=1)
        return FeatureMap(rows, _scale(places), "in order")
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
    return FeatureMap(rows, _scale(places), "t-SNE")


def measure_neighbors(features: np.ndarray, labels: IntArray, num_classes: int) -> Estimate:
    """Return how often the five nearest other images of the split have an image's own class.

    Of equal counts the class of the nearest image wins. With Wilson's interval.

    features: (N, D); labels: (N,).
    """
    if len(labels) < 2:
        return Estimate(0.0, 0.0, 1.0)
    votes = count_votes(find_neighbors(features, None, NEIGHBORS), labels, num_classes)
    hits = int((votes.argmax(axis=1) == labels).sum())
    return Estimate(hits / len(labels), *wilson_interval(hits, len(labels)))


def measure_unknowns(
    evaluation: Evaluation,
    train_features: np.ndarray | None,
    fitted: OodDetector | None,
    folder: str | None,
) -> list[UnknownRow]:
    """Return AUROC and FPR95 of every score against all drawings, a folder and kinds of drawings.

    Args:
        evaluation: With the result of the pass.
        train_features: Of training images (M, D), for the score by neighbors; None without it.
        fitted: The detector beside the model, for the score by class means; None without it.
        folder: Images that show none of the classes; None without it.
    """
    model, processor, result = evaluation.model, evaluation.processor, evaluation.result
    assert result is not None
    dtype, activation = evaluation.options.dtype, model.config.activation
    drawn = draw_ood_images(IMAGES_PER_KIND, REPORT_SEED)
    images = [image for kind in drawn.values() for image in kind]
    features, logits = classify_images(model, processor, images, dtype)
    kinds, sources = np.repeat(list(drawn), IMAGES_PER_KIND), (ALL_DRAWINGS, *drawn)
    if folder is not None:
        given = classify_folder(model, processor, folder, dtype)
        features, logits = np.concatenate([features, given[0]]), np.concatenate([logits, given[1]])
        kinds = np.concatenate([kinds, np.repeat(GIVEN, len(given[0]))])
        sources = (ALL_DRAWINGS, GIVEN, *drawn)
    detectors = [OodDetector(score, 0.0) for score in LOGIT_SCORES]
    if fitted is not None and fitted.class_means is not None:
        detectors.append(OodDetector(CLASS_MEAN, 0.0, class_means=fitted.class_means))
    scores = {
        detector.score: (
            detector.score_images(result.features, result.logits, activation),
            detector.score_images(features, logits, activation),
        )
        for detector in detectors
    }
    if train_features is not None:
        scores["neighbors"] = (
            score_neighbors(train_features, result.features),
            score_neighbors(train_features, features),
        )
    rows = []
    for source in sources:
        chosen = kinds != GIVEN if source == ALL_DRAWINGS else kinds == source
        for score, (known, unknown) in scores.items():
            figures = measure_separation(known, unknown[chosen])
            fpr95 = figures["false_positive_rate"]
            rows.append(UnknownRow(source, score, int(chosen.sum()), figures["auroc"], fpr95))
    return rows


def _sample_rows(labels: IntArray, most: int, seed: int) -> np.ndarray:
    """Draw rows class by class in turns, so that small classes are not crowded out."""
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        turn[own] = np.arange(len(own))
    return np.sort(order[np.argsort(turn[order], kind="stable")][:most])


def _scale(places: np.ndarray) -> np.ndarray:
    low, high = places.min(axis=0), places.max(axis=0)
    return ((places - low) / np.maximum(high - low, 1e-12)).astype(np.float32)
