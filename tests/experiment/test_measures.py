"""Measures of training curves, against scikit-learn and cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from siglip_flowers.experiment.measures import fit_valley, loss_rise, steadiness

LOSSES = st.lists(st.floats(0, 10).map(lambda x: round(x, 3)), min_size=4, max_size=15)


def test_rise_is_the_end_minus_the_minimum():
    assert loss_rise([3.0, 1.0, 1.25, 1.5]) == 0.5
    assert loss_rise([3.0, 2.0, 1.0]) == 0
    assert np.isnan(loss_rise([]))


def test_steadiness_by_hand():
    # Falling but for one step back from 1 to 2: the trend has 1.5 twice there.
    losses = [4.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    assert steadiness(losses) == pytest.approx((0.5 / 8) ** 0.5)
    assert np.isnan(steadiness([1.0, 2.0, 1.0]))


@pytest.mark.parametrize(
    "losses",
    [
        np.linspace(4, 1, 20),
        np.linspace(1, 4, 20),
        np.full(20, 2.5),
        4.6 * np.exp(-np.arange(20) / 3),
        (np.arange(20) - 7.0) ** 2,
        [4.0, 3.0, 3.0, 3.0, 2.0],
    ],
    ids=["falling line", "rising line", "flat", "exponential", "valley", "stairs"],
)
def test_what_never_goes_back_is_steady(losses):
    assert steadiness(losses) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("points, expected", [(5, 0.34), (10, 0.60), (20, 0.75)])
def test_share_of_white_noise_that_is_seen_is_as_documented(points, expected):
    noise = np.random.default_rng(0).standard_normal((150, points))
    assert np.mean([steadiness(row) for row in noise]) == pytest.approx(expected, abs=0.06)


@given(LOSSES, st.floats(-100, 100), st.floats(0.01, 100))
@settings(max_examples=15, deadline=None)
def test_invariances(losses, constant, factor):
    y = np.array(losses)
    nats = steadiness(y)
    assert 0 <= nats <= 0.5 * np.ptp(y) + 1e-12
    assert steadiness(y + constant) == pytest.approx(nats, abs=1e-9)
    assert steadiness(y[::-1]) == pytest.approx(nats, abs=1e-9)
    assert steadiness(y * factor) == pytest.approx(nats * factor, abs=1e-9)


@given(LOSSES)
@settings(max_examples=10, deadline=None)
def test_valley_is_the_nearest_of_all_valleys(losses):
    # The shape is checked as such; the distance against scikit-learn's isotonic fits.
    y = np.array(losses)
    fitted = fit_valley(y)
    turn = int(np.argmin(fitted))
    assert (np.diff(fitted[: turn + 1]) <= 1e-12).all()
    assert (np.diff(fitted[turn:]) >= -1e-12).all()
    errors = []
    for cut in range(len(y) + 1):
        error = 0.0
        for piece, rising in ((y[:cut], False), (y[cut:], True)):
            if len(piece):
                x = np.arange(len(piece))
                fit = IsotonicRegression(increasing=rising).fit_transform(x, piece)
                error += float(((piece - fit) ** 2).sum())
        errors.append(error)
    assert ((y - fitted) ** 2).sum() == pytest.approx(min(errors), abs=1e-9)
