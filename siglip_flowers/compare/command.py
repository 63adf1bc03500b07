"""What ``eval.py`` does with finished runs: compare them, or rank them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from siglip_flowers.base.run_dir import CONFIG_FILE
from siglip_flowers.commands.models import SOURCE_OPTIONS, read_data_defaults
from siglip_flowers.compare.options import CompareArguments
from siglip_flowers.config import DataArguments, EvaluationArguments
from siglip_flowers.config.parsing import is_first_process, parse_arguments

if TYPE_CHECKING:
    from PIL import Image


def show_runs(asked: CompareArguments, options: EvaluationArguments, given: DataArguments) -> None:
    """Print the comparison or the leaderboard, and write its files where asked.

    Raises:
        InputError: Runs that are not there, or that cannot be compared.
    """
    if not is_first_process():
        return
    output_dir = None if options.output_dir is None else Path(options.output_dir)
    if asked.compare:
        _compare(asked.compare, options.split, given, output_dir)
        return
    from siglip_flowers.compare.leaderboard import (
        format_leaderboard,
        rank_runs,
        write_leaderboard,
    )

    rows, left_out = rank_runs(Path(str(asked.leaderboard)))
    print(format_leaderboard(rows, left_out))
    if output_dir is not None:
        write_leaderboard(rows, left_out, output_dir)


def _compare(names: list[str], split: str, given: DataArguments, output_dir: Path | None) -> None:
    from siglip_flowers.compare.comparison import compare_runs
    from siglip_flowers.compare.output import (
        SHEET_IMAGES,
        check_comparison_dir,
        format_comparison,
        write_comparison,
        write_sheet,
    )
    from siglip_flowers.compare.runs import read_runs

    runs = read_runs(names, split)
    if output_dir is not None:
        check_comparison_dir(output_dir, [str(run.path) for run in runs])
    comparison = compare_runs(runs)
    print(format_comparison(comparison))
    if output_dir is None:
        return
    write_comparison(comparison, output_dir)
    wanted = [image.id for image in comparison.images[:SHEET_IMAGES]]
    shown = comparison.split or split
    images = _read_images([run.path.parent for run in runs], given, shown, wanted)
    write_sheet(comparison.images, images, comparison.runs, output_dir / "comparison_images.png")


def _read_images(
    directories: Sequence[Path], given: DataArguments, split: str, wanted: Sequence[str]
) -> "dict[str, Image.Image]":
    """Return images by id, none where the data are not at hand; nothing is downloaded."""
    from siglip_flowers.data import decode_rgb, image_ids, load_data

    arguments = given
    if all(getattr(given, name) is None for name in SOURCE_OPTIONS[:3]):
        configs = [path / CONFIG_FILE for path in directories if (path / CONFIG_FILE).is_file()]
        if configs:
            defaults = read_data_defaults(configs[0], given)
            (arguments,) = parse_arguments(
                (DataArguments,), [], prog="eval.py", description="", defaults=defaults
            )
    local = arguments.data_dir is not None and Path(arguments.data_dir).is_dir()
    if not wanted or not (local or arguments.data_source == "procedural"):
        return {}
    rows = load_data(arguments).splits[split]
    place = {name: number for number, name in enumerate(image_ids(rows))}
    return {name: decode_rgb(rows[place[name]]["image"]) for name in wanted if name in place}
