"""The intervals of headline figures, against scipy's bootstrap and the figures themselves."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import precision_recall_fscore_support

from siglip_flowers.metrics.bootstrap import bootstrap_headline

CLASSES = 6


@pytest.fixture(scope="module")
def predictions():
    """60 to 10 images of six classes, predicted well and badly; the last class is never named."""
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(CLASSES), [60, 50, 40, 30, 20, 10])
    wrong = generator.integers(0, CLASSES - 1, labels.size)
    predictions = np.where(generator.random(labels.size) < 0.6, labels, wrong)
    predictions[predictions == CLASSES - 1] = 0
    return labels, predictions, generator.exponential(size=labels.size)


def bootstrap_with_scipy(labels, values, statistic):
    """Draw within each class, as several unpaired samples are drawn."""
    groups = [values[labels == label] for label in range(CLASSES)]

    def compute(*drawn):
        return statistic(labels, np.concatenate(drawn))

    found = stats.bootstrap(
        groups,
        compute,
        paired=False,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(2),
    )
    return found.confidence_interval


@pytest.mark.parametrize(
    "name, position, average",
    [
        ("precision_macro", 0, "macro"),
        ("recall_macro", 1, "macro"),
        ("f1_macro", 2, "macro"),
        ("f1_weighted", 2, "weighted"),
    ],
)
def test_intervals_of_class_averages_agree_with_scipy(predictions, name, position, average):
    labels, predicted, _ = predictions

    def score(true, drawn):
        # scikit-learn's own, as checked below, but fast enough for thousands of resamples.
        hits = np.bincount(true[true == drawn], minlength=CLASSES)
        support, named = (np.bincount(ids, minlength=CLASSES) for ids in (true, drawn))
        scores = (hits / np.maximum(named, 1), hits / support, 2 * hits / (support + named))
        return np.average(scores[position], weights=support if average == "weighted" else None)

    assert score(labels, predicted) == pytest.approx(
        precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)[
            position
        ]
    )
    low, high = bootstrap_headline(labels, predicted, CLASSES)[name]
    expected = bootstrap_with_scipy(labels, predicted, score)
    assert low == pytest.approx(expected.low, abs=0.012)
    assert high == pytest.approx(expected.high, abs=0.012)


def test_intervals_of_means_agree_with_scipy(predictions):
    labels, predicted, losses = predictions
    hits = losses < 1.2
    found = bootstrap_headline(labels, predicted, CLASSES, hits=hits, losses=losses)
    for name, values in (
        ("accuracy", labels == predicted),
        ("top5_accuracy", hits),
        ("loss", losses),
    ):
        expected = bootstrap_with_scipy(labels, values, lambda _, drawn: drawn.mean())
        assert found[name] == pytest.approx((expected.low, expected.high), abs=0.015), name


def test_the_same_seed_gives_the_same_intervals(predictions):
    labels, predicted, losses = predictions
    one, other = (bootstrap_headline(labels, predicted, CLASSES, losses=losses) for _ in range(2))
    assert one == other
    assert one != bootstrap_headline(labels, predicted, CLASSES, losses=losses, seed=1)


def test_degenerate_splits_have_intervals_without_width():
    labels = np.array([0, 1, 1, 2])
    perfect = bootstrap_headline(labels, labels, 3, resamples=50)
    assert set(perfect.values()) == {(1.0, 1.0)}
    wrong = bootstrap_headline(labels, (labels + 1) % 3, 3, resamples=50)
    assert set(wrong.values()) == {(0.0, 0.0)}
    one = bootstrap_headline([1], [1], 3, hits=[True], losses=[0.25], resamples=50)
    assert one["accuracy"] == one["f1_macro"] == one["top5_accuracy"] == (1.0, 1.0)
    assert one["loss"] == (0.25, 0.25)


def test_what_cannot_be_drawn_is_an_error():
    with pytest.raises(ValueError, match="at least one image"):
        bootstrap_headline(np.array([], dtype=int), np.array([], dtype=int), 3)
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_headline([0], [0], 1, resamples=0)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_headline([0], [0], 1, confidence=1)
    with pytest.raises(ValueError, match="finite"):
        bootstrap_headline([0], [0], 1, losses=[np.nan])
    with pytest.raises(ValueError, match="one value per image"):
        bootstrap_headline([0], [0], 1, hits=[True, False])
