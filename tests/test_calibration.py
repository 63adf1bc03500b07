"""Calibration and selective prediction, against other libraries and cases with known answers."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from siglip_flowers.metrics.calibration import (
    area_under_risk_coverage,
    brier_score,
    coverage_at_risk,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
    risk_coverage,
    to_probabilities,
)
from siglip_flowers.metrics.classification import activation_losses


@pytest.fixture
def predictions():
    """500 images and 7 classes: logits, labels."""
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 7, 500)
    logits = generator.normal(size=(500, 7))
    logits[np.arange(500), labels] += 1.5
    return 3 * logits, labels


def get_confidence(logits, labels):
    return softmax(logits, axis=1).max(axis=1), logits.argmax(axis=1) == labels


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_expected_calibration_error_is_torchmetrics(predictions, bins):
    classification = pytest.importorskip("torchmetrics.functional.classification")
    logits, labels = predictions
    expected = classification.multiclass_calibration_error(
        torch.from_numpy(softmax(logits, axis=1)), torch.from_numpy(labels), 7, n_bins=bins
    )
    confidence, right = get_confidence(logits, labels)
    assert expected_calibration_error(confidence, right, bins) == pytest.approx(
        float(expected), abs=1e-6
    )


@pytest.mark.parametrize(
    "binning, strategy", [("equal_width", "uniform"), ("equal_mass", "quantile")]
)
def test_reliability_bins_are_scikit_learns(predictions, binning, strategy):
    confidence, right = get_confidence(*predictions)
    share, mean = calibration_curve(right, confidence, n_bins=10, strategy=strategy)
    rows = reliability_bins(confidence, right, 10, binning)
    assert [row["accuracy"] for row in rows] == pytest.approx(share.tolist())
    assert [row["confidence"] for row in rows] == pytest.approx(mean.tolist())
    assert sum(row["n"] for row in rows) == 500
    if binning == "equal_mass":
        assert {row["n"] for row in rows} == {50}


def test_brier_score_is_scikit_learns(predictions):
    logits, labels = predictions
    values = softmax(logits, axis=1)
    expected = brier_score_loss(labels, values, labels=np.arange(7), scale_by_half=False)
    assert brier_score(values, labels) == pytest.approx(expected)


def test_the_temperature_minimizes_the_likelihood_and_keeps_the_classes(predictions):
    logits, labels = predictions
    temperature = fit_temperature(logits, labels, "softmax")
    # The logits were three times too large.
    assert temperature > 1.5
    grid = np.exp(np.linspace(-3, 3, 4001))
    losses = [log_loss(labels, softmax(logits / value, axis=1)) for value in grid[::20]]
    found = activation_losses(logits / temperature, labels, "softmax").mean()
    assert found <= min(losses) + 1e-9
    before, after = (to_probabilities(logits, "softmax", value) for value in (1.0, temperature))
    assert (before.argmax(1) == after.argmax(1)).all()
    right = before.argmax(1) == labels
    assert expected_calibration_error(after.max(1), right) < expected_calibration_error(
        before.max(1), right
    )


def test_a_temperature_without_a_best_value_is_1():
    assert fit_temperature(4 * np.eye(3), np.arange(3), "softmax") == 1.0


def test_the_curve_is_that_of_a_loop_over_thresholds():
    generator = np.random.default_rng(0)
    confidence = generator.permutation(200) / 200
    right = generator.random(200) < confidence
    coverage, risk = risk_coverage(confidence, right)
    for threshold in np.unique(confidence):
        kept = confidence >= threshold
        place = kept.sum() - 1
        assert coverage[place] == pytest.approx(kept.mean())
        assert risk[place] == pytest.approx(1 - right[kept].mean())
    assert area_under_risk_coverage(confidence, right) == pytest.approx(risk.mean())
    allowed = [t for t in np.unique(confidence) if (~right[confidence >= t]).mean() <= 0.2]
    assert coverage_at_risk(confidence, right, 0.2) == pytest.approx(
        (confidence >= min(allowed)).mean()
    )


def test_ties_do_not_depend_on_the_order_of_the_images():
    right = np.array([True, False, True, False])
    confidence = np.array([0.9, 0.5, 0.5, 0.5])
    expected = risk_coverage(confidence, right)[1]
    for order in ([3, 2, 1, 0], [0, 2, 1, 3]):
        assert risk_coverage(confidence[order], right[order])[1] == pytest.approx(expected)
    assert expected.tolist() == pytest.approx([0, 1 / 3, 4 / 9, 1 / 2])
    assert coverage_at_risk(confidence, right, 0.4) == 0.25
    # Exactly the allowed share of errors, in images of one confidence.
    assert coverage_at_risk(np.full(20, 0.5), np.arange(20) > 0, 0.05) == 1
