"""What lies beside what in the features: a map of the images, and a vote of neighbors."""

import numpy as np
from scipy.sparse.linalg import svds
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from siglip_flowers.metrics.functions import IntArray
from siglip_flowers.metrics.neighbors import count_votes, find_neighbors, normalize_rows
from siglip_flowers.metrics.statistics import wilson_interval
from siglip_flowers.report.contents import FeatureMap, Figure

# More would be a cloud on the page, and minutes of work.
MAP_IMAGES = 1020
NEIGHBORS = 5
_COMPONENTS = 50
_PERPLEXITY = 30.0


def map_features(features: np.ndarray, labels: IntArray, seed: int = 0) -> FeatureMap:
    """Place images on a plane so that those with similar features lie together.

    At most ``MAP_IMAGES`` images are drawn, of each class an equal number where there are
    enough. The features are scaled to length 1 and reduced to 50 principal components first.

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
            # Half of the usual number: the image hardly changes after that.
            max_iter=500,
        ).fit_transform(reduced)
    return FeatureMap(rows, _scale(places), "t-SNE")


def measure_neighbors(
    features: np.ndarray, labels: IntArray, num_classes: int, neighbors: int = NEIGHBORS
) -> Figure:
    """Return how often the nearest other images of the split vote for an image's own class.

    Each image is left out in turn; the majority of its ``neighbors`` nearest by cosine counts,
    and among equal counts the class of the nearest image. With Wilson's interval.

    features: (N, D); labels: (N,).
    """
    if len(labels) < 2:
        return Figure(0.0, 0.0, 1.0)
    found = find_neighbors(features, None, neighbors)
    voted = count_votes(found, labels, num_classes).argmax(axis=1)
    hits = int(np.count_nonzero(voted == labels))
    return Figure(hits / len(labels), *wilson_interval(hits, len(labels)))


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
