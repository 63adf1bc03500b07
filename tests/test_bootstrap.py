"""The intervals of headline figures, against scikit-learn's scores and their own coverage."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from siglip_flowers.metrics.bootstrap import accuracy_interval, bootstrap_headline
from siglip_flowers.metrics.statistics import wilson_interval

CLASSES = 6


@pytest.fixture(scope="module")
def predictions():
    """60 to 10 images of six classes, predicted well and badly; the last class is never named."""
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(CLASSES), [60, 50, 40, 30, 20, 10])
    wrong = generator.integers(0, CLASSES - 1, labels.size)
    predictions = np.where(generator.random(labels.size) < 0.6, labels, wrong)
    predictions[predictions == CLASSES - 1] = 0
    return labels, predictions


NAMES = ("precision_macro", "recall_macro", "f1_macro", "accuracy")


def count(labels, predicted):
    counts = np.zeros((CLASSES, CLASSES))
    np.add.at(counts, (labels, predicted), 1.0)
    return counts


def score(counts, sizes):
    """Return the figures of a confusion matrix; the sizes of classes are fixed."""
    named, hits = counts.sum(0), np.diag(counts)
    class_scores = (hits / np.maximum(named, 1e-9), hits / sizes, 2 * hits / (sizes + named))
    return np.array([*(values.mean() for values in class_scores), hits.sum() / sizes.sum()])


def measure_errors(counts, step=1e-4):
    """Return standard errors by the delta method, each derivative by finite differences."""
    sizes = counts.sum(1)
    variance = np.zeros(len(NAMES))
    for label, size in enumerate(sizes):
        slopes = np.zeros((CLASSES, len(NAMES)))
        for column in np.flatnonzero(counts[label]):
            moved = counts.copy()
            moved[label, column] += step
            slopes[column] = (score(moved, sizes) - score(counts, sizes)) / step
        first, second = counts[label] @ slopes, counts[label] @ slopes**2
        variance += (second - first**2 / size) * size / (size - 1)
    return np.sqrt(variance)


def test_intervals_are_bootstrap_t(predictions):
    labels, predicted = predictions
    counts = count(labels, predicted)
    sizes = counts.sum(1)
    estimates, errors = score(counts, sizes), measure_errors(counts)
    expected = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    assert estimates[:3] == pytest.approx(expected[:3])
    generator = np.random.default_rng(2)
    ratios = []
    for _ in range(400):
        drawn = np.array([generator.multinomial(row.sum(), row / row.sum()) for row in counts])
        drawn = drawn.astype(float)
        ratios.append((score(drawn, sizes) - estimates) / measure_errors(drawn))
    low, high = np.quantile(ratios, [0.025, 0.975], axis=0)
    found = bootstrap_headline(labels, predicted, CLASSES)
    for number, name in enumerate(NAMES):
        ends = (estimates - high * errors)[number], (estimates - low * errors)[number]
        assert found[name] == pytest.approx(ends, abs=0.025), name


def test_without_an_error_accuracy_has_wilsons_interval_and_class_averages_none():
    labels = np.repeat(np.arange(4), 5)
    for predicted, right in ((labels, 20), ((labels + 1) % 4, 0)):
        found = bootstrap_headline(labels, predicted, 4, hits=labels == predicted, resamples=50)
        assert found == dict.fromkeys(("accuracy", "top5_accuracy"), wilson_interval(right, 20))
    # One of two: the resamples that vary at all are equal.
    two = bootstrap_headline([0, 1], [0, 0], 2, resamples=50)
    assert two == {"accuracy": wilson_interval(1, 2)}
    one = bootstrap_headline([1], [1], 3, resamples=50)
    assert one == {"accuracy": wilson_interval(1, 1)}


def test_intervals_of_few_errors_cover_the_truth():
    generator, sizes, truth = np.random.default_rng(0), np.full(10, 15), 0.97
    covered = 0
    for _ in range(200):
        low, high = accuracy_interval(generator.binomial(sizes, truth), sizes, 500)
        covered += low <= truth <= high
    assert covered >= 186


def test_the_interval_of_an_accuracy_needs_the_counts_alone(predictions):
    labels, predicted = predictions
    right = np.bincount(labels[labels == predicted], minlength=CLASSES)
    found = accuracy_interval(right, np.bincount(labels))
    assert found == bootstrap_headline(labels, predicted, CLASSES)["accuracy"]
    # Classes without images change nothing.
    assert found == accuracy_interval([0, *right], [0, *np.bincount(labels)])
