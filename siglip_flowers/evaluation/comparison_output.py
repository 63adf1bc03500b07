"""A comparison of runs as text, files and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from siglip_flowers.errors import InputError
from siglip_flowers.evaluation.comparison import DifferingPicture, RunComparison
from siglip_flowers.evaluation.examples import RIGHT_COLOUR, WRONG_COLOUR
from siglip_flowers.evaluation.plots import MUTED_COLOUR, TEXT_COLOUR, TRAIN_COLOUR, save_figure
from siglip_flowers.evaluation.runs import read_metrics
from siglip_flowers.evaluation.tables import align_columns, format_markdown_table
from siglip_flowers.inference.output import escape_unprintable, format_csv
from siglip_flowers.records import write_json, write_text

JSON_FILE = "comparison.json"
# Of a sheet, and of the lists in the text.
SHEET_PICTURES = 24
LISTED_CLASSES = 10
LISTED_PICTURES = 20
_SHEET_COLUMNS = 6
# Inches.
_SIDE, _GAP, _LINE = 1.9, 0.15, 0.14
_NAME_CHARACTERS = 26


def format_comparison(comparison: RunComparison) -> str:
    """Return what is printed: runs, differences, classes and pictures."""
    lines = [
        f"{comparison.n} pictures"
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
    right = sum(any(each.correct) for each in comparison.pictures)
    lines += [
        "",
        f"{len(comparison.pictures)} pictures are not named alike; of {right} of them some run is "
        "right.",
    ]
    if comparison.pictures:
        lines.append(align_columns(_list_pictures(comparison, LISTED_PICTURES)))
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
    """Write ``comparison.json``, ``.csv`` (pictures), ``.md`` and ``.png``, and one CSV of classes.

    Raises:
        InputError: The directory holds a comparison of other runs.
    """
    check_comparison_dir(directory, comparison.paths)
    write_json(directory / JSON_FILE, comparison.to_json())
    write_text(directory / "comparison.csv", format_csv(_list_pictures(comparison, None)))
    classes: list[Sequence[object]] = [
        (
            *(
                "run",
                "class",
                "pictures",
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
    pictures: Sequence[DifferingPicture],
    images: Mapping[str, Image.Image],
    runs: Sequence[str],
    path: Path,
) -> None:
    """Draw the first pictures, with what each run names them, into one PNG file.

    images: by picture id; pictures without one are left out.
    """
    shown = [each for each in pictures if each.id in images][:SHEET_PICTURES]
    if not shown:
        return
    width, height = _SIDE + _GAP, _SIDE + _LINE * (len(runs) + 1) + 2 * _GAP
    rows = -(-len(shown) // _SHEET_COLUMNS)
    # Below the pictures the letters' meaning: whole names would run into the next picture's.
    legend = _GAP + _LINE * len(runs)
    size = (width * min(len(shown), _SHEET_COLUMNS) + _GAP, height * rows + _GAP + legend)
    figure = Figure(figsize=size, facecolor="white")
    FigureCanvasAgg(figure)
    letters = [
        chr(ord("A") + number) if len(runs) <= 26 else str(number + 1)
        for number in range(len(runs))
    ]

    def write(left: float, top: float, text: str, colour: str) -> None:
        place = left / size[0], top / size[1]
        figure.text(*place, text, fontsize=7, color=colour, va="top", parse_math=False)

    for place, each in enumerate(shown):
        row, column = divmod(place, _SHEET_COLUMNS)
        left, top = _GAP + column * width, size[1] - _GAP - row * height
        axes = figure.add_axes(
            (left / size[0], (top - _SIDE) / size[1], _SIDE / size[0], _SIDE / size[1])
        )
        axes.imshow(np.asarray(images[each.id].convert("RGB")), interpolation="nearest")
        axes.set_axis_off()
        lines = [(_shorten(each.true), TEXT_COLOUR)]
        for letter, predicted, confidence, correct in zip(
            letters, each.predicted, each.confidence, each.correct, strict=True
        ):
            # Right and wrong also differ without colour.
            mark = "\N{CHECK MARK}" if correct else "\N{BALLOT X}"
            text = f"{mark} {letter}: {_shorten(predicted, 20)} {100 * confidence:.0f} %"
            lines.append((text, RIGHT_COLOUR if correct else WRONG_COLOUR))
        for number, (text, colour) in enumerate(lines):
            write(left, top - _SIDE - _GAP / 2 - _LINE * number, text, colour)
    for number, (letter, run) in enumerate(zip(letters, runs, strict=True)):
        write(_GAP, legend - _LINE * number, f"{letter}: {run}", TEXT_COLOUR)
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
                *(_format_p(test.p_value), _format_p(difference.corrected_p)),
            ]
        rows.append(row)
    return rows


def _list_classes(comparison: RunComparison, run: str) -> list[list[str]]:
    """Return the classes of one run that differ most from the first, under a heading."""
    rows = [["class", "pictures", comparison.runs[0], run, "difference", "95 %", "Holm p"]]
    difference = next(each for each in comparison.differences if each.name == run)
    for each in difference.per_class[:LISTED_CLASSES]:
        if each.difference:
            rows.append(
                [
                    *(each.name, str(each.support)),
                    *(f"{100 * each.first_accuracy:.1f} %", f"{100 * each.accuracy:.1f} %"),
                    f"{100 * each.difference:+.1f}",
                    f"{100 * each.low:+.1f} to {100 * each.high:+.1f}",
                    _format_p(each.corrected_p),
                ]
            )
    return rows


def _list_pictures(comparison: RunComparison, most: int | None) -> list[list[str]]:
    rows = [["picture", "true class"]]
    for name in comparison.runs:
        rows[0] += [name, "probability"]
    for each in comparison.pictures[:most]:
        row = [each.id, each.true]
        for predicted, confidence in zip(each.predicted, each.confidence, strict=True):
            row += [predicted, f"{confidence:.3f}"]
        rows.append(row)
    return rows


def _format_markdown(comparison: RunComparison) -> str:
    lines = ["# Comparison of runs", "", f"On {comparison.n} pictures."]
    lines += ["", *format_markdown_table(_list_runs(comparison)), ""]
    for difference in comparison.differences:
        lines += [f"## {difference.name} minus {comparison.runs[0]}", "", difference.conclusion, ""]
        lines += [*format_markdown_table(_list_classes(comparison, difference.name)), ""]
    lines += ["## Pictures that are not named alike", ""]
    lines += [f"{len(comparison.pictures)} of {comparison.n}; the first of them:", ""]
    lines += format_markdown_table(_list_pictures(comparison, LISTED_PICTURES))
    lines += [
        "",
        "Intervals are 95 %: Wilson's for accuracies, of a paired bootstrap over pictures for "
        "differences. McNemar's test is exact below 25 pictures that one run alone gets right; "
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
        left.plot([100 * low, 100 * high], [place, place], color=TRAIN_COLOUR)
        left.plot([100 * value], [place], "o", color=TRAIN_COLOUR)
    for place, each in zip(places[1:], comparison.differences, strict=True):
        accuracy = each.accuracy
        ends = [100 * accuracy.low, 100 * accuracy.high]
        right.plot(ends, [place, place], color=TRAIN_COLOUR)
        right.plot([100 * accuracy.difference], [place], "o", color=TRAIN_COLOUR)
    right.axvline(0, color=MUTED_COLOUR, linewidth=1, linestyle="--")
    left.set_yticks(places, [_shorten(name) for name in comparison.runs], parse_math=False)
    right.set_yticks(places, [""] * count)
    left.set_xlabel(f"accuracy, %, on {comparison.n} pictures")
    right.set_xlabel("minus the first run, points (paired)")
    right.xaxis.set_major_locator(MaxNLocator(nbins=6))
    for axes in (left, right):
        axes.grid(True, axis="x", color="#E3E3E3")
        axes.set_ylim(-0.5, count - 0.5)
    return figure


def _shorten(text: str, most: int = _NAME_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _format_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
