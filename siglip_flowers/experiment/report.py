"""Write what an experiment found: a table with the conclusion, figures, and JSON."""

import dataclasses
import json
import math
from typing import Any

from siglip_flowers.base.files import write_json, write_text
from siglip_flowers.base.text import count, format_markdown_table
from siglip_flowers.config.saved import read_yaml
from siglip_flowers.experiment.analysis import Analysis
from siglip_flowers.experiment.figures import draw_figures
from siglip_flowers.experiment.plan import Plan
from siglip_flowers.experiment.runs import SETTINGS_FILE
from siglip_flowers.experiment.statistics import (
    CLAIMED_GAIN,
    NOT_MEASURABLE,
    POWER,
    RULE,
    Finding,
    describe_claim,
    describe_finding,
)
from siglip_flowers.metrics.statistics import Interval

# Measure, heading, factor and decimals.
MEASURES = (
    ("test_accuracy", "test accuracy, %", 100, 1),
    ("test_macro", "macro, %", 100, 1),
    ("train_accuracy", "training accuracy, %", 100, 1),
    ("gap", "gap, points", 100, 1),
    ("rise", "loss rise", 1, 3),
    ("fitted_rise", "loss rise, fitted", 1, 3),
    ("steadiness", "steadiness", 1, 4),
    ("fitted_steadiness", "steadiness, fitted", 1, 4),
    ("best_test_accuracy", "test accuracy of the best, %", 100, 1),
    ("best_gap", "gap of the best, points", 100, 1),
    ("best_rise", "loss rise of the best", 1, 3),
)


def write_report(plan: Plan, analysis: Analysis, command: str) -> list[str]:
    """Write every file of the report and return the sentences of the conclusion."""
    directory = plan.options.directory
    first = plan.get(plan.list_runs(analysis.claim[0]))[0]
    facts = {
        "command": command,
        "commit": read_yaml(directory / SETTINGS_FILE).get("commit"),
        **first.facts,
    }
    conclusion = draw_conclusion(plan, analysis, facts)
    write_text(directory / "table.md", format_markdown(plan, analysis, conclusion, facts))
    tuning = {str(run): plan.get([run])[0].score for run in plan.list_part("tuning")}
    results = {"conclusion": conclusion, **facts, **dataclasses.asdict(analysis), "tuning": tuning}
    # A number that is not finite becomes null.
    plain = json.loads(json.dumps(results), parse_constant=lambda name: None)
    write_json(directory / "results.json", plain)
    draw_figures(plan, analysis)
    return conclusion


def draw_conclusion(plan: Plan, analysis: Analysis, facts: dict[str, Any]) -> list[str]:
    """Return what was asked, done and found, in sentences."""
    old, new = plan.options.losses
    baseline, siglip = analysis.claim
    arms, found = analysis.arms, analysis.comparisons[siglip]
    steady, gain = found.measures["steadiness"], f"{100 * CLAIMED_GAIN:.1f} points"
    fitted = [f"{arms[name].over_seeds['train_accuracy'].mean:.1%}" for name in analysis.claim]
    heads = "; the head is the better one of its loss" if len(plan.options.heads) > 1 else ""
    power = f"a true gain of {gain} would be shown in {analysis.power:.0%} of such experiments"
    if analysis.power < POWER:
        power += f", and one of {100 * analysis.detectable:.1f} points in {POWER:.0%}"
    return [
        f"Claim: fine-tuning with {new} instead of {old} raises test accuracy by {gain}, and the "
        "validation loss falls more steadily.",
        f"Compared: {baseline}, at rates {arms[baseline].rates}, and {siglip}, at rates "
        f"{arms[siglip].rates} (rate of the encoder x factor of the head{heads}); "
        f"{count(plan.options.claim_seeds, 'seed')} and {analysis.epochs} epochs each, on "
        f"{facts['data']}.",
        describe_claim(found.accuracy, steady),
        describe_finding(found.accuracy, "Test accuracy", 100, "points"),
        describe_finding(steady, "Steadiness", 1, "nats"),
        f"Accuracy on the training images at the end is {' and '.join(fitted)}"
        f"{'' if analysis.over_fitted else ': the models did not overfit'}.",
        f"Given the spread of the tuning seeds, {power}.",
        RULE,
    ]


def format_markdown(
    plan: Plan, analysis: Analysis, conclusion: list[str], facts: dict[str, Any]
) -> str:
    """Return the conclusion, a table of the arms, one of differences, and the contrasts."""
    headings = [heading for _, heading, _, _ in MEASURES]
    arms = [["arm", "encoder rate x head factor", "seeds", *headings]]
    for name, arm in analysis.arms.items():
        cells = [_format_spread(arm.over_seeds[key], *form) for key, _, *form in MEASURES]
        arms.append([name, str(arm.rates), str(len(arm.seeds)), *cells])
    differences = [["arm", "minus", *headings]]
    for name, comparison in analysis.comparisons.items():
        findings = {**comparison.measures, "test_accuracy": comparison.accuracy}
        cells = [_format_difference(findings[key], *form) for key, _, *form in MEASURES]
        differences.append([name, comparison.minus, *cells])
    contrasts = [
        f"- {describe_finding(finding, name, 100, 'points')}"
        for name, finding in analysis.contrasts.items()
    ]
    if contrasts:
        contrasts[:0] = ["", "## Contrasts of test accuracy, with Holm's correction", ""]
    lines = [
        *(f"# {plan.options.name}", "", *(f"- {sentence}" for sentence in conclusion)),
        *("", "## Arms", "", "Mean ± standard deviation over seeds.", ""),
        *format_markdown_table(arms),
        *("", "## Differences", "", "Mean and 95% interval.", ""),
        *format_markdown_table(differences),
        *contrasts,
        *(
            "",
            f"Commit at the start: {facts['commit']}. Measures are defined in docs/experiment.md.",
        ),
        *("", f"Command: `{facts['command']}`", ""),
    ]
    return "\n".join(lines)


def _format_spread(interval: Interval, factor: float, decimals: int) -> str:
    if math.isnan(interval.mean):
        return "-"
    mean = f"{factor * interval.mean:.{decimals}f}"
    return mean if interval.n == 1 else f"{mean} ± {factor * interval.std:.{decimals}f}"


def _format_difference(finding: Finding, factor: float, decimals: int) -> str:
    if finding.verdict == NOT_MEASURABLE:
        return NOT_MEASURABLE
    ends = (finding.difference, finding.low, finding.high)
    mean, low, high = (f"{factor * value:+.{decimals}f}" for value in ends)
    return f"{mean} ({low} to {high})" if math.isfinite(finding.low) else mean
