"""What a search leaves to read: the best configuration, and all trials as table and image."""

import csv
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from siglip_flowers.base.files import atomic_path, write_text
from siglip_flowers.search.output import BEST_FILE, PLOT_FILE, TABLE_FILE
from siglip_flowers.search.plots import OptionAxis, TrialPoint, plot_trials
from siglip_flowers.search.setup import Search
from siglip_flowers.search.space import Range, format_value
from siglip_flowers.search.study import REASON, RETRY_OF
from siglip_flowers.search.trials import METRICS, SECONDS

SHOWN_TRIALS = 10
STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "ended early",
    TrialState.FAIL: "failed",
}


def write_report(search: Search, trials: list[FrozenTrial]) -> Path | None:
    """Write table, image and the best configuration; return the last one's path, if any."""
    ended = [trial for trial in trials if trial.state in STATES]
    if not ended:
        return None
    _write_table(search, ended)
    points = [
        TrialPoint(
            number=trial.number,
            value=_find_value(trial),
            finished=trial.state is TrialState.COMPLETE,
            options=trial.params,
        )
        for trial in ended
        if trial.state is not TrialState.FAIL
    ]
    plot_trials(
        points,
        search.directory / PLOT_FILE,
        title=_write_title(search, points),
        objective=search.metric.replace("_", " "),
        maximize=search.direction == "maximize",
        axes_of={
            name: OptionAxis(one.low, one.high, one.log)
            for name, one in search.space.items()
            if isinstance(one, Range)
        },
    )
    ranked = rank_trials(search, ended)
    if not ranked:
        return None
    best, path = ranked[0], search.directory / BEST_FILE
    header = (
        f"# Trial {best.number} of the search in {search.directory}, the best of "
        f"{len(ranked)} that were finished:\n"
        f"# {search.metric} {best.value}. Train it with: python train.py --config {path}\n"
    )
    write_text(path, header + search.build_best(best.params).dump())
    return path


def rank_trials(search: Search, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that were finished, the best first, of equals the first."""
    sign = -1.0 if search.direction == "maximize" else 1.0
    finished = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    return sorted(finished, key=lambda trial: (sign * float(trial.value or 0.0), trial.number))


def format_trials(search: Search, trials: list[FrozenTrial]) -> str:
    """Return a table of the best trials, and a line that says how many there were."""
    names = list(search.space)
    ranked = rank_trials(search, trials)
    lines = [["trial", search.metric, "epoch", *names]]
    for trial in ranked[:SHOWN_TRIALS]:
        epoch = trial.user_attrs.get(METRICS, {}).get("epoch")
        cells = [format_value(trial.params.get(name)) for name in names]
        lines.append([str(trial.number), f"{trial.value:.4f}", f"{epoch:g}", *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]
    early = sum(trial.state is TrialState.PRUNED for trial in trials)
    return "\n".join([*table, f"{len(ranked)} trials were finished, {early} ended early."])


def _find_value(trial: FrozenTrial) -> float | None:
    """Return a finished trial's value, or the last one of a trial that was ended early."""
    if trial.state is TrialState.COMPLETE:
        return trial.value
    last = trial.last_step
    return None if last is None else trial.intermediate_values[last]


def _write_title(search: Search, points: list[TrialPoint]) -> str:
    finished = sum(point.finished for point in points)
    return (
        f"Search for {search.metric.replace('_', ' ')}: {finished} trials finished, "
        f"{len(points) - finished} ended early"
    )


def _write_table(search: Search, trials: list[FrozenTrial]) -> None:
    measured = sorted({name for trial in trials for name in trial.user_attrs.get(METRICS, {})})
    columns = ["trial", "state", "value", *search.space, "evaluations", "seconds"]
    columns += [*measured, "repeats_trial", "reason"]
    path = search.directory / TABLE_FILE
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for trial in trials:
            attributes: dict[str, Any] = trial.user_attrs
            writer.writerow(
                {
                    "trial": trial.number,
                    "state": STATES[trial.state],
                    "value": _find_value(trial),
                    **{name: _write_cell(value) for name, value in trial.params.items()},
                    "evaluations": len(trial.intermediate_values),
                    "seconds": attributes.get(SECONDS),
                    **attributes.get(METRICS, {}),
                    "repeats_trial": attributes.get(RETRY_OF),
                    "reason": attributes.get(REASON),
                }
            )


def _write_cell(value: Any) -> Any:
    """Return a cell that a reader gets the exact value from; words as in YAML."""
    return value if isinstance(value, float | str) else format_value(value)
