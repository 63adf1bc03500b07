"""Write what an experiment found: a table with the conclusion, plots, and JSON."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siglip_flowers.base.files import write_json, write_text
from siglip_flowers.base.text import count, format_markdown_table
from siglip_flowers.experiment.analysis import Analysis, Cells, Comparisons
from siglip_flowers.experiment.options import ExperimentArguments
from siglip_flowers.experiment.runs import list_runs, list_trials
from siglip_flowers.experiment.statistics import (
    CLAIMED_GAIN,
    RULE,
    describe_claim,
    describe_finding,
)
from siglip_flowers.metrics.statistics import Interval
from siglip_flowers.plots.theme import (
    MUTED_COLOR,
    TRAIN_COLOR,
    VALIDATION_COLOR,
    make_figure,
    save_figure,
    style_axes,
    wrap,
)

WIDTH, HEIGHT, ROW_HEIGHT = 8.0, 4.6, 0.42
LABEL_LETTERS = 34
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

- **Macro**: the mean of the classes' accuracies. **Gap**, points: macro accuracy on unaugmented
  training images minus macro accuracy on the validation split.
- **Loss rise**, nats: the last validation loss minus the lowest of the run.
- **Steadiness**, nats, smaller is steadier: root mean square distance of the validation-loss
  curve from the nearest curve that first falls and then rises.

The validation loss is the softmax negative log-likelihood whatever the arm was trained with, at
each evaluation after the first step.
"""


def write_report(options: ExperimentArguments, analysis: Analysis, command: str) -> list[str]:
    """Write every file of the report and return the sentences of the conclusion."""
    cells = analysis.cells
    conclusion = draw_conclusion(options, analysis)
    rate = cells[options.claim_regime][options.baseline].learning_rate
    metrics = list_runs(options, options.baseline, rate)[0].read_metrics(options)
    facts = {
        "command": command,
        "data": metrics["data"]["description"],
        "precision": metrics["training"]["precision"],
        "environment": metrics["environment"],
    }
    write_text(
        options.directory / "table.md",
        format_markdown(options, analysis, conclusion, facts),
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
            regime: {
                arm: {
                    "learning_rate": cell.learning_rate,
                    "over_seeds": cell.over_seeds,
                    "runs": [{"seed": run.seed, **run.values} for run in cell.runs],
                }
                for arm, cell in row.items()
            }
            for regime, row in cells.items()
        },
        "comparisons": analysis.comparisons,
        "contrasts": analysis.contrasts,
        "power": analysis.power,
    }
    # A number that is not finite becomes null.
    text = json.dumps(results, default=dataclasses.asdict)
    plain = json.loads(text, parse_constant=lambda name: None)
    write_json(options.directory / "results.json", plain)
    _draw(options, cells, analysis.comparisons)
    return conclusion


def draw_conclusion(options: ExperimentArguments, analysis: Analysis) -> list[str]:
    """Return a sentence for each half of the claim, on the whole, on the power, and the rule."""
    claim = analysis.comparisons[options.claim_regime][options.siglip_arm]
    where = describe_regime(options, options.claim_regime)
    arms = f"{options.siglip_arm} minus {options.baseline}, {where}"
    return [
        describe_finding(claim.accuracy, f"Test accuracy of {arms}", 100, "points"),
        describe_finding(claim.steadiness, f"Steadiness of {arms}", 1, "nats"),
        describe_claim(claim.accuracy, claim.steadiness),
        f"A true +{100 * CLAIMED_GAIN:.1f} points would be shown in {analysis.power:.0%} of "
        f"experiments with the spread of these runs ({len(options.seeds)} seeds).",
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


def format_markdown(
    options: ExperimentArguments, analysis: Analysis, conclusion: list[str], facts: dict[str, Any]
) -> str:
    """Return the conclusion, a table per regime, and the contrasts, as Markdown."""
    lines = [f"# {options.name}", "", *(f"- {sentence}" for sentence in conclusion)]
    headings = [heading for _, heading, _, _ in COLUMNS]
    for regime, row in analysis.cells.items():
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
                found = analysis.comparisons[regime][arm].accuracy
                line.append(f"{100 * found.difference:+.1f}")
                line.append(f"{100 * found.low:+.1f} to {100 * found.high:+.1f}")
            table.append(line)
        where = describe_regime(options, regime)
        lines += ["", f"## {where[0].upper()}{where[1:]}", "", *format_markdown_table(table)]
    if analysis.contrasts:
        lines += ["", "## Contrasts", ""]
    for name, found in analysis.contrasts.items():
        weights = ", ".join(f"{weight:+g} {arm}" for arm, weight in options.contrasts[name].items())
        lines.append(f"- {describe_finding(found, f'{name} ({weights})', 100, 'points')}")
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


def plot_loss_band(
    histories: Sequence[NDArray[Any]], path: Path, title: str, limits: tuple[float, float]
) -> None:
    """Draw one arm's train and validation loss: mean line and min-to-max band over seeds.

    Args:
        histories: The evaluations of each seed, with the columns epoch, train_nll and
            validation_nll; nan leaves a gap.
        path: The PNG file.
        title: The title.
        limits: Of the loss axis, from :func:`share_limits`.
    """
    figure = make_figure(WIDTH, HEIGHT, title)
    axes = figure.add_subplot()
    style_axes(axes)
    axes.set(xlabel="epoch", ylabel="loss, nats", ylim=limits)
    epochs = histories[0]["epoch"]
    for split, color in (("train", TRAIN_COLOR), ("validation", VALIDATION_COLOR)):
        losses = np.stack([history[f"{split}_nll"] for history in histories])
        mean = losses.mean(axis=0)
        axes.plot(epochs, mean, color=color, marker="o", markersize=3, label=split)
        low, high = losses.min(axis=0), losses.max(axis=0)
        axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
    axes.legend(title=f"mean, lowest and highest of {len(histories)} seeds", frameon=False)
    save_figure(figure, path)


def share_limits(histories: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Return a loss axis that holds every finite loss, with a small margin."""
    # Not every arm has an evaluation before the first step.
    losses = np.concatenate(
        [history[name] for history in histories for name in ("train_nll", "validation_nll")]
    )
    low, high = float(np.nanmin(losses)), float(np.nanmax(losses))
    margin = 0.05 * (high - low) or 0.5
    return max(0.0, low - margin), high + margin


def plot_intervals(
    rows: Mapping[str, tuple[Sequence[float], float, float]],
    path: Path,
    title: str,
    label: str,
    marks: Sequence[float] = (),
) -> None:
    """Draw a row per name: a hollow point per seed, their mean, and an interval.

    Args:
        rows: Values of the seeds and the two ends of the interval, which may be nan.
        path: The PNG file.
        title: The title.
        label: What is measured, and its unit.
        marks: Values with a vertical line.
    """
    figure = make_figure(WIDTH, 1.2 + ROW_HEIGHT * len(rows), title)
    axes = figure.add_subplot()
    style_axes(axes)
    axes.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [wrap(name, LABEL_LETTERS, 2) for name in rows])
    for mark in marks:
        axes.axvline(mark, color=MUTED_COLOR, linestyle="--", linewidth=1)
    for number, (values, low, high) in enumerate(rows.values()):
        if np.isfinite([low, high]).all():
            axes.plot([low, high], [number, number], color=TRAIN_COLOR, linewidth=2)
        axes.plot(values, [number] * len(values), "o", color=TRAIN_COLOR, fillstyle="none")
        axes.plot([np.mean(values)], [number], "D", color=VALIDATION_COLOR, zorder=3)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    save_figure(figure, path)
