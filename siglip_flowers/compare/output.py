"""Print a comparison of runs, and write it as files."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import write_json, write_text
from siglip_flowers.base.text import align_columns, escape_unprintable, format_markdown_table
from siglip_flowers.compare.comparison import RunComparison, RunDifference
from siglip_flowers.compare.runs import read_metrics
from siglip_flowers.metrics.statistics import format_p
from siglip_flowers.plots.theme import (
    MUTED_COLOR,
    RIGHT_COLOR,
    TEXT_COLOR,
    TRAIN_COLOR,
    WRONG_COLOR,
    save_figure,
)

JSON_FILE = "comparison.json"
SHEET_IMAGES = 24
LISTED_CLASSES = 10
LISTED_IMAGES = 20
_SHEET_COLUMNS = 6
_NAME_CHARACTERS = 26
_NOTE = (
    "Intervals are 95 %: Wilson's for accuracies, a paired bootstrap over images for differences. "
    "McNemar's test is exact if fewer than 25 images are right in one run only; Holm's correction "
    "is over the runs, and over the classes of each run."
)
Tabulate = Callable[[list[list[str]]], Iterable[str]]


def format_comparison(comparison: RunComparison) -> str:
    """Return the text that is printed."""
    return _format(comparison, "", lambda rows: [align_columns(rows)])


def check_comparison_dir(directory: Path, paths: Sequence[str]) -> None:
    """Raise InputError if the comparison of other runs would be overwritten."""
    file = directory / JSON_FILE
    if file.exists() and read_metrics(file).get("paths") != list(paths):
        raise InputError(f"{directory} holds a comparison of other runs. Choose another directory.")


def write_comparison(comparison: RunComparison, directory: Path) -> None:
    """Write ``comparison.json``, ``comparison.md`` and ``comparison.png``."""
    write_json(directory / JSON_FILE, asdict(comparison))
    text = _format(comparison, "## ", format_markdown_table)
    write_text(directory / "comparison.md", f"# Comparison of runs\n\n{text}\n\n{_NOTE}\n")
    save_figure(_draw_differences(comparison), directory / "comparison.png")


def write_sheet(comparison: RunComparison, found: Mapping[str, Image.Image], path: Path) -> None:
    """Draw the images on which the runs disagree, with the answer of each run, into a PNG file.

    ``found`` maps image ids to images; without any there is no file.
    """
    shown = [each for each in comparison.images if each.id in found][:SHEET_IMAGES]
    if not shown:
        return
    columns, letters = min(len(shown), _SHEET_COLUMNS), _name_runs(comparison.runs)
    rows, lines = -(-len(shown) // columns), len(letters) + 1
    # Inches: an image, its lines of text, and below all of them what the letters mean.
    figure = Figure(figsize=(2.1 * columns, (2 + 0.16 * lines) * rows + 0.16 * lines))
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"hspace": 0.1 * lines})
    figure.subplots_adjust(
        left=0.01, right=0.99, top=0.99, bottom=0.3 * lines / (10 * rows + lines)
    )
    for axes in grid.flat:
        axes.set_axis_off()
        axes.set_anchor("N")
    for axes, each in zip(grid.flat, shown, strict=False):
        axes.imshow(np.asarray(found[each.id].convert("RGB")), interpolation="nearest")
        texts = [(_shorten(each.true), TEXT_COLOR)]
        for letter, name, confidence, correct in zip(
            letters, each.predicted, each.confidence, each.correct, strict=True
        ):
            # Right and wrong also differ without color.
            mark = "\N{CHECK MARK}" if correct else "\N{BALLOT X}"
            text = f"{mark} {letter}: {_shorten(name, 20)} {100 * confidence:.0f} %"
            texts.append((text, RIGHT_COLOR if correct else WRONG_COLOR))
        for number, (text, color) in enumerate(texts):
            axes.annotate(
                text,
                (0, 0),
                xytext=(0, -10 * (number + 1)),
                xycoords="axes fraction",
                textcoords="offset points",
                color=color,
                fontsize=7,
                parse_math=False,
            )
    legend = "\n".join(f"{letter}: {name}" for letter, name in letters.items())
    figure.text(0.01, 0.005, legend, fontsize=7, va="bottom", color=TEXT_COLOR, parse_math=False)
    save_figure(figure, path)


def _name_runs(runs: Sequence[str]) -> dict[str, str]:
    """Return short names for a drawing: A, B, ... to the runs' own names."""
    return {chr(ord("A") + number): name for number, name in enumerate(runs)}


