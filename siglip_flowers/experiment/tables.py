"""An experiment's figures: Markdown tables for people, plain data for JSON."""

import dataclasses
import math
from typing import Any

from siglip_flowers.base.text import format_markdown_table
from siglip_flowers.experiment.analysis import (
    Cell,
    Cells,
    Comparison,
    Comparisons,
)
from siglip_flowers.experiment.conclusion import describe_regime
from siglip_flowers.experiment.settings import ExperimentSettings
from siglip_flowers.metrics.statistics import Interval, format_p

CELL_COLUMNS = [
    "arm",
    "learning rate",
    "test accuracy, %",
    "95 % interval",
    "F1, %",
    "gap, points",
    "loss rise",
    "steadiness",
]
COMPARISON_COLUMNS = [
    "arm",
    "points",
    "bootstrap 95 %",
    "over seeds 95 %",
    "p (Holm)",
    "difference shown",
]

DEFINITIONS = """\
Accuracy, F1 (macro over the classes) and the gap are of the weights with the best validation
accuracy. Mean ± standard deviation over seeds; intervals are 95 %, Student's t over seeds.

- **Over-fitting gap**, points: accuracy on training images (unaugmented) minus accuracy on the
  validation split.
- **Loss rise**, nats: the last validation loss minus the lowest of the run; 0 if it never turns
  up.
- **Steadiness**, nats, smaller is steadier: root mean square distance of the validation-loss
  curve from its trend, the nearest curve that first falls and then rises; 0 for a curve without a
  wobble.

The validation loss is the softmax negative log-likelihood whatever the arm was trained with, at
each evaluation after the first step. Differences are the arm minus the baseline on test accuracy,
in points: the bootstrap draws test images and seeds, both paired; the t interval is over the
seeds' differences; p is the bootstrap's, after Holm over all comparisons.
"""


def format_markdown(settings: ExperimentSettings, cells: Cells, comparisons: Comparisons) -> str:
    """Return the arms of every regime, then their differences to the baseline, as Markdown."""
    lines = [f"# {settings.name}", ""]
    for regime, row in cells.items():
        lines += [f"## {_capitalise(describe_regime(settings, regime))}", ""]
        lines += format_markdown_table(
            [
                CELL_COLUMNS,
                *(_format_cell(arm, cell) for arm, cell in row.items()),
            ]
        )
        lines += ["", f"Minus {settings.baseline}:", ""]
        lines += format_markdown_table(
            [
                COMPARISON_COLUMNS,
                *(_format_comparison(arm, item) for arm, item in comparisons[regime].items()),
            ]
        )
        lines.append("")
    return "\n".join([*lines, "## Definitions", "", DEFINITIONS])


def _format_cell(arm: str, cell: Cell) -> list[str]:
    values = cell.over_seeds
    return [
        arm,
        f"{cell.learning_rate:g}",
        _format_spread(values["test_accuracy"], 100, 1),
        _format_ends(values["test_accuracy"], 100, 1),
        _format_spread(values["test_f1"], 100, 1),
        _format_spread(values["overfitting_gap"], 100, 1),
        _format_spread(values["loss_rise"], 1, 3),
        _format_spread(values["steadiness"], 1, 4),
    ]


def _format_comparison(arm: str, comparison: Comparison) -> list[str]:
    accuracy, seeds = comparison.accuracy, comparison.over_seeds
    return [
        arm,
        f"{100 * accuracy.difference:+.1f}",
        f"{100 * accuracy.low:+.1f} to {100 * accuracy.high:+.1f}",
        f"{100 * seeds.low:+.1f} to {100 * seeds.high:+.1f}" if seeds.n > 1 else "one seed",
        format_p(comparison.corrected_p),
        "yes" if comparison.shown else "no",
    ]


def _format_spread(interval: Interval, factor: float, decimals: int) -> str:
    if math.isnan(interval.mean):
        return "-"
    mean = f"{factor * interval.mean:.{decimals}f}"
    return mean if interval.n == 1 else f"{mean} ± {factor * interval.std:.{decimals}f}"


def _format_ends(interval: Interval, factor: float, decimals: int) -> str:
    if math.isnan(interval.low):
        return "-"
    return f"{factor * interval.low:.{decimals}f} to {factor * interval.high:.{decimals}f}"


def _capitalise(text: str) -> str:
    return text[0].upper() + text[1:]


def to_plain(value: Any) -> Any:
    """Turn dataclasses and tuples into what JSON has; a number that is not finite becomes None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
