"""Fit the out-of-distribution threshold of a model: ``siglip-flowers threshold``."""

from pathlib import Path

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.text import count, escape_unprintable
from siglip_flowers.commands.entry import Command, name_program, run_command
from siglip_flowers.commands.models import parse_with_run_data
from siglip_flowers.config import DataArguments
from siglip_flowers.config.evaluation import ThresholdArguments
from siglip_flowers.config.rules import DATA_RULES
from siglip_flowers.inference.finding import check_paths
from siglip_flowers.runtime.preemption import defer_signals

COMMAND = Command(
    name_program("threshold"),
    "Fit the score below which predict reports an image as one of no known class.",
    (ThresholdArguments, DataArguments),
    DATA_RULES,
    (
        "siglip-flowers threshold --model results/my-run",
        "siglip-flowers threshold --model results/my-run --ood_dir other-images/",
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, fit the threshold, and print how well it separates images."""
    return run_command(COMMAND, _fit, argv, parse=_parse)


def _parse(argv: list[str]) -> tuple[ThresholdArguments, DataArguments]:
    options, data_arguments = parse_with_run_data(COMMAND, argv)
    if options.ood_dir is not None:
        check_paths([options.ood_dir], allow_urls=False)
    if not (Path(options.model) / "config.json").is_file():
        raise InputError(
            f"The model {options.model} is not a local model directory, and the threshold is "
            "written beside the weights. Name a directory with --model."
        )
    return options, data_arguments


def _fit(parsed: tuple[ThresholdArguments, DataArguments]) -> None:
    # Imports that take seconds and that --help and bad usage do not need.
    with defer_signals():
        from siglip_flowers.data.names import follow_model_classes
        from siglip_flowers.data.sources.load import check_data_arguments, load_data
        from siglip_flowers.evaluation.fitting import (
            classify_folder,
            fit_ood_detector,
            format_ood_choice,
            format_separation,
        )
        from siglip_flowers.evaluation.predict import PassOptions, evaluate_split
        from siglip_flowers.inference.sidecars import OOD_FILE
        from siglip_flowers.metrics.ood import measure_separation
        from siglip_flowers.model.loading import load_image_processor, load_saved_classifier

    options, data_arguments = parsed
    model_path = str(options.model)
    check_data_arguments(data_arguments)
    model = load_saved_classifier(model_path)
    processor = load_image_processor(model_path)
    data = load_data(data_arguments)
    passes = PassOptions(options.per_device_eval_batch_size, data_arguments)
    results = {}
    for split in ("train", "validation"):
        rows = follow_model_classes(data.splits[split], model.class_names, model_path)
        results[split] = evaluate_split(model, processor, rows, split, passes)
    detector, figures = fit_ood_detector(
        model, processor, results["train"], results["validation"], options.accepted
    )
    print(escape_unprintable(f"{model_path} on {data.description}"))
    print(format_ood_choice(figures))
    if options.ood_dir is not None:
        activation, validation = model.config.activation, results["validation"]
        outputs = classify_folder(model, processor, options.ood_dir)
        unknown = detector.score_images(*outputs, activation)
        known = detector.score_images(validation.features, validation.logits, activation)
        print(f"\n{count(len(unknown), 'image')} in {options.ood_dir}:")
        print(format_separation(measure_separation(known, unknown, options.accepted)))
    detector.save(Path(model_path))
    print(f"Saved to {Path(model_path) / OOD_FILE}")
