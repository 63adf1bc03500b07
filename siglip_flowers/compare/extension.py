"""Compare or rank finished runs, which ``eval.py`` does instead of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from siglip_flowers.base.files import CONFIG_FILE, write_json, write_text
from siglip_flowers.base.text import align_columns, escape_unprintable
from siglip_flowers.commands.models import SOURCE_OPTIONS, read_data_defaults
from siglip_flowers.compare.comparison import (
    RunComparison,
    RunDifference,
    compare_runs,
    read_runs,
)
from siglip_flowers.compare.leaderboard import format_leaderboard, rank_runs
from siglip_flowers.compare.options import CompareArguments
from siglip_flowers.config import DataArguments, EvaluationArguments
from siglip_flowers.config.parsing import is_first_process, parse_arguments
from siglip_flowers.data import image_ids, load_data, read_images
from siglip_flowers.evaluation.run import EvaluationExtension
from siglip_flowers.metrics.statistics import format_p
from siglip_flowers.plots.theme import make_figure, save_figure, shorten

SHEET_IMAGES = 24
LISTED_CLASSES = 10
_SHEET_COLUMNS = 6
_NAME_LETTERS = 26
_NOTE = (
    "Intervals are 95 %: a studentized bootstrap for accuracies, a paired bootstrap over images\n"
    "for differences. McNemar's test is the exact one; Holm's correction is over the runs, and\n"
    "over the classes of each run."
)


class CompareExtension(EvaluationExtension):
    """Reads finished runs and evaluates nothing."""

    def __init__(self, options: CompareArguments) -> None:
        self.options = options

    def run_instead(self, options: EvaluationArguments, data_arguments: DataArguments) -> bool:
        """Print the comparison or the leaderboard, and write its files to ``--output_dir``.

        Raises:
            InputError: Runs that are missing or cannot be compared.
        """
        if not is_first_process():
            return True
        output_dir = None if options.output_dir is None else Path(options.output_dir)
        if self.options.compare:
            _compare(self.options.compare, options.split, data_arguments, output_dir)
        else:
            text = format_leaderboard(*rank_runs(Path(str(self.options.leaderboard))))
            _show(text, "Runs by test accuracy", output_dir and output_dir / "leaderboard.md")
        return True


def make_evaluation_extension(options: CompareArguments) -> EvaluationExtension:
    """Return the feature's part of an evaluation."""
    return CompareExtension(options)


def _show(text: str, title: str, file: Path | None) -> None:
    """Print a text and write it into a Markdown file, where its columns stay aligned."""
    print(text)
    if file is not None:
        write_text(file, f"# {title}\n\n```text\n{text}\n```\n")


def _compare(names: list[str], split: str, given: DataArguments, output_dir: Path | None) -> None:
    runs = read_runs(names, split)
    comparison = compare_runs(runs)
    text = format_comparison(comparison)
    _show(text, "Comparison of runs", output_dir and output_dir / "comparison.md")
    if output_dir is not None:
        write_json(output_dir / "comparison.json", asdict(comparison))
        wanted = [image.id for image in comparison.images[:SHEET_IMAGES]]
        directories = [run.path.parent for run in runs]
        found = _read_images(directories, given, comparison.split or split, wanted)
        if found:
            _draw_sheet(comparison, found, output_dir / "comparison_images.png")


def _read_images(
    directories: Sequence[Path], given: DataArguments, split: str, wanted: Sequence[str]
) -> dict[str, Image.Image]:
    """Return images by id, or none if the data are not on this machine; nothing is downloaded."""
    arguments = given
    configs = [path / CONFIG_FILE for path in directories if (path / CONFIG_FILE).is_file()]
    if configs and all(getattr(given, name) is None for name in SOURCE_OPTIONS[:3]):
        defaults = read_data_defaults(configs[0], given)
        (arguments,) = parse_arguments((DataArguments,), [], defaults=defaults)
    local = arguments.data_dir is not None and Path(arguments.data_dir).exists()
    if not wanted or not (local or arguments.data_source == "procedural"):
        return {}
    rows = load_data(arguments).splits[split]
    place = {name: number for number, name in enumerate(image_ids(rows))}
    found = [name for name in wanted if name in place]
    images = read_images(rows, [place[name] for name in found])
    return dict(zip(found, images, strict=True))


def format_comparison(comparison: RunComparison) -> str:
    """Return the comparison as text."""
    split = f" of the {comparison.split} split" if comparison.split else ""
    protocol = f", {comparison.protocol} protocol" if comparison.protocol else ""
    lines = [f"{comparison.n} images{split}{protocol}", "", align_columns(_list_runs(comparison))]
    for difference in comparison.differences:
        lines += ["", difference.conclusion]
        classes = _list_classes(comparison, difference)
        if len(classes) > 1:
            lines += ["Classes with the largest differences:", "", align_columns(classes)]
    right = sum(any(each.correct) for each in comparison.images)
    disagreement = f"The runs disagree on {len(comparison.images)} images, {right} of them right"
    lines += ["", f"{disagreement} in some run.", "", _NOTE]
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
    rows = [["class", "images", comparison.runs[0], difference.name, "difference", "Holm p"]]
    for each in difference.per_class[:LISTED_CLASSES]:
        if each.difference:
            accuracies = f"{100 * each.first_accuracy:.1f} %", f"{100 * each.accuracy:.1f} %"
            values = f"{100 * each.difference:+.1f}", format_p(each.corrected_p)
            rows.append([each.name, str(each.support), *accuracies, *values])
    return rows


def _draw_sheet(comparison: RunComparison, found: Mapping[str, Image.Image], path: Path) -> None:
    """Draw images on which the runs disagree, with the answer of each run, into a PNG file."""
    shown = [each for each in comparison.images if each.id in found]
    columns, letters = min(len(shown), _SHEET_COLUMNS), "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    rows, lines = -(-len(shown) // columns), len(comparison.runs) + 1
    runs = [f"{letter}: {name}" for letter, name in zip(letters, comparison.runs, strict=False)]
    figure = make_figure(2.4 * columns, (2.2 + 0.16 * lines) * rows + 0.5, "; ".join(runs))
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, each in zip(figure.axes, shown, strict=False):
        axes.imshow(np.asarray(found[each.id]), interpolation="nearest")
        texts = [shorten(each.true, _NAME_LETTERS)]
        for letter, name, confidence, correct in zip(
            letters, each.predicted, each.confidence, each.correct, strict=False
        ):
            mark = "\N{CHECK MARK}" if correct else "\N{BALLOT X}"
            texts.append(f"{mark} {letter}: {shorten(name, 20)} {100 * confidence:.0f} %")
        axes.set_title("\n".join(texts), fontsize=7, loc="left", parse_math=False)
    save_figure(figure, path)
