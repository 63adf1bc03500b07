"""Classify images: ``siglip-flowers predict``."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from siglip_flowers.base.errors import RunError
from siglip_flowers.base.files import atomic_path
from siglip_flowers.base.text import (
    count,
    escape_unprintable,
    format_csv,
    is_printable,
    measure_width,
    pad,
)
from siglip_flowers.commands.entry import Command, name_program, run_command
from siglip_flowers.commands.models import find_model
from siglip_flowers.config.evaluation import PredictionArguments
from siglip_flowers.config.rules import PREDICT_RULES
from siglip_flowers.inference.finding import STANDARD_INPUT, check_paths, find_images, insert_list
from siglip_flowers.runtime.preemption import defer_signals

if TYPE_CHECKING:
    from siglip_flowers.inference.classifier import SiglipImageClassifier

COMMAND = Command(
    name_program("predict"),
    "Classify images.",
    (PredictionArguments,),
    PREDICT_RULES,
    (
        "siglip-flowers predict image.jpg",
        "siglip-flowers predict holiday/ --model results/my-run --csv --output names.csv",
        "siglip-flowers predict '**/*.png' --top_k 1 --json",
    ),
)
CSV_COLUMNS = ("image", "rank", "label", "score", "known")
UNKNOWN = "not one of the known classes; nearest:"
MAX_NAME_WIDTH = 60

# Takes the name of an image, its results, and whether it shows a known class (None without a
# threshold), and returns the text to print.
Formatter = Callable[[str, list[dict[str, Any]], bool | None], str]


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, classify, and print the results."""
    return run_command(COMMAND, _predict, argv, parse=_parse)


def _parse(argv: list[str]) -> PredictionArguments:
    options: PredictionArguments = COMMAND.parse(argv)[0]
    check_paths(options.paths, allow_urls=options.allow_urls)
    options.model = find_model(options.model)
    return options


def _predict(options: PredictionArguments) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from siglip_flowers.data.pixels.decoding import HEIC_EXTENSIONS, list_image_extensions
        from siglip_flowers.inference.classifier import SiglipImageClassifier

    # HEIC always, to say of each such file what reading it requires.
    found = find_images(options.paths, list_image_extensions() | HEIC_EXTENSIONS)
    threshold: Any = "fitted" if options.threshold is None else options.threshold
    classifier = SiglipImageClassifier.from_pretrained(
        str(options.model),
        dtype=options.dtype,
        device=options.device,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        allow_urls=options.allow_urls,
        calibrated=options.calibrated,
        threshold=None if options.no_threshold else threshold,
    )
    with _open_output(options.output) as output:
        total, broken = _write_predictions(classifier, found, options, output)
    if broken:
        raise RunError(
            f"{broken} of {count(total, 'image')} could not be read and "
            f"{'was' if broken == 1 else 'were'} skipped; see the messages above"
        )


def _write_predictions(
    classifier: "SiglipImageClassifier",
    found: list[str],
    options: PredictionArguments,
    output: TextIO,
) -> tuple[int, int]:
    """Classify and write results as they come; return the numbers of images and of broken ones."""
    # See _predict.
    from tqdm import tqdm

    heading, format_image = choose_formatter(options, found)
    total = broken = 0
    listed = STANDARD_INPUT in found
    with tqdm(
        total=None if listed else len(found),
        unit="image",
        # A bar would be drawn into results on the terminal; None hides it if there is none.
        disable=output.isatty() or None,
        leave=False,
    ) as bar:
        output.write(heading)
        for prediction in classifier.stream(insert_list(found, sys.stdin), options.top_k):
            name = str(prediction.source)
            total += 1
            bar.update()
            if prediction.problem:
                broken += 1
                message = f"{COMMAND.prog}: {name}: {prediction.problem}"
                bar.write(escape_unprintable(message), file=sys.stderr)
            else:
                output.write(format_image(name, prediction.results, prediction.known))
    return total, broken


@contextmanager
def _open_output(path: str | None) -> Iterator[TextIO]:
    """Yield the file, whole or absent in the end, or standard output."""
    if path is not None:
        with atomic_path(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as file:
            yield file
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names as they are, whatever the terminal's own encoding is.
        sys.stdout.reconfigure(encoding="utf-8")
    yield sys.stdout


def choose_formatter(options: PredictionArguments, names: list[str]) -> tuple[str, Formatter]:
    """Return the heading of the output ("" for none) and the function that formats one image.

    Args:
        options: ``json`` or ``csv``, or a table without either.
        names: Names of images, as far as they are known, for the width of the table's column.
    """
    if options.json:
        return "", format_json_line
    if options.csv:
        return format_csv([CSV_COLUMNS]), format_csv_lines
    widths = (measure_width(escape_unprintable(name)) for name in ("image", *names))
    # Names from standard input come later.
    width = MAX_NAME_WIDTH if STANDARD_INPUT in names else min(max(widths), MAX_NAME_WIDTH)
    return f"{'image':<{width}}    score  class\n", partial(format_table_lines, width)


def format_table_lines(
    width: int, name: str, results: list[dict[str, Any]], known: bool | None
) -> str:
    """Return one line per class, the first with the image's name.

    For an image of no known class the first line says so.
    """
    lines = []
    shown = escape_unprintable(name)
    if known is False:
        lines.append(f"{pad(shown, width)}           {UNKNOWN}\n")
        shown = ""
    for result in results:
        score = f"{100 * result['score']:5.1f}%"
        lines.append(f"{pad(shown, width)}  {score}  {escape_unprintable(result['label'])}\n")
        shown = ""
    return "".join(lines)


def format_json_line(name: str, results: list[dict[str, Any]], known: bool | None) -> str:
    """Return one line, in which characters that a terminal would act on are escaped as JSON does.

    It is ``{"image": ..., "known": true|false|null, "predictions": [{"label", "score"}, ...]}``.
    """
    row = {"image": name, "known": known, "predictions": results}
    text = json.dumps(row, ensure_ascii=False)
    return "".join(c if is_printable(c) else json.dumps(c)[1:-1] for c in text) + "\n"


def format_csv_lines(name: str, results: list[dict[str, Any]], known: bool | None) -> str:
    """Return one line per class; commas, quotes and line ends are quoted as in RFC 4180.

    ``known`` is ``true``, ``false``, or empty without a threshold.
    """
    passes = "" if known is None else str(known).lower()
    return format_csv(
        (name, rank, result["label"], float(result["score"]), passes)
        for rank, result in enumerate(results, 1)
    )
