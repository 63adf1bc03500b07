"""What is classified by ``siglip-flowers predict``, with what, and how it is printed."""

import math
from dataclasses import dataclass

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.checks import check_choice, check_positive
from siglip_flowers.config.fields import option
from siglip_flowers.config.precision import DTYPES


@dataclass
class PredictionArguments:
    """Prediction: which images are classified, and how."""

    paths: list[str] = option(
        [],
        "Image files, folders, quoted patterns ('**/*.jpg'), URLs with --allow_urls, or - for a "
        "list on standard input, one per line.",
        positional=True,
        path=True,
    )
    model: str | None = option(
        None,
        "A model directory, a run's directory or a Hub id; default: the newest model under "
        "results/.",
        path=True,
    )
    top_k: int = option(5, "Classes named for each image.")
    json: bool = option(False, "Print JSON lines, one per image, instead of a table.")
    csv: bool = option(False, "Print CSV, one line per class, instead of a table.")
    output: str | None = option(
        None, "Write the results to this file instead of standard output.", path=True
    )
    batch_size: int | None = option(
        None, "Images per batch; default: 256 on an accelerator and 32 on a CPU."
    )
    dtype: str = option(
        "auto",
        "Dtype of the encoder: auto, float32, bfloat16 or float16. auto: bfloat16 if the device "
        "computes it natively, else float32; float16 requires CUDA.",
    )
    device: str | None = option(
        None, "cpu, cuda, cuda:1, ...; default: the accelerator if there is one."
    )
    compile: bool = option(False, "Compile the model: a slower start, then faster.")
    num_workers: int | None = option(None, "Decoding threads; default: one per usable core.")
    threshold: float | None = option(
        None,
        "Mark images whose score of being known is below this; default: the fitted threshold, if "
        "there is one. The score is the fitted one, or else the highest probability.",
    )
    no_threshold: bool = option(False, "Do not mark images of none of the known classes.")
    calibrated: bool = option(
        False,
        "Divide the logits by the fitted temperature. Scores are then as often right as they say; "
        "the order of classes does not change.",
    )
    allow_urls: bool = option(False, "Fetch http and https URLs, up to 64 MiB and 20 seconds each.")

    def __post_init__(self) -> None:
        if not self.paths:
            raise InputError(
                "There is nothing to classify; name files, folders or quoted patterns, or - for a "
                "list on standard input."
            )
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise InputError(f"--threshold is {self.threshold}; it must be a finite number.")
        for name in ("top_k", "batch_size", "num_workers"):
            check_positive(name, getattr(self, name))
        check_choice("dtype", self.dtype, DTYPES)
