"""Measures of curves and the decision rule, against scikit-learn, SciPy and cases by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import log_softmax
from sklearn.isotonic import IsotonicRegression

from siglip_flowers.experiment.statistics import (
    assess_accuracy,
    assess_measure,
    describe_claim,
    describe_finding,
    fit_valley,
    simulate_power,
    steadiness,
)
from siglip_flowers.metrics.calibration import cross_fitted_nll
from siglip_flowers.metrics.statistics import PairedDifference, sign_flip_p

LOSSES = st.lists(st.floats(0, 10).map(lambda x: round(x, 3)), min_size=4, max_size=15)


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


def make_difference(low, high, p, seeds=(0.0, 0.0)):
    mean = (low + high) / 2
    differences = tuple(mean + value for value in seeds)
    return PairedDifference(mean, low, high, p, differences)


@pytest.mark.parametrize(
    ("low", "high", "p", "verdict"),
    [
        (0.002, 0.030, 0.01, "shown"),
        (0.016, 0.030, 0.01, "shown"),
        (0.002, 0.014, 0.01, "less than claimed"),
        (-0.030, -0.002, 0.01, "the opposite shown"),
        (-0.010, 0.014, 0.6, "claim ruled out"),
        (-0.010, 0.030, 0.6, "no difference shown"),
        (0.001, 0.030, 0.06, "no difference shown"),
    ],
)
def test_each_verdict_on_accuracy(low, high, p, verdict):
    assert assess_accuracy(make_difference(low, high, p)).verdict == verdict


def test_seeds_must_agree_with_the_bootstrap():
    spread = make_difference(0.01, 0.03, 0.001, seeds=(-0.05, 0.0, 0.05))
    found = assess_accuracy(spread)
    low, high = stats.t.interval(0.95, 2, loc=0.02, scale=0.05 / 3**0.5)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.verdict == "no difference shown"
    one = assess_accuracy(make_difference(0.01, 0.03, 0.001, seeds=(0.0,)))
    assert one.verdict == "no difference shown"


@pytest.mark.parametrize(
    ("siglip", "baseline", "verdict"),
    [
        (np.linspace(0.1, 0.2, 8), np.linspace(0.3, 0.5, 8), "shown"),
        (np.linspace(0.3, 0.5, 8), np.linspace(0.1, 0.2, 8), "the opposite shown"),
        ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], "no difference shown"),
        ([0.0, 0.0, 0.1], [0.0, 0.0, 0.2], "not measurable"),
        ([0.0, 0.0, 0.1], [0.1, 0.1, 0.2], "no difference shown"),
        ([np.nan] * 3, [0.1] * 3, "not measurable"),
    ],
)
def test_each_verdict_on_steadiness(siglip, baseline, verdict):
    assert assess_measure(siglip, baseline).verdict == verdict


@pytest.mark.parametrize("count", [2, 3, 8, 12])
def test_sign_flips_are_those_of_scipy(count):
    values = np.random.default_rng(count).normal(0.5, 1, count)
    reference = stats.permutation_test((values,), np.mean, permutation_type="samples").pvalue
    assert sign_flip_p(values) == pytest.approx(reference)
    # The floor that the report states.
    assert sign_flip_p([1.0] * count) == 2 / 2**count


def test_sentences_have_the_figures_and_the_verdict():
    gain = assess_accuracy(make_difference(0.002, 0.030, 0.0002))
    assert describe_finding(gain, "Accuracy", 100, "points") == (
        "Accuracy: +1.6 points (95% interval +0.2 to +3.0, p < 0.001): shown."
    )
    steadier = assess_measure([0.1] * 8, [0.3] * 8)
    assert "-0.2000 nats" in describe_finding(steadier, "Steadiness", 1, "nats")
    assert describe_claim(gain, steadier).startswith("The claim is shown. Accuracy: shown; ")
    unknown = assess_measure([np.nan] * 8, [0.3] * 8)
    assert "is not shown. Accuracy: shown; steadiness of the" in describe_claim(gain, unknown)


def test_the_cross_fitted_loss_does_not_know_the_scale_of_the_logits():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 400)
    logits = generator.normal(size=(400, 5)) + 2 * np.eye(5)[labels]
    found = cross_fitted_nll(logits, labels)
    assert cross_fitted_nll(30 * logits, labels) == pytest.approx(found, rel=1e-4)
    # The best temperature for all images, from a grid, is a little better than that of halves.
    rows = np.arange(400)
    grid = np.exp(np.linspace(-2, 2, 400))
    losses = [-np.mean(log_softmax(logits * weight, axis=1)[rows, labels]) for weight in grid]
    assert min(losses) <= found < min(losses) + 0.01
    assert found < -np.mean(log_softmax(30 * logits, axis=1)[rows, labels])


def test_power_is_that_of_a_t_test_where_the_spread_of_runs_dominates():
    gain, spread, seeds = 0.08, 0.05, 8
    settings = {"repetitions": 150, "resamples": 199}
    found, detectable = simulate_power(spread, 0.5, seeds, 500, gain=gain, **settings)
    shift = gain / (spread * (2 / seeds) ** 0.5)
    critical = stats.t.ppf(0.975, seeds - 1)
    assert found == pytest.approx(stats.nct.sf(critical, seeds - 1, shift), abs=0.12)
    again, _ = simulate_power(spread, 0.5, seeds, 500, gain=detectable, **settings)
    assert again == pytest.approx(0.9, abs=0.05)
    settings["repetitions"] = 100
    assert simulate_power(spread, 0.5, seeds, 300, gain=0.0, **settings)[0] <= 0.06
    # Of the same measured spread, more is noise if it was measured on fewer images.
    fewer, _ = simulate_power(spread, 0.5, seeds, 500, 100, gain=gain, **settings)
    assert fewer > found