def _format(comparison: RunComparison, heading: str, tabulate: Tabulate) -> str:
    split = f" of the {comparison.split} split" if comparison.split else ""
    protocol = f", {comparison.protocol} protocol" if comparison.protocol else ""
    lines = [f"{comparison.n} images{split}{protocol}", "", *tabulate(_list_runs(comparison))]
    for difference in comparison.differences:
        title = f"{heading}{difference.name} minus {comparison.runs[0]}"
        lines += ["", title, "", difference.conclusion, ""]
        classes = _list_classes(comparison, difference)
        if len(classes) > 1:
            lines += ["Classes with the largest differences:", "", *tabulate(classes)]
    right = sum(any(each.correct) for each in comparison.images)
    lines += ["", f"{heading}Images on which the runs disagree", ""]
    lines.append(f"{len(comparison.images)} images, {right} of them right in some run.")
    if comparison.images:
        lines += ["", *tabulate(_list_images(comparison))]
    return escape_unprintable("\n".join(lines), keep="\n")


def _list_runs(comparison: RunComparison) -> list[list[str]]:
    columns = ["run", "accuracy", "95 %", "minus the first", "95 %"]
    rows = [[*columns, "only it right", "only first right", "McNemar p", "Holm p"]]
    for name, (value, low, high) in zip(comparison.runs, comparison.accuracies, strict=True):
        rows.append([name, f"{100 * value:.2f} %", f"{100 * low:.1f} to {100 * high:.1f}"])
    rows[1] += [""] * 6
    for row, difference in zip(rows[2:], comparison.differences, strict=True):
        accuracy, test = difference.accuracy, difference.mcnemar
        row += [
            f"{100 * accuracy.difference:+.2f}",
            f"{100 * accuracy.low:+.2f} to {100 * accuracy.high:+.2f}",
            *(str(test.b), str(test.c)),
            *(format_p(test.p_value), format_p(difference.corrected_p)),
        ]
    return rows


def _list_classes(comparison: RunComparison, difference: RunDifference) -> list[list[str]]:
    """Return the classes with the largest differences, under a heading."""
    first = comparison.runs[0]
    rows = [["class", "images", first, difference.name, "difference", "95 %", "Holm p"]]
    for each in difference.per_class[:LISTED_CLASSES]:
        if each.difference:
            rows.append(
                [
                    *(each.name, str(each.support)),
                    *(f"{100 * each.first_accuracy:.1f} %", f"{100 * each.accuracy:.1f} %"),
                    f"{100 * each.difference:+.1f}",
                    f"{100 * each.low:+.1f} to {100 * each.high:+.1f}",
                    format_p(each.corrected_p),
                ]
            )
    return rows


def _list_images(comparison: RunComparison) -> list[list[str]]:
    rows = [["image", "true class"]]
    for name in comparison.runs:
        rows[0] += [name, "probability"]
    for each in comparison.images[:LISTED_IMAGES]:
        row = [each.id, each.true]
        for predicted, confidence in zip(each.predicted, each.confidence, strict=True):
            row += [predicted, f"{confidence:.3f}"]
        rows.append(row)
    return rows


def _draw_differences(comparison: RunComparison) -> Figure:
    """Draw each run's accuracy, and its difference to the first, with intervals."""
    count = len(comparison.runs)
    figure = Figure(figsize=(9, 1.6 + 0.4 * count), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    accuracies = np.array(comparison.accuracies).T
    differences = np.array(
        [
            (each.accuracy.difference, each.accuracy.low, each.accuracy.high)
            for each in comparison.differences
        ]
    ).T
    places = np.arange(count)
    for axes, (value, low, high), at in (
        (left, accuracies, places),
        (right, differences, places[1:]),
    ):
        errors = 100 * np.stack([value - low, high - value])
        axes.errorbar(100 * value, at, xerr=errors, fmt="o", color=TRAIN_COLOR)
        axes.grid(True, axis="x", color="#E3E3E3")
    right.axvline(0, color=MUTED_COLOR, linewidth=1, linestyle="--")
    left.set_yticks(places, [_shorten(name) for name in comparison.runs], parse_math=False)
    left.set_ylim(count - 0.5, -0.5)
    left.set_xlabel(f"accuracy, %, on {comparison.n} images")
    right.set_xlabel("minus the first run, points (paired)")
    return figure


def _shorten(text: str, most: int = _NAME_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
