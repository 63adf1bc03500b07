"""Compare or rank finished runs, which ``eval.py`` does instead of an evaluation."""

from pathlib import Path
from typing import Any

from siglip_flowers.base.files import write_json, write_text
from siglip_flowers.base.text import align_columns, count, escape_unprintable
from siglip_flowers.compare.comparison import compare_runs, read_runs
from siglip_flowers.compare.leaderboard import format_leaderboard, rank_runs
from siglip_flowers.config import EvaluationArguments
from siglip_flowers.config.parsing import is_first_process
from siglip_flowers.evaluation.run import EvaluationExtension
from siglip_flowers.metrics.statistics import format_p

LISTED_CLASSES = 10
_NOTE = (
    "Intervals are 95%: a studentized bootstrap for accuracies, a paired bootstrap over images\n"
    "for differences. McNemar's test is the exact one; Holm's correction is over the runs, and\n"
    "over the classes of each run."
)


class Extension(EvaluationExtension):
    """Reads finished runs and evaluates nothing."""

    def run_instead(self, options: EvaluationArguments) -> bool:
        """Print the comparison or the leaderboard, and write its files to ``--output_dir``.

        Raises:
            InputError: Runs that are missing or cannot be compared.
        """
        if not is_first_process():
            return True
        output_dir = None if options.output_dir is None else Path(options.output_dir)
        if self.options.compare:
            _compare(self.options.compare, options.split, output_dir)
        else:
            text = format_leaderboard(rank_runs(Path(str(self.options.leaderboard))))
            _show(text, "Runs by test accuracy", output_dir and output_dir / "leaderboard.md")
        return True


def _show(text: str, title: str, file: Path | None) -> None:
    """Print a text and write it into a Markdown file, where its columns stay aligned."""
    print(text)
    if file is not None:
        write_text(file, f"# {title}\n\n```text\n{text}\n```\n")


def _compare(names: list[str], split: str, output_dir: Path | None) -> None:
    comparison = compare_runs(read_runs(names, split))
    text = format_comparison(comparison)
    _show(text, "Comparison of runs", output_dir and output_dir / "comparison.md")
    if output_dir is not None:
        write_json(output_dir / "comparison.json", comparison)


def format_comparison(comparison: dict[str, Any]) -> str:
    """Return the comparison as text."""
    split = f" of the {comparison['split']} split" if comparison["split"] else ""
    protocol = f", {comparison['protocol']} protocol" if comparison["protocol"] else ""
    table = align_columns(_list_runs(comparison))
    lines = [f"{count(comparison['n'], 'image')}{split}{protocol}", "", table]
    for difference in comparison["differences"]:
        lines += ["", difference["conclusion"]]
        classes = _list_classes(comparison, difference)
        if len(classes) > 1:
            lines += ["Classes with the largest differences:", "", align_columns(classes)]
    images = comparison["images"]
    right = sum(any(image["correct"]) for image in images)
    disagreement = f"The runs disagree on {count(len(images), 'image')}; on {right}, at least one"
    lines += ["", f"{disagreement} is right.", "", _NOTE]
    return escape_unprintable("\n".join(lines), keep="\n")


def _list_runs(comparison: dict[str, Any]) -> list[list[str]]:
    columns = ["run", "accuracy", "95%", "minus the first", "95%"]
    rows = [[*columns, "only it is right", "only the first is", "McNemar p", "Holm p"]]
    for name, (value, low, high) in zip(comparison["runs"], comparison["accuracies"], strict=True):
        rows.append([name, f"{100 * value:.2f}%", f"{100 * low:.1f} to {100 * high:.1f}"])
    rows[1] += [""] * 6
    for row, difference in zip(rows[2:], comparison["differences"], strict=True):
        accuracy, test = difference["accuracy"], difference["mcnemar"]
        row += [
            f"{100 * accuracy['difference']:+.2f}",
            f"{100 * accuracy['low']:+.2f} to {100 * accuracy['high']:+.2f}",
            *(str(test["b"]), str(test["c"])),
            *(format_p(test["p_value"]), format_p(difference["corrected_p"])),
        ]
    return rows


def _list_classes(comparison: dict[str, Any], difference: dict[str, Any]) -> list[list[str]]:
    """Return the classes with the largest differences, under a heading."""
    rows = [["class", "images", comparison["runs"][0], difference["name"], "difference", "Holm p"]]
    for each in difference["per_class"][:LISTED_CLASSES]:
        if each["difference"]:
            accuracies = [f"{100 * each[name]:.1f}%" for name in ("first_accuracy", "accuracy")]
            values = f"{100 * each['difference']:+.1f}", format_p(each["corrected_p"])
            rows.append([each["name"], str(each["support"]), *accuracies, *values])
    return rows
