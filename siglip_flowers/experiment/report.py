"""Write what an experiment found: a table with the conclusion, plots, and JSON."""

import dataclasses
import math
from typing import Any

from siglip_flowers.base.files import write_json, write_text
from siglip_flowers.base.text import count, format_markdown_table
from siglip_flowers.experiment.analysis import Cell, Cells, Comparisons
from siglip_flowers.experiment.options import ExperimentArguments
from siglip_flowers.experiment.plan import list_runs, list_trials
from siglip_flowers.experiment.plots import plot_intervals, plot_loss_band, share_limits
from siglip_flowers.experiment.verdict import (
    CLAIMED_GAIN,
    RULE,
    describe_claim,
    describe_finding,
)
from siglip_flowers.metrics.statistics import Interval

# Measure, heading, factor and decimals.
COLUMNS = (
    ("test_accuracy", "test accuracy, %", 100, 1),
    ("test_macro_accuracy", "macro, %", 100, 1),
    ("gap", "gap, points", 100, 1),
    ("loss_rise", "loss rise", 1, 3),
    ("steadiness", "steadiness", 1, 4),
)
DEFINITIONS = """\
Mean ± standard deviation over seeds, of the weights that a run kept. Differences are the arm minus
the baseline, paired by seed and test image; all but the claim are exploratory.

- **Macro**: the mean of the classes' accuracies.
- **Gap**, points: macro accuracy on training images (unaugmented) minus macro accuracy on the
  validation split.
- **Loss rise**, nats: the last validation loss minus the lowest of the run; 0 if it never turns
  up.
- **Steadiness**, nats, smaller is steadier: root mean square distance of the validation-loss
  curve from its trend, the nearest curve that first falls and then rises; 0 for a curve without a
  wobble.

The validation loss is the softmax negative log-likelihood whatever the arm was trained with, at
each evaluation after the first step.
"""


def write_report(
    options: ExperimentArguments, cells: Cells, comparisons: Comparisons, command: str
) -> list[str]:
    """Write every file of the report and return the sentences of the conclusion."""
    conclusion = draw_conclusion(options, comparisons)
    facts = _describe(options, cells, command)
    write_text(
        options.directory / "table.md",
        format_markdown(options, cells, comparisons, conclusion, facts),
    )
    results = {
        "name": options.name,
        **facts,
        "settings": options,
        "trials": {
            arm: {f"{run.learning_rate:g}": run.score(options) for run in list_trials(options, arm)}
            for arm in options.arms
        },
        "conclusion": conclusion,
        "arms": {
            regime: {arm: _describe_cell(cell) for arm, cell in row.items()}
            for regime, row in cells.items()
        },
        "comparisons": comparisons,
    }
    write_json(options.directory / "results.json", to_plain(results))
    _draw(options, cells, comparisons)
    return conclusion


def draw_conclusion(options: ExperimentArguments, comparisons: Comparisons) -> list[str]:
    """Return a sentence for each half of the claim, one on the whole, and the rule."""
    claim = comparisons[options.claim_regime][options.siglip_arm]
    where = describe_regime(options, options.claim_regime)
    arms = f"{options.siglip_arm} minus {options.baseline}, {where}"
    return [
        describe_finding(claim.accuracy, f"Test accuracy of {arms}", 100, "points"),
        describe_finding(claim.steadiness, f"Steadiness of {arms}", 1, "nats"),
        describe_claim(claim.accuracy, claim.steadiness),
        RULE,
    ]


def describe_regime(options: ExperimentArguments, regime: str) -> str:
    """Describe what the runs of a regime were trained on."""
    values = {**options.base, **options.regimes[regime]}
    if values.get("shots") is not None:
        return f"with {count(values['shots'], 'training image')} per class"
    if values.get("max_train_samples") is not None:
        return f"with {count(values['max_train_samples'], 'training image')}"
    return "on the whole training split"


def _describe(options: ExperimentArguments, cells: Cells, command: str) -> dict[str, Any]:
    rate = cells[options.claim_regime][options.baseline].learning_rate
    metrics = list_runs(options, options.baseline, rate)[0].read_metrics(options)
    return {
        "command": command,
        "data": metrics["data"]["description"],
        "precision": metrics["training"]["precision"],
        "environment": metrics["environment"],
    }


