"""Classify images: ``siglip-flowers predict`` and ``python -m siglip_flowers predict``."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, get_args, get_type_hints

from siglip_flowers.base.errors import RunError
from siglip_flowers.base.files import atomic_path
from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.commands.entry import run_command
from siglip_flowers.commands.models import find_model
from siglip_flowers.config.parsing import refuse_argument, refuse_usage
from siglip_flowers.config.prediction import PredictionArguments
from siglip_flowers.inference.finding import (
    STANDARD_INPUT,
    check_paths,
    find_images,
    insert_list,
)
from siglip_flowers.inference.output import choose_formatter
from siglip_flowers.runtime.preemption import defer_signals

if TYPE_CHECKING:
    from siglip_flowers.inference.classifier import SiglipImageClassifier

PROG = "siglip-flowers predict"
# Fewer are classified before one could read a bar.
SILENT_IMAGES = 200


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        refuse_usage(message)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, classify, and print the results."""
    given = sys.argv[1:] if argv is None else argv
    return run_command(PROG, lambda: _predict(given), check=lambda: _check(given))


def _check(argv: list[str]) -> None:
    options = parse_prediction_arguments(argv)
    check_paths(options.paths, allow_urls=options.allow_urls)
    find_model(options.model)


def _predict(argv: list[str]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from siglip_flowers.data.pixels.decoding import list_image_extensions
        from siglip_flowers.inference.classifier import SiglipImageClassifier

    options = parse_prediction_arguments(argv)
    found = find_images(options.paths, list_image_extensions())
    classifier = SiglipImageClassifier.from_pretrained(
        find_model(options.model),
        dtype=options.dtype,
        device=options.device,
        compile=options.compile,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        allow_urls=options.allow_urls,
        calibrated=options.calibrated,
        threshold=None
        if options.no_threshold
        else "fitted"
        if options.threshold is None
        else options.threshold,
    )
    kind = "json" if options.json else "csv" if options.csv else "table"
    # They stay so where whoever reads standard output has enough.
    count = broken = 0
    with _open_output(options.output) as output:
        count, broken = _write_predictions(classifier, found, kind, options.top_k, output)
    if broken:
        raise RunError(
            f"{broken} of {count} images could not be read and were skipped; they are named above"
        )


def _write_predictions(
    classifier: "SiglipImageClassifier", found: list[str], kind: str, top_k: int, output: TextIO
) -> tuple[int, int]:
    """Classify and write as the results come; return the number of images and of broken ones."""
    # See _predict.
    from tqdm import tqdm

    heading, format_image = choose_formatter(kind, found)
    listed = STANDARD_INPUT in found
    count = broken = 0
    with tqdm(
        total=None if listed else len(found),
        unit="image",
        # None: only where there is no terminal.
        disable=True if not listed and len(found) < SILENT_IMAGES else None,
        leave=False,
    ) as bar:
        output.write(heading)
        for prediction in classifier.stream(insert_list(found, sys.stdin), top_k):
            name = str(prediction.source)
            count += 1
            bar.update()
            if prediction.problem:
                broken += 1
                message = f"{PROG}: {name}: {prediction.problem}"
                bar.write(escape_unprintable(message), file=sys.stderr)
            else:
                output.write(format_image(name, prediction.results, prediction.known))
    return count, broken


def parse_prediction_arguments(argv: list[str]) -> PredictionArguments:
    """Read paths and options in any order.

    Raises:
        InputError: Unknown option, wrong type, value out of range, or no path.
    """
    parser = _Parser(
        prog=PROG,
        description="Name what images show.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    hints = get_type_hints(PredictionArguments)
    known = set()
    for item in dataclasses.fields(PredictionArguments):
        text = item.metadata["help"]
        if item.name == "paths":
            parser.add_argument("paths", nargs="*", metavar="PATH", help=text)
            continue
        known.add(item.name)
        names = sorted({f"--{item.name}", f"--{item.name.replace('_', '-')}"}, reverse=True)
        settings: dict[str, Any] = (
            {"action": "store_true"}
            if hints[item.name] is bool
            else {
                "type": _get_type(hints[item.name]),
                "default": item.default,
                "metavar": item.name.upper(),
            }
        )
        parser.add_argument(*names, dest=item.name, help=text, **settings)
    namespace, rest = parser.parse_known_intermixed_args(argv)
    if rest:
        refuse_argument(rest[0], known)
    return PredictionArguments(**vars(namespace))


def _get_type(hint: Any) -> type:
    """Return what turns an option's text into a value: the first type of its annotation."""
    found: type = next((kind for kind in get_args(hint) if kind is not type(None)), hint)
    return found


@contextmanager
def _open_output(path: str | None) -> Iterator[TextIO]:
    """Yield the file, whole or absent in the end, or standard output, which may be closed early."""
    if path is not None:
        with atomic_path(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as file:
            yield file
        return
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the results, such as head, has enough. What is left in the buffer must not
        # raise the error again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
