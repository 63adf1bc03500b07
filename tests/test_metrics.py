"""Metric functions and ``evaluate`` modules against scikit-learn, torch and by hand."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from siglip_flowers.base.errors import RunError
from siglip_flowers.metrics import classification
from siglip_flowers.metrics.classification import (
    F1,
    Accuracy,
    Precision,
    Recall,
    TopKAccuracy,
    compute_metrics,
)

# scikit-learn remarks on matrices of one class.
pytestmark = pytest.mark.filterwarnings("ignore:A single label was found")

REPOSITORY = Path(__file__).resolve().parents[1]

DEGENERATE = {
    "a class never predicted": ([0, 1, 2, 2], [0, 1, 1, 1], 3),
    "a class absent from the labels but predicted": ([0, 0, 1], [0, 2, 1], 3),
    "a class absent from both": ([0, 3, 3, 0], [3, 3, 0, 0], 5),
    "one class": ([0, 0, 0], [0, 0, 0], 1),
    "one image": ([4], [2], 6),
    "all wrong": ([0, 1, 2], [1, 2, 0], 3),
    "all right": ([2, 0, 1], [2, 0, 1], 3),
    "always the same prediction": ([0, 1, 2, 3], [0, 0, 0, 0], 4),
}


def softmax_nll(logits, labels):
    return classification.softmax_losses(logits, labels).mean()


def sigmoid_loss(logits, labels):
    return classification.sigmoid_losses(logits, labels).mean()


def top_k_accuracy(labels, scores, k):
    return classification.are_in_top_k(labels, scores, k).mean()


def assert_agrees_with_sklearn(labels, predictions, num_classes):
    close = {"rtol": 0, "atol": 1e-12}
    classes = list(range(num_classes))
    np.testing.assert_array_equal(
        classification.confusion_matrix(labels, predictions, num_classes),
        reference.confusion_matrix(labels, predictions, labels=classes),
    )
    np.testing.assert_allclose(
        classification.accuracy(labels, predictions),
        reference.accuracy_score(labels, predictions),
        **close,
    )
    for average in ("macro", "weighted"):
        expected = reference.precision_recall_fscore_support(
            labels, predictions, average=average, zero_division=0
        )[:3]
        got = classification.precision_recall_f1(labels, predictions, num_classes, average)
        np.testing.assert_allclose(got, expected, **close)
        for module, figure in zip((Precision(), Recall(), F1()), expected, strict=True):
            result = module.compute(predictions=predictions, references=labels, average=average)
            np.testing.assert_allclose(result[module.name], figure, **close)
    expected = reference.precision_recall_fscore_support(
        labels, predictions, labels=classes, average=None, zero_division=0
    )
    got = classification.per_class_scores(labels, predictions, num_classes)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, **close)


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


def test_top_k_agrees_with_sklearn_without_ties():
    random = np.random.default_rng(1)
    scores = random.normal(size=(400, 11))
    labels = random.integers(0, 11, 400)
    labels[:11] = range(11)
    for k in range(1, 11):
        assert top_k_accuracy(labels, scores, k) == pytest.approx(
            reference.top_k_accuracy_score(labels, scores, k=k), abs=1e-12
        )
    assert top_k_accuracy(labels, scores, 11) == 1.0


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


@pytest.mark.parametrize("k", [0, 4, -1])
def test_top_k_outside_the_number_of_classes_is_refused(k):
    with pytest.raises(ValueError, match=rf"\[1, 3\].* not {k}\."):
        top_k_accuracy([0], [[0.1, 0.2, 0.3]], k)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_losses_agree_with_torch(scale):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(50, 9, generator=generator, dtype=torch.float64) * scale
    labels = torch.randint(0, 9, (50,), generator=generator)
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    assert softmax_nll(logits.numpy(), labels.numpy()) == pytest.approx(expected, rel=1e-12)
    signs = 2 * torch.nn.functional.one_hot(labels, 9) - 1
    expected = -torch.nn.functional.logsigmoid(signs * logits).sum(dim=1).mean()
    assert sigmoid_loss(logits.numpy(), labels.numpy()) == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    logits = np.zeros((3, 2))
    logits[1, 0] = bad
    for compute in (
        lambda: softmax_nll(logits, [0, 1, 0]),
        lambda: sigmoid_loss(logits, [0, 1, 0]),
        lambda: top_k_accuracy([0, 1, 0], logits, 1),
        lambda: compute_metrics(logits, np.array([0, 1, 0])),
    ):
        with pytest.raises(RunError, match=r"1 of 3 images are not finite \(the first is image 1"):
            compute()


def test_per_class_rows_hold_plain_numbers_for_every_name():
    rows = classification.per_class_rows([0, 0, 1], [0, 1, 1], ["rose", "lotus", "daffodil"])
    assert rows == [
        {
            "label": 0,
            "name": "rose",
            "support": 2,
            "precision": 1.0,
            "recall": 0.5,
            "f1": pytest.approx(2 / 3, abs=1e-12),
        },
        {
            "label": 1,
            "name": "lotus",
            "support": 1,
            "precision": 0.5,
            "recall": 1.0,
            "f1": pytest.approx(2 / 3, abs=1e-12),
        },
        {"label": 2, "name": "daffodil", "support": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0},
    ]
    assert {type(value) for row in rows for value in row.values()} == {int, float, str}


def test_modules_accumulate_batches_and_describe_themselves():
    metric = Accuracy()
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    metric.add_batch(predictions=np.array([2]), references=np.array([2]))
    metric.add(prediction=1, reference=1)
    assert metric.compute() == {"accuracy": 0.75}
    for module in (Accuracy(), TopKAccuracy(), Precision(), Recall(), F1()):
        assert len(module.description) > 20
        assert "class" in module.inputs_description
        assert module.features["references"].dtype == "int64"


def test_top_k_module_takes_score_lists_and_arrays():
    scores = [[0.1, 0.5, 0.4], [0.6, 0.3, 0.1]]
    for form in (scores, np.array(scores), np.array(scores, dtype=np.float32)):
        result = TopKAccuracy().compute(predictions=form, references=[2, 2], k=2)
        assert result == {"top_k_accuracy": 0.5}


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
        "accuracy": reference.accuracy_score(labels, predictions),
        "top5_accuracy": reference.top_k_accuracy_score(labels, logits, k=5),
    }
    for average in ("macro", "weighted"):
        scores = reference.precision_recall_fscore_support(
            labels, predictions, average=average, zero_division=0
        )
        for name, score in zip(("precision", "recall", "f1"), scores[:3], strict=True):
            expected[f"{name}_{average}"] = score
    metrics = compute_metrics(logits, labels, activation)
    assert metrics == pytest.approx(expected, abs=1e-12)
    assert {type(value) for value in metrics.values()} == {float}


def test_compute_metrics_with_fewer_than_five_classes_takes_all_of_them_as_top5():
    metrics = compute_metrics(np.eye(3, dtype=np.float32), np.array([0, 1, 0]))
    assert metrics["top5_accuracy"] == 1.0
    assert metrics["accuracy"] == pytest.approx(2 / 3)


def test_compute_metrics_at_once_in_threads_keeps_results_apart():
    inputs = [
        (np.random.default_rng(seed).normal(size=(200, 6)), np.arange(200) % 6) for seed in range(8)
    ]
    alone = [compute_metrics(*each) for each in inputs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda each: compute_metrics(*each), inputs)) == alone


@pytest.mark.slow
def test_processes_at_once_need_no_network_and_leave_no_files(tmp_path):
    script = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError("network access")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import numpy as np
from siglip_flowers.metrics.classification import compute_metrics
for _ in range(3):
    print(compute_metrics(np.eye(7), np.arange(7)[::-1].copy())["accuracy"])
"""
    working_dir, home = tmp_path / "work", tmp_path / "home"
    working_dir.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))
    }
    environment |= {
        "HOME": str(home),
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=working_dir,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.split() == [str(1 / 7)] * 3
    assert list(working_dir.iterdir()) == []
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert not list(home.rglob("metrics"))
