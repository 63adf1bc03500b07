"""Fit the out-of-distribution threshold of a model: ``siglip-flowers threshold``."""

import sys
from pathlib import Path

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.text import count, escape_unprintable
from siglip_flowers.commands.entry import run_command
from siglip_flowers.commands.models import find_model, parse_with_run_data
from siglip_flowers.config import DataArguments
from siglip_flowers.config.parsing import parse_arguments
from siglip_flowers.config.threshold import ThresholdArguments
from siglip_flowers.inference.finding import check_paths
from siglip_flowers.runtime.preemption import defer_signals

PROG = "siglip-flowers threshold"
DESCRIPTION = "Fit the score below which predict reports an image as none of the known classes."
KINDS = (ThresholdArguments, DataArguments)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, fit the threshold, and print how well it separates images."""
    given = sys.argv[1:] if argv is None else argv
    return run_command(PROG, lambda: _fit(given), check=lambda: _check(given))


def _check(argv: list[str]) -> None:
    options, _ = parse_arguments(KINDS, argv, prog=PROG, description=DESCRIPTION)
    if options.ood_dir is not None:
        check_paths([options.ood_dir], allow_urls=False)
    model = find_model(options.model)
    if not (Path(model) / "config.json").is_file():
        raise InputError(
            f"The model {model} is not a local model directory, and the threshold is written "
            "beside the weights. Name a directory with --model."
        )


def _fit(argv: list[str]) -> None:
    # Imports that take seconds and that --help and bad usage do not need.
    with defer_signals():
        from siglip_flowers.data import check_data_arguments, load_data
        from siglip_flowers.data.names import follow_model_classes
        from siglip_flowers.evaluation.fitting import (
            classify_folder,
            fit_ood_detector,
            format_ood_choice,
            format_separation,
            score_split,
        )
        from siglip_flowers.evaluation.predict import PassOptions, evaluate_split
        from siglip_flowers.inference.sidecars import OOD_FILE
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
    detector, figures = fit_ood_detector(
        model, processor, results["train"], results["validation"], options.accepted
    )
    print(escape_unprintable(f"{options.model} on {data.description}"))
    print(format_ood_choice(figures))
    if options.ood_dir is not None:
        unknown = detector.score_images(
            *classify_folder(model, processor, options.ood_dir), model.config.activation
        )
        known = score_split(detector, model, results["validation"])
        print(f"\n{count(len(unknown), 'image')} in {options.ood_dir}:")
        print(format_separation(measure_separation(known, unknown, options.accepted)))
    detector.save(Path(options.model))
    print(f"Saved to {Path(options.model) / OOD_FILE}")
