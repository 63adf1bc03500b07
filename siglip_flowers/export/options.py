"""What is exported by ``siglip-flowers export``, and to which format."""

from dataclasses import dataclass, field

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.checks import check_choice, check_positive

FORMATS = ("onnx", "exported_program", "safetensors_native")
INT8_KINDS = ("dynamic", "static")


@dataclass
class ExportArguments:
    """A model, a format and a directory."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "A model directory (results/my-run/model, or the run's directory) or a Hub "
            "id; left out, the newest model under results/."
        },
    )
    format: str | None = field(
        default=None,
        metadata={
            "help": "onnx (model.onnx, for ONNX Runtime), exported_program (model.pt2, for "
            "torch.export.load) or safetensors_native (a plain SiglipForImageClassification, for "
            "transformers without this package)."
        },
    )
    output: str | None = field(
        default=None, metadata={"help": "The directory to write, which must not exist yet."}
    )
    int8: str | None = field(
        default=None,
        metadata={
            "help": "onnx: write model_int8.onnx too, and print what it costs in accuracy on the "
            "test split. dynamic: 8-bit weights, activations scaled as they come; static: "
            "activations by fixed scales, calibrated on training images."
        },
    )
    calibration_images: int = field(
        default=128, metadata={"help": "--int8 static: training images that set the scales."}
    )
    test_images: int | None = field(
        default=None,
        metadata={"help": "--int8: test images to measure on; left out, the whole split."},
    )
    overwrite_output: bool = field(
        default=False, metadata={"help": "Replace what an earlier export left in --output."}
    )

    def __post_init__(self) -> None:
        for name in ("format", "output"):
            if getattr(self, name) is None:
                raise InputError(
                    f"--{name} is missing; choose one of {', '.join(FORMATS)}."
                    if name == "format"
                    else "--output is missing; name the directory to write."
                )
        check_choice("format", self.format, FORMATS)
        check_choice("int8", self.int8, INT8_KINDS)
        check_positive("calibration_images", self.calibration_images)
        check_positive("test_images", self.test_images)
        if self.int8 is not None and self.format != "onnx":
            raise InputError(f"--int8 is for --format onnx, not {self.format}; leave it out.")
