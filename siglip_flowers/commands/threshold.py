"""Fit the threshold below which an image shows no known class: ``siglip-flowers threshold``."""

import sys
from pathlib import Path

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.commands.entry import run_command
from siglip_flowers.commands.models import find_model, parse_with_run_data
from siglip_flowers.config import DataArguments
from siglip_flowers.config.parsing import parse_arguments
from siglip_flowers.config.threshold import ThresholdArguments
from siglip_flowers.inference.finding import check_paths, find_images
from siglip_flowers.runtime.preemption import defer_signals

PROG = "siglip-flowers threshold"
DESCRIPTION = "Fit the threshold below which predict says that an image shows no known class."
KINDS = (ThresholdArguments, DataArguments)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, fit, and print how well the threshold tells images apart."""
    given = sys.argv[1:] if argv is None else argv
    return run_command(PROG, lambda: _fit(given), check=lambda: _check(given))


def _check(argv: list[str]) -> None:
    options, _ = parse_arguments(KINDS, argv, prog=PROG, description=DESCRIPTION)
    if options.not_flowers is not None:
        check_paths([options.not_flowers], allow_urls=False)
    model = find_model(options.model)
    if not (Path(model) / "config.json").is_file():
        raise InputError(
            f"The model {model} is no directory with a model in it, and the threshold is kept "
            "beside the weights; name a directory with --model."
        )


def _fit(argv: list[str]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        import numpy as np

        from siglip_flowers.data import check_data_arguments, load_data
        from siglip_flowers.data.names import follow_model_classes
        from siglip_flowers.data.pixels.decoding import list_image_extensions
        from siglip_flowers.evaluation.fitting import (
            fit_open_set,
            format_open_set,
            format_separation,
            score_split,
        )
        from siglip_flowers.evaluation.predict import PassOptions, evaluate_split
        from siglip_flowers.inference.classifier import SiglipImageClassifier
        from siglip_flowers.inference.sidecars import OPEN_SET_FILE
        from siglip_flowers.metrics.ood import measure_separation
        from siglip_flowers.model.loading import load_image_processor, load_saved_classifier

    options, data_arguments = parse_with_run_data(KINDS, argv, prog=PROG, description=DESCRIPTION)
    check_data_arguments(data_arguments)
    model = load_saved_classifier(options.model)
    processor = load_image_processor(options.model)
    data = load_data(data_arguments)
    results = {}
    for split in ("train", "validation"):
        rows = follow_model_classes(data.splits[split], model.class_names, options.model)
        results[split] = evaluate_split(
            model,
            processor,
            rows,
            split,
            PassOptions(options.per_device_eval_batch_size, data_arguments=data_arguments),
        )
    open_set, figures = fit_open_set(
        model, processor, results["train"], results["validation"], options.accepted
    )
    print(escape_unprintable(f"{options.model} on {data.description}"))
    print(format_open_set(figures))
    if options.not_flowers is not None:
        classifier = SiglipImageClassifier(model, processor, dtype="float32", open_set=open_set)
        paths = find_images([options.not_flowers], list_image_extensions())
        scores = [image.known_score for image in classifier.stream(paths)]
        unknown = [score for score in scores if score is not None]
        if not unknown:
            raise RunError(f"No image in {options.not_flowers} can be read; name another folder.")
        known = score_split(open_set, model, results["validation"])
        print(f"\n{len(unknown)} of {len(scores)} images in {options.not_flowers} could be read:")
        print(format_separation(measure_separation(known, np.array(unknown), options.accepted)))
    open_set.save(Path(options.model))
    print(f"Kept in {Path(options.model) / OPEN_SET_FILE}")
