"""A comparison of runs as text, files and images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import write_json, write_text
from siglip_flowers.base.text import (
    align_columns,
    escape_unprintable,
    format_csv,
    format_markdown_table,
)
from siglip_flowers.compare.comparison import DifferingImage, RunComparison
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
# Of a sheet, and of the lists in the text.
SHEET_IMAGES = 24
LISTED_CLASSES = 10
LISTED_IMAGES = 20
_SHEET_COLUMNS = 6
# Inches.
_SIDE, _GAP, _LINE = 1.9, 0.15, 0.14
_NAME_CHARACTERS = 26


def format_comparison(comparison: RunComparison) -> str:
    """Return what is printed: runs, differences, classes and images."""
    lines = [
        f"{comparison.n} images"
        + (f" of the {comparison.split} split" if comparison.split else "")
        + (f", {comparison.protocol} protocol" if comparison.protocol else ""),
        "",
        align_columns(_list_runs(comparison)),
    ]
    for difference in comparison.differences:
        lines += ["", difference.conclusion]
        rows = _list_classes(comparison, difference.name)
        if len(rows) > 1:
            lines += [f"Classes that differ most ({difference.name}):", align_columns(rows)]
    right = sum(any(each.correct) for each in comparison.images)
    lines += [
        "",
        f"{len(comparison.images)} images are not named alike; of {right} of them some run is "
        "right.",
    ]
    if comparison.images:
        lines.append(align_columns(_list_images(comparison, LISTED_IMAGES)))
    return escape_unprintable("\n".join(lines), keep="\n")


def check_comparison_dir(directory: Path, paths: Sequence[str]) -> None:
    """Raise InputError where the comparison of other runs would be overwritten."""
    file = directory / JSON_FILE
    if file.exists() and read_metrics(file).get("paths") != list(paths):
        raise InputError(
            f"The directory {directory} holds a comparison of other runs; choose another "
            "--output_dir."
        )


def write_comparison(comparison: RunComparison, directory: Path) -> None:
    """Write ``comparison.json``, ``.csv`` (images), ``.md`` and ``.png``, and one CSV of classes.

    Raises:
        InputError: The directory holds a comparison of other runs.
    """
    check_comparison_dir(directory, comparison.paths)
    write_json(directory / JSON_FILE, comparison.to_json())
    write_text(directory / "comparison.csv", format_csv(_list_images(comparison, None)))
    classes: list[Sequence[object]] = [
        (
            *(
                "run",
                "class",
                "images",
                "first_accuracy",
                "accuracy",
                "difference",
                "low",
                "high",
            ),
            *("only_first_right", "only_run_right", "p", "p_holm"),
        )
    ]
    for run in comparison.differences:
        for each in run.per_class:
            classes.append((run.name, *vars(each).values()))
    write_text(directory / "comparison_classes.csv", format_csv(classes))
    write_text(directory / "comparison.md", _format_markdown(comparison))
    save_figure(_draw_differences(comparison), directory / "comparison.png")


def write_sheet(
    images: Sequence[DifferingImage],
    shown_images: Mapping[str, Image.Image],
    runs: Sequence[str],
    path: Path,
) -> None:
    """Draw the first images, with what each run names them, into one PNG file.

    shown_images: by image id; images without one are left out.
    """
    shown = [each for each in images if each.id in shown_images][:SHEET_IMAGES]
    if not shown:
        return
    width, height = _SIDE + _GAP, _SIDE + _LINE * (len(runs) + 1) + 2 * _GAP
    rows = -(-len(shown) // _SHEET_COLUMNS)
    # Below the images the letters' meaning: whole names would run into the next image's.
    legend = _GAP + _LINE * len(runs)
    size = (width * min(len(shown), _SHEET_COLUMNS) + _GAP, height * rows + _GAP + legend)
    figure = Figure(figsize=size, facecolor="white")
    FigureCanvasAgg(figure)
    letters = [
        chr(ord("A") + number) if len(runs) <= 26 else str(number + 1)
        for number in range(len(runs))
    ]

    def write(left: float, top: float, text: str, color: str) -> None:
        place = left / size[0], top / size[1]
        figure.text(*place, text, fontsize=7, color=color, va="top", parse_math=False)

    for place, each in enumerate(shown):
        row, column = divmod(place, _SHEET_COLUMNS)
        left, top = _GAP + column * width, size[1] - _GAP - row * height
        axes = figure.add_axes(
            (left / size[0], (top - _SIDE) / size[1], _SIDE / size[0], _SIDE / size[1])
        )
        axes.imshow(np.asarray(shown_images[each.id].convert("RGB")), interpolation="nearest")
        axes.set_axis_off()
        lines = [(_shorten(each.true), TEXT_COLOR)]
        for letter, predicted, confidence, correct in zip(
            letters, each.predicted, each.confidence, each.correct, strict=True
        ):
            # Right and wrong also differ without color.
            mark = "\N{CHECK MARK}" if correct else "\N{BALLOT X}"
            text = f"{mark} {letter}: {_shorten(predicted, 20)} {100 * confidence:.0f} %"
            lines.append((text, RIGHT_COLOR if correct else WRONG_COLOR))
        for number, (text, color) in enumerate(lines):
            write(left, top - _SIDE - _GAP / 2 - _LINE * number, text, color)
    for number, (letter, run) in enumerate(zip(letters, runs, strict=True)):
        write(_GAP, legend - _LINE * number, f"{letter}: {run}", TEXT_COLOR)
    save_figure(figure, path)


def _list_runs(comparison: RunComparison) -> list[list[str]]:
    rows = [
        [
            *("run", "accuracy", "95 %", "minus the first", "95 %"),
            *("only it right", "only first right", "McNemar p", "Holm p"),
        ]
    ]
    for number, (name, (value, low, high)) in enumerate(
        zip(comparison.runs, comparison.accuracies, strict=True)
    ):
        row = [name, f"{100 * value:.2f} %", f"{100 * low:.1f} to {100 * high:.1f}"]
        if number == 0:
            row += [""] * 6
        else:
            difference = comparison.differences[number - 1]
            accuracy, test = difference.accuracy, difference.mcnemar
            row += [
                f"{100 * accuracy.difference:+.2f}",
                f"{100 * accuracy.low:+.2f} to {100 * accuracy.high:+.2f}",
                *(str(test.b), str(test.c)),
                *(format_p(test.p_value), format_p(difference.corrected_p)),
            ]
        rows.append(row)
    return rows


def _list_classes(comparison: RunComparison, run: str) -> list[list[str]]:
    """Return the classes of one run that differ most from the first, under a heading."""
    rows = [["class", "images", comparison.runs[0], run, "difference", "95 %", "Holm p"]]
    difference = next(each for each in comparison.differences if each.name == run)
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


def _list_images(comparison: RunComparison, most: int | None) -> list[list[str]]:
    rows = [["image", "true class"]]
    for name in comparison.runs:
        rows[0] += [name, "probability"]
    for each in comparison.images[:most]:
        row = [each.id, each.true]
        for predicted, confidence in zip(each.predicted, each.confidence, strict=True):
            row += [predicted, f"{confidence:.3f}"]
        rows.append(row)
    return rows


def _format_markdown(comparison: RunComparison) -> str:
    lines = ["# Comparison of runs", "", f"On {comparison.n} images."]
    lines += ["", *format_markdown_table(_list_runs(comparison)), ""]
    for difference in comparison.differences:
        lines += [f"## {difference.name} minus {comparison.runs[0]}", "", difference.conclusion, ""]
        lines += [*format_markdown_table(_list_classes(comparison, difference.name)), ""]
    lines += ["## Images that are not named alike", ""]
    lines += [f"{len(comparison.images)} of {comparison.n}; the first of them:", ""]
    lines += format_markdown_table(_list_images(comparison, LISTED_IMAGES))
    lines += [
        "",
        "Intervals are 95 %: Wilson's for accuracies, of a paired bootstrap over images for "
        "differences. McNemar's test is exact below 25 images that one run alone gets right; "
        "Holm's correction is over the runs, and over the classes of each run.",
    ]
    return escape_unprintable("\n".join(lines), keep="\n") + "\n"


def _draw_differences(comparison: RunComparison) -> Figure:
    """Draw each run's accuracy, and its difference to the first, with intervals."""
    count = len(comparison.runs)
    figure = Figure(figsize=(9, 1.6 + 0.4 * count), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    places = np.arange(count)[::-1]
    for place, (value, low, high) in zip(places, comparison.accuracies, strict=True):
        left.plot([100 * low, 100 * high], [place, place], color=TRAIN_COLOR)
        left.plot([100 * value], [place], "o", color=TRAIN_COLOR)
    for place, each in zip(places[1:], comparison.differences, strict=True):
        accuracy = each.accuracy
        ends = [100 * accuracy.low, 100 * accuracy.high]
        right.plot(ends, [place, place], color=TRAIN_COLOR)
        right.plot([100 * accuracy.difference], [place], "o", color=TRAIN_COLOR)
    right.axvline(0, color=MUTED_COLOR, linewidth=1, linestyle="--")
    left.set_yticks(places, [_shorten(name) for name in comparison.runs], parse_math=False)
    right.set_yticks(places, [""] * count)
    left.set_xlabel(f"accuracy, %, on {comparison.n} images")
    right.set_xlabel("minus the first run, points (paired)")
    right.xaxis.set_major_locator(MaxNLocator(nbins=6))
    for axes in (left, right):
        axes.grid(True, axis="x", color="#E3E3E3")
        axes.set_ylim(-0.5, count - 0.5)
    return figure


def _shorten(text: str, most: int = _NAME_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
