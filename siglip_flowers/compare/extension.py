"""Compare or rank finished runs, which ``eval.py`` does instead of an evaluation."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from siglip_flowers.base.run_dir import CONFIG_FILE
from siglip_flowers.commands.models import SOURCE_OPTIONS, read_data_defaults
from siglip_flowers.compare.comparison import compare_runs
from siglip_flowers.compare.leaderboard import format_leaderboard, rank_runs, write_leaderboard
from siglip_flowers.compare.options import CompareArguments
from siglip_flowers.compare.output import (
    SHEET_IMAGES,
    check_comparison_dir,
    format_comparison,
    write_comparison,
    write_sheet,
)
from siglip_flowers.compare.runs import read_runs
from siglip_flowers.config import DataArguments, EvaluationArguments
from siglip_flowers.config.parsing import is_first_process, parse_arguments
from siglip_flowers.data import image_ids, load_data, read_images
from siglip_flowers.evaluation.extension import EvaluationExtension


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
            rows, left_out = rank_runs(Path(str(self.options.leaderboard)))
            print(format_leaderboard(rows, left_out))
            if output_dir is not None:
                write_leaderboard(rows, left_out, output_dir)
        return True


def make_evaluation_extension(options: CompareArguments) -> EvaluationExtension:
    """Return the feature's part of an evaluation."""
    return CompareExtension(options)


def _compare(names: list[str], split: str, given: DataArguments, output_dir: Path | None) -> None:
    runs = read_runs(names, split)
    if output_dir is not None:
        check_comparison_dir(output_dir, [str(run.path) for run in runs])
    comparison = compare_runs(runs)
    print(format_comparison(comparison))
    if output_dir is not None:
        write_comparison(comparison, output_dir)
        wanted = [image.id for image in comparison.images[:SHEET_IMAGES]]
        directories = [run.path.parent for run in runs]
        found = _read_images(directories, given, comparison.split or split, wanted)
        write_sheet(comparison, found, output_dir / "comparison_images.png")


def _read_images(
    directories: Sequence[Path], given: DataArguments, split: str, wanted: Sequence[str]
) -> dict[str, Image.Image]:
    """Return images by id, or none if the data are not on this machine; nothing is downloaded."""
    arguments = given
    configs = [path / CONFIG_FILE for path in directories if (path / CONFIG_FILE).is_file()]
    if configs and all(getattr(given, name) is None for name in SOURCE_OPTIONS[:3]):
        defaults = read_data_defaults(configs[0], given)
        (arguments,) = parse_arguments(
            (DataArguments,), [], prog="eval.py", description="", defaults=defaults
        )
    local = arguments.data_dir is not None and Path(arguments.data_dir).exists()
    if not wanted or not (local or arguments.data_source == "procedural"):
        return {}
    rows = load_data(arguments).splits[split]
    place = {name: number for number, name in enumerate(image_ids(rows))}
    found = [name for name in wanted if name in place]
    images = read_images(rows, [place[name] for name in found])
    return dict(zip(found, images, strict=True))
