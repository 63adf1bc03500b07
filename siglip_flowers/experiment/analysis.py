"""What the finished runs show: figures of every arm, differences between arms, and verdicts."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siglip_flowers.base.errors import RunError
from siglip_flowers.experiment.plan import Plan, Rates
from siglip_flowers.experiment.records import Record
from siglip_flowers.experiment.runs import CONSTANT_UNTIL, WARMUP
from siglip_flowers.experiment.statistics import (
    Finding,
    assess_accuracy,
    assess_measure,
    simulate_power,
    steadiness,
)
from siglip_flowers.metrics.statistics import (
    Interval,
    crossed_bootstrap,
    holm,
    mean_interval,
    paired_bootstrap,
)


@dataclass(frozen=True)
class Arm:
    """An arm: how its runs were trained, each measure of each run, and over the seeds."""

    rates: Rates
    epochs: int
    seeds: list[int]
    values: dict[str, list[float]]
    over_seeds: dict[str, Interval]


@dataclass(frozen=True)
class Comparison:
    """An arm minus another, over the seeds that both have."""

    minus: str
    accuracy: Finding
    seed_differences: tuple[float, ...]
    measures: dict[str, Finding]


@dataclass(frozen=True)
class Analysis:
    """What an experiment found.

    Attributes:
        claim: The two arms of the claim, the baseline first.
        epochs: The chosen length.
        over_fitted: Whether both fit the training images at that length.
        arms: The finished arms by name, those of the claim first.
        comparisons: Differences by arm.
        contrasts: Loss, head and interaction: one family of tests, corrected (Holm).
        power: How often the rule shows the claimed gain at the spread of the tuning seeds.
        detectable: The gain that it would show in 90% of experiments.
    """

    claim: tuple[str, str]
    epochs: int
    over_fitted: bool
    arms: dict[str, Arm]
    comparisons: dict[str, Comparison]
    contrasts: dict[str, Finding]
    power: float
    detectable: float


def analyze(plan: Plan) -> Analysis:
    """Compare the finished arms; those of the part ``others`` may be missing.

    Raises:
        RunError: A record is damaged, or the claim's arms were tested on different images.
    """
    options = plan.options
    baseline, siglip = plan.choose_claim().values()
    names = dict.fromkeys([baseline, siglip, *options.factorial, *options.further])
    records = {name: [plan.find(run) for run in plan.list_runs(name)] for name in names}
    found = {
        name: [record for record in each if record is not None]
        for name, each in records.items()
        if None not in each
    }
    arms = {name: describe_arm(plan, name, each) for name, each in found.items()}
    comparisons = {}
    for name in found:
        further = options.further_arms.get(name)
        minus = (further and further.minus) or baseline
        if name == minus or minus not in found:
            continue
        # An exploratory arm may have other data than the one it would be compared to.
        if further is None or found[name][0].images == found[minus][0].images:
            comparisons[name] = compare(arms, found, name, minus)
    epochs, over_fitted = plan.choose_length()
    first = found[baseline][0]
    power, detectable = simulate_power(
        *measure_spread(plan, (baseline, siglip), epochs),
        options.claim_seeds,
        len(first.unpack_correct()),
        first.facts["validation_images"],
    )
    cells = [found[name] for name in options.factorial if name in found]
    contrasts = assess_contrasts(cells) if len(cells) == len(options.factorial) == 4 else {}
    claim = (baseline, siglip)
    return Analysis(claim, epochs, over_fitted, arms, comparisons, contrasts, power, detectable)


def describe_arm(plan: Plan, name: str, records: list[Record]) -> Arm:
    """Return the measures of an arm."""
    runs, measured = plan.list_runs(name), [measure_run(record) for record in records]
    values = {key: [each[key] for each in measured] for key in measured[0]}
    over_seeds = {key: mean_interval(each) for key, each in values.items()}
    return Arm(runs[0].rates, runs[0].epochs, [run.seed for run in runs], values, over_seeds)


def measure_run(record: Record) -> dict[str, float]:
    """Return the measures of a run: of its last weights, and some of its best."""
    curve = {name: np.asarray(values) for name, values in record.curve.items()}
    shares = curve["step"] / curve["step"][-1]
    constant = (shares >= WARMUP) & (shares <= CONSTANT_UNTIL)
    raw, fitted = curve["validation_nll"], curve["validation_fitted_nll"]
    last, best = record.last, record.best
    return {
        "test_accuracy": last["test_accuracy"],
        "test_macro": last["test_macro"],
        "train_accuracy": last["train_accuracy"],
        "gap": last["train_macro"] - last["validation_macro"],
        "rise": float(raw[-1] - raw.min()),
        "fitted_rise": float(fitted[-1] - fitted.min()),
        "steadiness": steadiness(raw[constant]),
        "fitted_steadiness": steadiness(fitted[constant]),
        "best_test_accuracy": best["test_accuracy"],
        "best_gap": best["train_macro"] - best["validation_macro"],
        "best_rise": float(raw[curve["validation_accuracy"].argmax()] - raw.min()),
    }


def stack_correct(records: list[Record], count: int) -> NDArray[np.bool_]:
    """Return whether each of the first runs is right on each test image: (count, N)."""
    return np.stack([record.unpack_correct() for record in records[:count]])


def compare(
    arms: dict[str, Arm], records: dict[str, list[Record]], name: str, minus: str
) -> Comparison:
    """Compare two arms, paired by seed and test image.

    Raises:
        RunError: Runs that were not tested on the same images.
    """
    if len({record.images for record in (*records[name], *records[minus])}) > 1:
        raise RunError(
            f"The arms {name!r} and {minus!r} were tested on different images. Repeat the "
            "experiment in another --output_dir."
        )
    count = min(len(records[name]), len(records[minus]))
    correct, other = (stack_correct(records[each], count) for each in (name, minus))
    difference = paired_bootstrap(correct, other)
    measures = {
        key: assess_measure(values[:count], arms[minus].values[key][:count])
        for key, values in arms[name].values.items()
    }
    return Comparison(minus, assess_accuracy(difference), difference.seed_differences, measures)


def assess_contrasts(cells: list[list[Record]]) -> dict[str, Finding]:
    """Test loss, head and interaction of two losses and two heads as one family.

    cells: The runs of the first loss with each head, then of the second.
    """
    count = min(map(len, cells))
    correct = np.stack([stack_correct(records, count) for records in cells]).astype(np.float64)
    weights = {
        "loss": (-0.5, -0.5, 0.5, 0.5),
        "head": (-0.5, 0.5, -0.5, 0.5),
        "interaction": (1, -1, -1, 1),
    }
    found = [crossed_bootstrap(np.tensordot(each, correct, axes=1)) for each in weights.values()]
    corrected = holm([difference.p_value for difference in found]).tolist()
    # No size is claimed for them, so that they are shown, the opposite, or not shown.
    return {
        name: assess_accuracy(dataclasses.replace(difference, p_value=p), claimed=-np.inf)
        for name, difference, p in zip(weights, found, corrected, strict=True)
    }


def measure_spread(plan: Plan, claim: tuple[str, str], epochs: int) -> tuple[float, float]:
    """Return standard deviation and mean of the validation accuracy at the tuning seeds.

    The deviation is that between runs of one arm, pooled over both; the mean is the baseline's.
    """
    found = [plan.get(plan.list_tuned(arm, epochs)) for arm in claim]
    scores = [[record.last["validation_accuracy"] for record in records] for records in found]
    spread = np.var(scores, axis=1, ddof=1).mean() ** 0.5 if len(scores[0]) > 1 else 0.0
    return float(spread), float(np.mean(scores[0]))
