"""What is evaluated, predicted and fitted on a trained model, and how."""

import math
from dataclasses import dataclass

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.fields import (
    DTYPES,
    check_choice,
    check_not_negative,
    check_positive,
    option,
)

SPLITS = ("train", "validation", "test")


@dataclass
class EvaluationArguments:
    """Evaluation: which model, on which split."""

    model: str | None = option(
        None,
        "A model directory, a run's directory or a Hub id; default: the newest model under "
        "results/.",
        common=True,
        path=True,
    )
    split: str = option("test", "train, validation or test.", common=True)
    zero_shot: bool = option(
        False,
        "Evaluate --model_name_or_path with its text tower, without training.",
        common=True,
    )
    model_name_or_path: str | None = option(
        None, "The two-tower SigLIP checkpoint of --zero_shot.", common=True, path=True
    )
    prompt_templates: str | None = option(
        None,
        "--zero_shot: a file with one prompt per line, {} for the class name.",
        path=True,
    )
    output_dir: str | None = option(
        None,
        "Write metrics_SPLIT.json and predictions_SPLIT.parquet here.",
        common=True,
        path="output",
    )
    per_device_eval_batch_size: int = option(128, "Images per device and step.", common=True)
    dataloader_num_workers: int = option(
        0, "Decoding processes; 0 decodes in threads, while the model computes."
    )
    dtype: str = option(
        "float32",
        "Dtype of the encoder: float32 (exact metrics), auto, bfloat16 or float16. auto: bfloat16 "
        "if the device computes it natively, else float32; float16 requires CUDA.",
        common=True,
    )
    compile: bool = option(False, "Compile the model: a slower start, then faster.")

    def __post_init__(self) -> None:
        check_choice("split", self.split, SPLITS)
        check_positive("per_device_eval_batch_size", self.per_device_eval_batch_size)
        check_not_negative("dataloader_num_workers", self.dataloader_num_workers)
        check_choice("dtype", self.dtype, DTYPES)


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
        None, "Write the results to this file instead of standard output.", path="output"
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


@dataclass
class ThresholdArguments:
    """Threshold: which model gets one, and how many images of known classes pass it."""

    model: str | None = option(
        None,
        "A model directory or a run's directory; default: the newest model under results/.",
        common=True,
        path=True,
    )
    accepted: float = option(0.95, "Share of validation images that pass as known.", common=True)
    ood_dir: str | None = option(
        None,
        "A folder of images of none of the known classes, for a test. Prints how well the "
        "threshold separates them from the validation images; they are not used for the fit.",
        common=True,
        path=True,
    )
    per_device_eval_batch_size: int = option(128, "Images per device and step.", common=True)

    def __post_init__(self) -> None:
        if not 0 < self.accepted <= 1:
            raise InputError(
                f"--accepted is {self.accepted}; it must be greater than 0 and at most 1."
            )
        check_positive("per_device_eval_batch_size", self.per_device_eval_batch_size)