def _describe_cell(cell: Cell) -> dict[str, Any]:
    return {
        "learning_rate": cell.learning_rate,
        "over_seeds": cell.over_seeds,
        "runs": [{"seed": run.seed, **run.values} for run in cell.runs],
    }


def format_markdown(
    options: ExperimentArguments,
    cells: Cells,
    comparisons: Comparisons,
    conclusion: list[str],
    facts: dict[str, Any],
) -> str:
    """Return the conclusion and then a table per regime, as Markdown."""
    lines = [f"# {options.name}", "", *(f"- {sentence}" for sentence in conclusion)]
    headings = [heading for _, heading, _, _ in COLUMNS]
    for regime, row in cells.items():
        table = [["arm", "learning rate", *headings, "minus baseline, points", "95 % interval"]]
        for arm, cell in row.items():
            line = [arm, f"{cell.learning_rate:g}"]
            line += [
                _format_spread(cell.over_seeds[name], factor, decimals)
                for name, _, factor, decimals in COLUMNS
            ]
            if arm == options.baseline:
                line += ["", ""]
            else:
                found = comparisons[regime][arm].accuracy
                line += [
                    f"{100 * found.difference:+.1f}",
                    f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
                ]
            table.append(line)
        where = describe_regime(options, regime)
        lines += ["", f"## {where[0].upper()}{where[1:]}", "", *format_markdown_table(table)]
    environment = facts["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    lines += [
        *("", "## Definitions", "", DEFINITIONS),
        f"Data: {facts['data']}. Seeds: {', '.join(map(str, options.seeds))}. Learning rates tried "
        f"for each arm: {', '.join(map(str, options.learning_rates))}. Precision: "
        f"{facts['precision']}. Device: {environment['device']}; Python {environment['python']}, "
        f"{packages}.",
        *("", f"Command: `{facts['command']}`", ""),
    ]
    return "\n".join(lines)


def _format_spread(interval: Interval, factor: float, decimals: int) -> str:
    if math.isnan(interval.mean):
        return "-"
    mean = f"{factor * interval.mean:.{decimals}f}"
    return mean if interval.n == 1 else f"{mean} ± {factor * interval.std:.{decimals}f}"


def _draw(options: ExperimentArguments, cells: Cells, comparisons: Comparisons) -> None:
    directory, row = options.directory, cells[options.claim_regime]
    where = describe_regime(options, options.claim_regime)
    drawn = {"siglip": options.siglip_arm, "baseline": options.baseline}
    histories = {arm: [run.history for run in row[arm].runs] for arm in drawn.values()}
    limits = share_limits([history for each in histories.values() for history in each])
    for kind, arm in drawn.items():
        title = f"Loss of {arm}, {where}"
        plot_loss_band(histories[arm], directory / f"loss_{kind}.png", title, limits)
    accuracies, effects = {}, {}
    for regime in cells:
        for arm, cell in cells[regime].items():
            over_seeds = cell.over_seeds["test_accuracy"]
            values = [100 * value for value in cell.list_values("test_accuracy")]
            name = arm if len(cells) == 1 else f"{arm} ({regime})"
            accuracies[name] = (values, 100 * over_seeds.low, 100 * over_seeds.high)
            if arm != options.baseline:
                comparison = comparisons[regime][arm]
                effects[name] = (
                    [100 * value for value in comparison.seed_differences],
                    100 * comparison.accuracy.low,
                    100 * comparison.accuracy.high,
                )
    note = "seeds, mean and 95 % interval"
    plot_intervals(accuracies, directory / "accuracy.png", f"Test accuracy: {note}", "accuracy, %")
    plot_intervals(
        effects,
        directory / "effect.png",
        f"Test accuracy minus that of {options.baseline}: {note}; dashed: 0 and the claimed +1.5",
        "points",
        marks=(0.0, 100 * CLAIMED_GAIN),
    )


def to_plain(value: Any) -> Any:
    """Turn dataclasses and tuples into what JSON has; a number that is not finite becomes None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
