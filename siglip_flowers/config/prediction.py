"""What is classified by ``siglip-flowers predict``, with what, and how it is printed."""

import math
from dataclasses import dataclass, field

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.checks import check_choice, check_positive
from siglip_flowers.config.precision import DTYPES


@dataclass
class PredictionArguments:
    """Images to classify and how."""

    paths: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Image files, folders, quoted patterns ('**/*.jpg'), URLs with --allow_urls, "
            "or - for a list on standard input, one a line."
        },
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "A model directory (results/my-run/model, or the run's directory) or a Hub "
            "id; left out, the newest model under results/."
        },
    )
    top_k: int = field(default=5, metadata={"help": "Classes named for each image."})
    json: bool = field(
        default=False, metadata={"help": "Print JSON lines, an image a line, not a table."}
    )
    csv: bool = field(default=False, metadata={"help": "Print CSV, a class a line, not a table."})
    output: str | None = field(
        default=None, metadata={"help": "Write the results to this file, not to standard output."}
    )
    batch_size: int | None = field(
        default=None,
        metadata={"help": "Images a batch; left out, 256 on an accelerator and 32 on a CPU."},
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Number format of the encoder: auto (bfloat16 where the device computes it "
            "natively, else float32), float32, bfloat16, or float16 on CUDA."
        },
    )
    device: str | None = field(
        default=None,
        metadata={"help": "cpu, cuda, cuda:1, ...; left out, the accelerator if there is one."},
    )
    compile: bool = field(
        default=False,
        metadata={"help": "Compile the model: faster after seconds to a minute at the start."},
    )
    num_workers: int | None = field(
        default=None, metadata={"help": "Decoding threads; left out, one a usable core."}
    )
    threshold: float | None = field(
        default=None,
        metadata={
            "help": "Images whose score of being known is below this show none of the known "
            "classes; left out, the threshold that was fitted with the model, if there is one. "
            "The score is the fitted one, or else the highest probability."
        },
    )
    no_threshold: bool = field(
        default=False, metadata={"help": "Do not mark images of none of the known classes."}
    )
    calibrated: bool = field(
        default=False,
        metadata={
            "help": "Divide the logits by the temperature that was fitted on the validation split: "
            "scores are then as often right as they say, and the order of classes stays."
        },
    )
    allow_urls: bool = field(
        default=False,
        metadata={"help": "Fetch http and https URLs, of at most 64 MiB and 20 seconds."},
    )

    def __post_init__(self) -> None:
        if not self.paths:
            raise InputError(
                "There is nothing to classify; name files, folders or quoted patterns, or - for a "
                "list on standard input."
            )
        if self.json and self.csv:
            raise InputError("--json and --csv are two formats; give one of the two.")
        if self.threshold is not None and self.no_threshold:
            raise InputError("--threshold and --no_threshold exclude each other; give one.")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise InputError(f"--threshold is {self.threshold}; it must be a finite number.")
        check_positive("top_k", self.top_k)
        check_positive("batch_size", self.batch_size)
        check_positive("num_workers", self.num_workers)
        check_choice("dtype", self.dtype, DTYPES)
