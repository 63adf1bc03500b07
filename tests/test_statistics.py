"""Statistics against scipy, scikit-learn, full enumeration and cases worked out by hand."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from siglip_flowers.metrics.statistics import (
    PairedDifference,
    conclude,
    holm,
    mcnemar,
    mean_interval,
    paired_bootstrap,
)


def _draw_correct(seeds, images, accuracy, seed):
    return np.random.default_rng(seed).random((seeds, images)) < accuracy


class TestMeanInterval:
    def test_equals_scipy(self):
        values = [0.71, 0.74, 0.69, 0.80]
        interval = mean_interval(values)
        expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
        assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-12)
        assert interval.std == pytest.approx(np.std(values, ddof=1))
        assert interval.n == 4

    def test_one_seed_has_no_interval(self):
        interval = mean_interval([0.5])
        assert interval.mean == 0.5
        assert np.isnan([interval.std, interval.low, interval.high]).all()


class TestPairedBootstrap:
    def test_one_seed_equals_the_scipy_bootstrap_over_images(self):
        a, b = _draw_correct(1, 400, 0.85, 1), _draw_correct(1, 400, 0.80, 2)
        ours = paired_bootstrap(a, b, resamples=20_000)
        theirs = stats.bootstrap(
            (a[0].astype(float) - b[0],),
            np.mean,
            n_resamples=20_000,
            method="percentile",
            rng=np.random.default_rng(3),
        ).confidence_interval
        assert ours.difference == pytest.approx(a.mean() - b.mean())
        assert ours.low == pytest.approx(theirs.low, abs=0.003)
        assert ours.high == pytest.approx(theirs.high, abs=0.003)

    def test_equals_every_possible_resample_of_a_tiny_case(self):
        a = np.array([[1, 1, 0], [1, 0, 1]], dtype=bool)
        b = np.array([[0, 1, 1], [0, 0, 1]], dtype=bool)
        delta = a.astype(int) - b.astype(int)
        every = np.array(
            [
                delta[np.ix_(rows, columns)].mean()
                for rows in itertools.product(range(2), repeat=2)
                for columns in itertools.product(range(3), repeat=3)
            ]
        )  # 4 * 27 equally likely resamples
        result = paired_bootstrap(a, b, resamples=200_000)
        p = min(1.0, 2 * min((every <= 0).mean(), (every >= 0).mean()))
        assert result.p_value == pytest.approx(p, abs=0.01)
        assert result.low == pytest.approx(np.quantile(every, 0.025), abs=1e-9)
        assert result.high == pytest.approx(np.quantile(every, 0.975), abs=1e-9)

    def test_shifts_between_seeds_widen_the_interval(self):
        half = np.zeros((2, 100), dtype=bool)
        steady, shifting = half.copy(), half.copy()
        steady[:, :50] = True
        shifting[0] = True  # one seed wins every image, the other none: same mean
        narrow, wide = paired_bootstrap(steady, half), paired_bootstrap(shifting, half)
        assert narrow.difference == wide.difference == 0.5
        assert narrow.seed_differences == (0.5, 0.5)
        assert wide.seed_differences == (1.0, 0.0)
        assert (wide.low, wide.high) == (0.0, 1.0)
        assert narrow.high - narrow.low < 0.25


class TestMcNemar:
    @staticmethod
    def _make(b, c, both=5, neither=3):
        a = [True] * b + [False] * c + [True] * both + [False] * neither
        other = [False] * b + [True] * c + [True] * both + [False] * neither
        return np.array(a), np.array(other)

    @pytest.mark.parametrize("b, c", [(1, 0), (9, 2), (12, 12)])
    def test_the_test_is_the_binomial_one(self, b, c):
        result = mcnemar(*self._make(b, c))
        assert (result["b"], result["c"]) == (b, c)
        assert result["p_value"] == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-12)


class TestHolm:
    def test_by_hand(self):
        # Sorted .005, .01, .03, .04 times 4, 3, 2, 1; the last is lifted to the one before.
        corrected = holm([0.01, 0.04, 0.03, 0.005])
        assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])


class TestConclude:
    WIN = PairedDifference(0.012, 0.004, 0.020, 0.003, (0.01, 0.012, 0.014))
    ARMS = ("sigmoid with the text head", "the baseline", "test accuracy")

    NOTE = ", one seed, so the spread between seeds is not counted) on test accuracy."

    def test_a_win(self):
        assert conclude(self.WIN, *self.ARMS, 0.003) == (
            "sigmoid with the text head beats the baseline: +1.20 points "
            f"(95% interval +0.40 to +2.00, Holm-corrected p = 0.003{self.NOTE}"
        )

    def test_an_interval_with_zero_shows_nothing(self):
        unclear = replace(self.WIN, difference=-0.003, low=-0.010, high=0.004)
        assert conclude(unclear, "A", "B", "test accuracy", 0.41) == (
            "no difference shown between A and B: -0.30 points "
            f"(95% interval -1.00 to +0.40, Holm-corrected p = 0.41{self.NOTE}"
        )

    @pytest.mark.parametrize(
        "changes, p", [({"low": 0.0}, 0.003), ({"low": -0.001}, 0.001), ({}, 0.05)]
    )
    def test_either_criterion_is_enough_to_show_nothing(self, changes, p):
        sentence = conclude(replace(self.WIN, **changes), *self.ARMS, p)
        assert sentence.startswith("no difference shown between ")
