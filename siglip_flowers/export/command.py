"""Export a classifier: ``siglip-flowers export``."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from siglip_flowers.base.files import atomic_directory
from siglip_flowers.base.text import count
from siglip_flowers.commands.entry import Command, run_command
from siglip_flowers.commands.models import parse_with_run_data
from siglip_flowers.config import DataArguments
from siglip_flowers.config.rules import DATA_RULES
from siglip_flowers.export.options import ExportArguments
from siglip_flowers.runtime.preemption import defer_signals

if TYPE_CHECKING:
    import datasets

COMMAND = Command(
    "siglip-flowers export",
    "Write a trained classifier in a format that runs without this package.",
    (ExportArguments, DataArguments),
    DATA_RULES,
    (
        "siglip-flowers export --model results/my-run --format onnx --output exported/onnx",
        "siglip-flowers export --format onnx --int8 --output exported/int8",
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, export, check, and print where the files are."""
    return run_command(COMMAND, _export, argv, parse=partial(parse_with_run_data, COMMAND))


def _export(parsed: tuple[ExportArguments, DataArguments]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from siglip_flowers.export.export import MODEL_FILES, export_model
        from siglip_flowers.export.formats import check_onnx_packages
        from siglip_flowers.model.loading import load_image_processor, load_saved_classifier
        from siglip_flowers.runtime.devices import set_cpu_threads

    options, data_arguments = parsed
    format, output = str(options.format), Path(str(options.output))
    if format == "onnx":
        check_onnx_packages()
    set_cpu_threads(None)
    model = load_saved_classifier(str(options.model))
    processor = load_image_processor(str(options.model))
    test = _load_test(options, data_arguments, model.class_names) if options.int8 else None
    with atomic_directory(output) as directory:
        facts = export_model(model, processor, format, directory, test)
    print(
        f"{output / MODEL_FILES[format]}: logits differ from the original's by at most "
        f"{facts['largest_difference']:.1e} on {count(facts['checked_images'], 'image')}"
    )
    if test is not None:
        figures, sizes = facts["int8"]["test"], facts["int8"]
        print(
            f"{output / sizes['file']}: accuracy on "
            f"{count(figures['n'], 'test image')} {figures['accuracy_int8']:.2%}, in float32 "
            f"{figures['accuracy']:.2%}; same prediction for {figures['agreement']:.1%}; "
            f"{sizes['bytes'] / 1e6:.1f} MB instead of {sizes['bytes_float32'] / 1e6:.1f} MB"
        )


def _load_test(
    options: ExportArguments, data_arguments: DataArguments, class_names: list[str]
) -> "datasets.Dataset":
    # See _export.
    from siglip_flowers.data.names import follow_model_classes
    from siglip_flowers.data.sources.load import check_data_arguments, load_data

    check_data_arguments(data_arguments)
    test = load_data(data_arguments).splits["test"]
    return follow_model_classes(test, class_names, str(options.model))
