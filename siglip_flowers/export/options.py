"""Options of ``siglip-flowers export``."""

from dataclasses import dataclass
from pathlib import Path

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.fields import check_choice, check_positive, option

FORMATS = ("onnx", "exported_program", "safetensors_native")


@dataclass
class ExportArguments:
    """A model, a format and a directory."""

    model: str | None = option(
        None,
        "A model directory (results/my-run/model, or the run's directory) or a Hub "
        "id; default: the newest model under results/.",
        path=True,
    )
    format: str | None = option(
        None,
        "onnx (model.onnx, for ONNX Runtime), exported_program (model.pt2, for "
        "torch.export.load) or safetensors_native (a plain SiglipForImageClassification, for "
        "transformers without this package).",
    )
    output: str | None = option(None, "The new directory to write.", path="output")
    int8: str | None = option(
        None,
        "onnx: also write model_int8.onnx and print its accuracy on the test split. "
        "dynamic: 8-bit weights, activations scaled at run time; static: activations by fixed "
        "scales, calibrated on training images.",
    )
    calibration_images: int = option(128, "--int8 static: training images that set the scales.")

    def __post_init__(self) -> None:
        if self.format is None:
            raise InputError(f"--format is missing; choose one of {', '.join(FORMATS)}.")
        if self.output is None:
            raise InputError("--output is missing; name the directory to write.")
        check_choice("format", self.format, FORMATS)
        check_choice("int8", self.int8, ("dynamic", "static"))
        check_positive("calibration_images", self.calibration_images)
        if self.int8 is not None and self.format != "onnx":
            raise InputError(f"--int8 requires --format onnx, not {self.format}.")
        if Path(self.output).exists():
            raise InputError(f"--output {self.output} exists; name a new directory.")
