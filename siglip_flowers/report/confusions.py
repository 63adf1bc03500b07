"""What is confused with what: an order of the classes, the worst pairs, scores by class."""

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from siglip_flowers.metrics.functions import IntArray, confusion_matrix, precision_recall_f1
from siglip_flowers.metrics.statistics import wilson_interval
from siglip_flowers.report.contents import ClassRow, ConfusedPair, Figure

PAIRS = 15
IMAGES_A_PAIR = 4


def order_classes(counts: IntArray) -> np.ndarray:
    """Return the C classes in an order that puts those side by side that are confused.

    Two classes are the closer the larger the share of their images is that was given the other;
    the order is that of the leaves of an average-linkage tree, turned so that neighbors are as
    close as they can be.

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
    labels: IntArray, predicted: IntArray, confidence: np.ndarray, num_classes: int
) -> list[ConfusedPair]:
    """Return the class pairs with the most confused images, the most first.

    Of pairs with equally many the one with the larger share of its class comes first. Each names
    its most confident images.
    """
    counts = confusion_matrix(labels, predicted, num_classes)
    support = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    found = [
        (int(count), float(count / support[label]), int(label), int(other))
        for (label, other), count in zip(np.argwhere(counts), counts[counts > 0], strict=True)
    ]
    found.sort(key=lambda pair: (-pair[0], -pair[1], pair[2], pair[3]))
    pairs = []
    for count, share, label, other in found[:PAIRS]:
        rows = np.flatnonzero((labels == label) & (predicted == other))
        surest = rows[np.argsort(-confidence[rows], kind="stable")][:IMAGES_A_PAIR]
        pairs.append(ConfusedPair(label, other, count, share, surest.tolist()))
    return pairs


def score_classes(labels: IntArray, predicted: IntArray, num_classes: int) -> list[ClassRow]:
    """Return one row a class, in label order; a class without images has recall 0 in [0, 1]."""
    scores = precision_recall_f1(labels, predicted, num_classes, average=None)
    named = np.bincount(predicted, minlength=num_classes)
    hits = np.bincount(labels[labels == predicted], minlength=num_classes)
    rows = []
    for label in range(num_classes):
        support = int(scores.support[label])
        ends = wilson_interval(int(hits[label]), support) if support else (0.0, 1.0)
        rows.append(
            ClassRow(
                label=label,
                support=support,
                predicted=int(named[label]),
                precision=float(scores.precision[label]),
                recall=Figure(float(scores.recall[label]), *ends),
                f1=float(scores.f1[label]),
            )
        )
    return rows
