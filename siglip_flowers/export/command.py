"""Export a classifier: ``siglip-flowers export`` and ``python -m siglip_flowers.export``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siglip_flowers.base.files import atomic_directory
from siglip_flowers.base.text import count
from siglip_flowers.commands.entry import name_program, run_command
from siglip_flowers.commands.models import parse_with_run_data
from siglip_flowers.config import DataArguments
from siglip_flowers.export.options import ExportArguments
from siglip_flowers.runtime.preemption import defer_signals

if TYPE_CHECKING:
    from siglip_flowers.export.export import Int8Options

DESCRIPTION = "Write a trained classifier in a format that runs without this package."
EXAMPLES = (
    "siglip-flowers export --model results/my-run --format onnx --output exported/onnx",
    "siglip-flowers export --format onnx --int8 dynamic --output exported/int8",
)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, export, check, and print where the files are."""
    given = sys.argv[1:] if argv is None else argv
    prog = name_program("export")
    return run_command(prog, _export, parse=lambda: _parse(given, prog))


def _parse(argv: list[str], prog: str) -> tuple[ExportArguments, DataArguments]:
    kinds = (ExportArguments, DataArguments)
    options, data_arguments = parse_with_run_data(
        kinds, argv, prog=prog, description=DESCRIPTION, examples=EXAMPLES
    )
    options.check_output()
    return options, data_arguments


def _export(parsed: tuple[ExportArguments, DataArguments]) -> None:
    # Seconds of imports, which --help and bad usage do not need.
    with defer_signals():
        from siglip_flowers.export.export import MODEL_FILES, export_model
        from siglip_flowers.export.formats import check_onnx_packages
        from siglip_flowers.model.loading import load_image_processor, load_saved_classifier
        from siglip_flowers.runtime.devices import set_cpu_threads

    options, data_arguments = parsed
    format = str(options.format)
    if format == "onnx":
        check_onnx_packages()
    set_cpu_threads(None)
    model = load_saved_classifier(str(options.model))
    processor = load_image_processor(str(options.model))
    int8 = None
    if options.int8 is not None:
        int8 = _load_images(options, data_arguments, model.class_names)
    output = Path(str(options.output))
    with atomic_directory(output) as directory:
        facts = export_model(model, processor, format, directory, int8)
    print(
        f"{output / MODEL_FILES[format]}: logits differ from the original's by at most "
        f"{facts['largest_difference']:.1e} on {count(facts['checked_images'], 'image')}"
    )
    if int8 is not None:
        figures = facts["int8"]["test"]
        print(
            f"{output / facts['int8']['file']} ({options.int8}): accuracy on "
            f"{count(figures['n'], 'test image')} {figures['accuracy_int8']:.2%}, in float32 "
            f"{figures['accuracy']:.2%}; same prediction for {figures['agreement']:.1%}; "
            f"{facts['int8']['bytes'] / 1e6:.1f} MB instead of "
            f"{facts['int8']['bytes_float32'] / 1e6:.1f} MB"
        )


def _load_images(
    options: ExportArguments, data_arguments: DataArguments, class_names: list[str]
) -> "Int8Options":
    # See _export.
    from siglip_flowers.data import check_data_arguments, load_data
    from siglip_flowers.data.names import follow_model_classes
    from siglip_flowers.data.splits import draw_rows
    from siglip_flowers.export.export import Int8Options

    check_data_arguments(data_arguments)
    data = load_data(data_arguments)
    chosen: dict[str, Any] = {
        split: draw_rows(
            follow_model_classes(data.splits[split], class_names, str(options.model)),
            number,
            data_arguments.split_seed,
            split,
        )
        for split, number in (("train", options.calibration_images), ("test", options.test_images))
    }
    return Int8Options(str(options.int8), chosen["train"], chosen["test"])
