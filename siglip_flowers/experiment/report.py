"""Write what an experiment found: tables, plots and the conclusion."""

import math
from typing import Any

from siglip_flowers.base.files import write_json, write_text
from siglip_flowers.experiment.analysis import Cell, Cells, Comparisons
from siglip_flowers.experiment.conclusion import describe_regime, draw_conclusion
from siglip_flowers.experiment.plan import plan_runs, plan_trials, read_metrics, validation_accuracy
from siglip_flowers.experiment.plots import (
    Curve,
    plot_accuracy_curves,
    plot_loss_band,
    plot_shots,
    share_y_limits,
)
from siglip_flowers.experiment.settings import ExperimentSettings
from siglip_flowers.experiment.tables import format_markdown, to_plain


def write_report(
    settings: ExperimentSettings, cells: Cells, comparisons: Comparisons, command: str
) -> list[str]:
    """Write every file of the report and return the sentences of the conclusion."""
    directory = settings.directory
    conclusion = draw_conclusion(settings, comparisons)
    facts = _describe(settings, cells, command)
    environment = facts["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    table = format_markdown(settings, cells, comparisons)
    table += (
        f"\nData: {facts['data']}. Seeds: {', '.join(map(str, settings.seeds))}. "
        f"Learning rates tried for each arm: {', '.join(map(str, settings.learning_rates))}. "
        f"Precision: {facts['precision']}. Device: {environment['device']}; "
        f"Python {environment['python']}, {packages}.\n\nCommand: `{command}`\n"
    )
    write_text(directory / "table.md", table)
    write_text(directory / "conclusion.txt", "\n".join(conclusion) + "\n")
    write_json(
        directory / "results.json",
        {
            "name": settings.name,
            **facts,
            "settings": to_plain(settings),
            "trials": _describe_trials(settings),
            "conclusion": conclusion,
            "arms": {
                regime: {arm: _describe_cell(cell) for arm, cell in row.items()}
                for regime, row in cells.items()
            },
            "comparisons": to_plain(comparisons),
        },
    )
    _draw(settings, cells)
    return conclusion


def _describe(settings: ExperimentSettings, cells: Cells, command: str) -> dict[str, Any]:
    rate = cells[settings.claim_regime][settings.baseline].learning_rate
    run = next(
        run
        for run in plan_runs(settings, settings.baseline, rate)
        if run.regime == settings.claim_regime
    )
    metrics = read_metrics(settings, run)
    return {
        "command": command,
        "data": metrics["data"]["description"],
        "precision": metrics["training"]["precision"],
        "environment": metrics["environment"],
    }


def _describe_trials(settings: ExperimentSettings) -> dict[str, list[dict[str, float]]]:
    return {
        arm: [
            {
                "learning_rate": run.learning_rate,
                "validation_accuracy": validation_accuracy(settings, run),
            }
            for run in plan_trials(settings, arm)
        ]
        for arm in settings.arms
    }


def _describe_cell(cell: Cell) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(
        {
            "learning_rate": cell.learning_rate,
            "over_seeds": cell.over_seeds,
            "runs": [
                {
                    "seed": run.seed,
                    "start_accuracy": run.start_accuracy,
                    **run.values,
                }
                for run in cell.runs
            ],
        }
    )
    return plain


def _draw(settings: ExperimentSettings, cells: Cells) -> None:
    directory, row = settings.directory, cells[settings.claim_regime]
    setting = describe_regime(settings, settings.claim_regime)
    drawn = {"siglip": settings.siglip_arm, "baseline": settings.baseline}
    curves = {arm: _collect_losses(row[arm]) for arm in drawn.values()}
    limits = share_y_limits(*curves.values())
    for kind, arm in drawn.items():
        title = f"Loss of {arm}, {setting}"
        plot_loss_band(curves[arm], directory / f"loss_{kind}.png", title, limits)
    plot_accuracy_curves(
        {arm: _collect_accuracies(cell) for arm, cell in row.items()},
        directory / "accuracy.png",
        f"Validation accuracy {setting}",
    )
    plot_shots(
        {
            arm: {
                regime: [run.values["test_accuracy"] for run in cells[regime][arm].runs]
                for regime in cells
            }
            for arm in settings.arms
        },
        directory / "shots.png",
        "Test accuracy by the number of training images",
    )


def _collect_losses(cell: Cell) -> list[Curve]:
    """Return a curve a seed: the same measure for both splits and every arm."""
    curves = []
    for run in cell.runs:
        rows = [row for row in run.history if row["validation_nll"] is not None]
        curves.append(
            Curve(
                epochs=[_number(row["epoch"]) for row in rows],
                train_loss=[_number(row["train_nll"]) for row in rows],
                validation_loss=[_number(row["validation_nll"]) for row in rows],
            )
        )
    return curves


def _collect_accuracies(cell: Cell) -> list[tuple[list[float], list[float]]]:
    pairs = []
    for run in cell.runs:
        rows = [row for row in run.history if row["validation_accuracy"] is not None]
        pairs.append(
            (
                [_number(row["epoch"]) for row in rows],
                [_number(row["validation_accuracy"]) for row in rows],
            )
        )
    return pairs


def _number(value: float | None) -> float:
    return math.nan if value is None else value
