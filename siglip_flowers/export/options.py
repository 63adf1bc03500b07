"""Options of ``siglip-flowers export``."""

from dataclasses import dataclass
from pathlib import Path

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.evaluation import MODEL_HELP
from siglip_flowers.config.fields import Options, directory, option

FORMATS = ("onnx", "exported_program", "safetensors_native")


@dataclass
class ExportArguments(Options):
    """A model, a format and a directory."""

    model: str | None = option(None, MODEL_HELP, path=True)
    format: str | None = option(
        None,
        "onnx (for ONNX Runtime), exported_program (for torch.export.load) or safetensors_native "
        "(a plain SiglipForImageClassification, for transformers without this package).",
        FORMATS,
    )
    output: str | None = option(None, "The new directory to write.", directory, path="output")
    int8: bool = option(
        False, "onnx: also write 8-bit weights, and print the accuracy on the test images."
    )

    def __post_init__(self) -> None:
        if self.format is None:
            raise InputError(f"--format is missing; choose one of {', '.join(FORMATS)}.")
        if self.output is None:
            raise InputError("--output is missing; name the directory to write.")
        super().__post_init__()
        if self.int8 and self.format != "onnx":
            raise InputError(f"--int8 requires --format onnx, not {self.format}.")
        if Path(self.output).exists():
            raise InputError(f"--output {self.output} exists; name a new directory.")
