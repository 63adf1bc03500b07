"""Metric functions and the ``evaluate`` module against scikit-learn, torch and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from siglip_flowers.base.errors import RunError
from siglip_flowers.metrics import classification
from siglip_flowers.metrics.classification import ClassificationMetrics, compute_metrics

# scikit-learn remarks on matrices of one class.
pytestmark = pytest.mark.filterwarnings("ignore:A single label was found")


DEGENERATE = {
    "a class never predicted": ([0, 1, 2, 2], [0, 1, 1, 1], 3),
    "a class absent from the labels but predicted": ([0, 0, 1], [0, 2, 1], 3),
    "a class absent from both": ([0, 3, 3, 0], [3, 3, 0, 0], 5),
    "one class": ([0, 0, 0], [0, 0, 0], 1),
    "one image": ([4], [2], 6),
    "all wrong": ([0, 1, 2], [1, 2, 0], 3),
    "always the same prediction": ([0, 1, 2, 3], [0, 0, 0, 0], 4),
}


def top_k_accuracy(labels, scores, k):
    return classification.are_in_top_k(labels, scores, k).mean()


def assert_agrees_with_sklearn(labels, predictions, num_classes):
    close = {"rtol": 0, "atol": 1e-12}
    rows = classification.per_class_rows(labels, predictions, list(map(str, range(num_classes))))
    assert all(type(row["support"]) is int for row in rows)
    expected = reference.precision_recall_fscore_support(
        labels, predictions, labels=range(num_classes), average=None, zero_division=0
    )
    for name, theirs in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose([row[name] for row in rows], theirs, **close)
    found = ClassificationMetrics().compute(predictions=predictions, references=labels)
    figures = {"accuracy": reference.accuracy_score(labels, predictions)}
    for average in ("macro", "weighted"):
        for name in ("precision", "recall", "f1"):
            score = getattr(reference, f"{name}_score")
            figures[f"{name}_{average}"] = score(
                labels, predictions, average=average, zero_division=0
            )
    assert found == pytest.approx(figures, abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "predictions", "num_classes"), DEGENERATE.values(), ids=DEGENERATE.keys()
)
def test_degenerate_inputs_agree_with_sklearn(labels, predictions, num_classes):
    assert_agrees_with_sklearn(labels, predictions, num_classes)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 12), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_random_inputs_agree_with_sklearn(num_classes, count, seed):
    random = np.random.default_rng(seed)
    labels, predictions = random.integers(0, num_classes, (2, count))
    assert_agrees_with_sklearn(labels, predictions, num_classes)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_top_k_with_ties_follows_a_stable_sort_and_top_1_the_argmax(seed):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 3, (40, 6)).astype(float)
    labels = random.integers(0, 6, 40)
    order = np.argsort(-scores, axis=1, kind="stable")
    for k in (1, 3, 5):
        expected = np.mean([label in row[:k] for label, row in zip(labels, order, strict=True)])
        assert top_k_accuracy(labels, scores, k) == pytest.approx(expected, abs=1e-12)
    assert top_k_accuracy(labels, scores, 1) == classification.accuracy(
        labels, scores.argmax(axis=1)
    )


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_losses_agree_with_torch(scale):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(50, 9, generator=generator, dtype=torch.float64) * scale
    labels = torch.randint(0, 9, (50,), generator=generator)
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    found = classification.activation_losses(logits.numpy(), labels.numpy(), "softmax").mean()
    assert found == pytest.approx(expected, rel=1e-12)
    signs = 2 * torch.nn.functional.one_hot(labels, 9) - 1
    expected = -torch.nn.functional.logsigmoid(signs * logits).sum(dim=1).mean()
    found = classification.activation_losses(logits.numpy(), labels.numpy(), "sigmoid").mean()
    assert found == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad, activation):
    logits = np.zeros((3, 2))
    logits[1, 0] = bad
    with pytest.raises(RunError, match=r"1 of 3 images are not finite \(the first is image 1"):
        compute_metrics(logits, np.array([0, 1, 0]), activation)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_compute_metrics_agrees_with_independent_references(activation):
    random = np.random.default_rng(5)
    labels = random.integers(0, 8, 300)
    logits = random.normal(size=(300, 8)) + 1.5 * np.eye(8)[labels]
    predictions = logits.argmax(axis=1)
    nll = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
    signs = torch.tensor(2 * np.eye(8)[labels] - 1)
    sigmoid = -torch.nn.functional.logsigmoid(signs * torch.tensor(logits)).sum(1).mean().item()
    expected = {
        "loss": nll if activation == "softmax" else sigmoid,
        "nll": nll,
        "top5_accuracy": reference.top_k_accuracy_score(labels, logits, k=5),
        **ClassificationMetrics().compute(predictions=predictions, references=labels),
    }
    metrics = compute_metrics(logits, labels, activation)
    assert metrics == pytest.approx(expected, abs=1e-12)
    assert {type(value) for value in metrics.values()} == {float}


def test_compute_metrics_with_fewer_than_five_classes_takes_all_of_them_as_top5():
    metrics = compute_metrics(np.eye(3, dtype=np.float32), np.array([0, 1, 0]))
    assert metrics["top5_accuracy"] == 1.0
    assert metrics["accuracy"] == pytest.approx(2 / 3)
