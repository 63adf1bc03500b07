"""The decision rule: each verdict, and the tests behind it against SciPy."""

import numpy as np
import pytest
from scipy import stats

from siglip_flowers.experiment.verdict import (
    assess_accuracy,
    assess_steadiness,
    describe_claim,
    describe_finding,
    sign_flip_p,
)
from siglip_flowers.metrics.statistics import PairedDifference


def make_difference(low, high, p, seeds=(0.0, 0.0)):
    mean = (low + high) / 2
    differences = tuple(mean + value for value in seeds)
    return PairedDifference(mean, low, high, p, differences, len(seeds), 1000, 10_000, 0.95)


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
    assert assess_steadiness(siglip, baseline).verdict == verdict


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
        "Accuracy: +1.6 points (95 % interval +0.2 to +3.0, p < 0.001): shown."
    )
    steadier = assess_steadiness([0.1] * 8, [0.3] * 8)
    assert "-0.2000 nats" in describe_finding(steadier, "Steadiness", 1, "nats")
    assert "is shown: accuracy, shown; steadiness, shown." in describe_claim(gain, steadier)
    unknown = assess_steadiness([np.nan] * 8, [0.3] * 8)
    assert "is not shown: accuracy, shown; steadiness, not measur" in describe_claim(gain, unknown)
