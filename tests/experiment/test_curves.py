"""Measures of training curves, against scikit-learn and cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from siglip_flowers.experiment.curves import fit_valley, loss_rise, overfitting_gap, steadiness


class TestOverfitting:
    def test_gap(self):
        assert overfitting_gap(0.98, 0.80) == pytest.approx(0.18)
        assert overfitting_gap(0.5, 0.6) == pytest.approx(-0.1)

    @pytest.mark.parametrize("pair, name", [((98.0, 0.8), "train"), ((0.9, 80.0), "validation")])
    def test_per_cent_is_refused(self, pair, name):
        with pytest.raises(ValueError, match=f"{name} accuracy must be a fraction"):
            overfitting_gap(*pair)

    def test_rise_is_the_end_minus_the_minimum(self):
        assert loss_rise([3.0, 1.0, 1.25, 1.5]) == 0.5
        assert loss_rise([3.0, 2.0, 1.0]) == 0
        assert loss_rise([3.0]) == 0

    def test_no_loss_and_nan_are_refused(self):
        with pytest.raises(ValueError, match="non-empty"):
            loss_rise([])
        with pytest.raises(ValueError, match="validation loss 1 is nan"):
            loss_rise([1.0, float("nan")])


LOSSES = st.lists(st.floats(0, 10).map(lambda x: round(x, 3)), min_size=4, max_size=15)


class TestSteadiness:
    def test_by_hand(self):
        # Falling but for one step back from 1 to 2: the trend has 1.5 twice there.
        losses = [4.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.0]
        assert steadiness(losses, "loss") == pytest.approx((0.5 / 8) ** 0.5)
        assert steadiness(losses) == pytest.approx((0.5 / 8) ** 0.5 / 4)

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
    @pytest.mark.parametrize("unit", ["range", "loss"])
    def test_is_zero_for_what_never_goes_back(self, losses, unit):
        assert steadiness(losses, unit) == pytest.approx(0, abs=1e-12)

    def test_grows_with_the_noise(self):
        trend = 4 * np.exp(-np.arange(40) / 8)
        noise = np.random.default_rng(0).standard_normal((50, 40))
        clean, low, middle, high = (
            np.mean([steadiness(trend + size * row, "loss") for row in noise])
            for size in (0, 0.05, 0.1, 0.4)
        )
        assert clean < 1e-12
        assert 0.01 < low < 0.05
        assert 2 * low < middle < 0.1
        assert 4 * middle < high < 0.4

    @pytest.mark.parametrize("points, expected", [(5, 0.34), (10, 0.60), (20, 0.75)])
    def test_share_of_white_noise_that_is_seen_is_as_documented(self, points, expected):
        noise = np.random.default_rng(0).standard_normal((150, points))
        seen = np.mean([steadiness(row, "loss") for row in noise])
        assert seen == pytest.approx(expected, abs=0.06)

    def test_overfitting_alone_is_not_unsteady(self):
        losses = [4.0, 2.0, 1.0, 1.5, 2.0, 2.5]
        assert loss_rise(losses) == 1.5
        assert steadiness(losses) == 0

    @given(LOSSES, st.floats(-100, 100), st.floats(0.01, 100))
    @settings(max_examples=15, deadline=None)
    def test_invariances(self, losses, constant, factor):
        y = np.array(losses)
        nats, share = steadiness(y, "loss"), steadiness(y)
        assert 0 <= share <= 0.5 + 1e-12
        assert nats == pytest.approx(share * np.ptp(y), abs=1e-12)
        assert steadiness(y + constant, "loss") == pytest.approx(nats, abs=1e-9)
        assert steadiness(y[::-1], "loss") == pytest.approx(nats, abs=1e-9)
        assert steadiness(y * factor, "loss") == pytest.approx(nats * factor, abs=1e-9)
        assert steadiness(y * factor) == pytest.approx(share, abs=1e-9)

    @given(LOSSES)
    @settings(max_examples=10, deadline=None)
    def test_valley_is_the_nearest_of_all_valleys(self, losses):
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
                    fit = IsotonicRegression(increasing=rising).fit_transform(
                        np.arange(len(piece)), piece
                    )
                    error += float(((piece - fit) ** 2).sum())
            errors.append(error)
        assert ((y - fitted) ** 2).sum() == pytest.approx(min(errors), abs=1e-9)

    @pytest.mark.parametrize("points", [1, 2, 3])
    def test_fewer_than_four_points_are_not_measured(self, points):
        assert np.isnan(steadiness([1.0, 2.0, 1.0][:points]))

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match="validation loss 2 is inf"):
            steadiness([1.0, 2.0, float("inf"), 1.0])
        with pytest.raises(ValueError, match="unit must be 'range' or 'loss', got 'nats'"):
            steadiness([1.0, 2.0, 3.0, 4.0], "nats")
