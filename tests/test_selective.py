"""Selective prediction, against plain loops and on cases with known answers."""

import numpy as np
import pytest

from siglip_flowers.metrics.calibration import (
    area_under_risk_coverage,
    best_area_under_risk_coverage,
    coverage_at_risk,
    risk_coverage,
)


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


def test_known_answers():
    confidence = np.linspace(1, 0, 10)
    assert area_under_risk_coverage(confidence, np.ones(10, dtype=bool)) == 0
    assert area_under_risk_coverage(confidence, np.zeros(10, dtype=bool)) == 1
    assert coverage_at_risk(confidence, np.zeros(10, dtype=bool), 0.5) == 0
    # The accuracy is all that a constant confidence tells.
    right = np.arange(10) < 7
    assert area_under_risk_coverage(np.ones(10), right) == pytest.approx(0.3)
    best = best_area_under_risk_coverage(right)
    assert best < 0.3
    assert best == area_under_risk_coverage(confidence, right)
    assert best == pytest.approx(sum(max(0, kept - 7) / kept for kept in range(1, 11)) / 10)


def test_what_cannot_be_measured_is_an_error():
    with pytest.raises(ValueError, match="confidence"):
        risk_coverage([], np.array([], dtype=bool))
    with pytest.raises(ValueError, match="finite"):
        risk_coverage([np.nan], [True])
