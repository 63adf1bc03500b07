"""What is evaluated, predicted and fitted on a trained model, and how."""

from dataclasses import dataclass

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.fields import (
    DTYPES,
    Options,
    between,
    common,
    directory,
    new_file,
    option,
    positive,
)

MODEL_HELP = (
    "A model directory, a run's directory or a Hub id; default: the newest model under results/."
)
DTYPE_HELP = (
    "Dtype of the encoder: auto, float32, bfloat16 or float16. auto: bfloat16 if the device "
    "computes it natively, else float32; float16 requires CUDA."
)
SPLITS = ("train", "validation", "test")


@dataclass
class EvaluationArguments(Options):
    """Evaluation: which model, on which split."""

    model: str | None = common(None, MODEL_HELP, path=True)
    split: str = common("test", "Split: train, validation or test.", SPLITS)
    zero_shot: bool = common(False, "Evaluate --model_name_or_path with its text tower, untrained.")
    model_name_or_path: str | None = common(
        None, "The two-tower SigLIP checkpoint of --zero_shot.", path=True
    )
    prompt_templates: str | None = option(
        None, "--zero_shot: a file with one prompt per line, {} for the class name.", path=True
    )
    class_prompts: str | None = option(
        None, "--zero_shot: a YAML file with prompts for some classes.", path=True
    )
    output_dir: str | None = common(
        None,
        "Write metrics_SPLIT.json and predictions_SPLIT.parquet here.",
        directory,
        path="output",
    )
    per_device_eval_batch_size: int = common(128, "Images per device and step.", positive)
    dtype: str = common("float32", DTYPE_HELP, DTYPES)


@dataclass
class PredictionArguments(Options):
    """Prediction: which images are classified, and how."""

    paths: list[str] = option(
        [],
        "Image files, folders, quoted patterns ('**/*.jpg'), URLs with --allow_urls, or - for a "
        "list on standard input, one per line.",
        positional=True,
        path=True,
    )
    model: str | None = option(None, MODEL_HELP, path=True)
    top_k: int = option(5, "Classes to list for each image.", positive)
    json: bool = option(False, "Print JSON lines, one per image, instead of a table.")
    csv: bool = option(False, "Print CSV, one line per class, instead of a table.")
    output: str | None = option(
        None, "Write to this file instead of standard output.", new_file, path="output"
    )
    batch_size: int | None = option(None, "Images per batch; default: 256, on a CPU 32.", positive)
    dtype: str = option("auto", DTYPE_HELP, DTYPES)
    device: str | None = option(None, "cpu, cuda, cuda:1, ...; default: the accelerator if any.")
    num_workers: int | None = option(None, "Decoding threads; default: one per core.", positive)
    threshold: float | None = option(
        None,
        "Mark images whose score of being known is below this; default: the fitted threshold, if "
        "there is one. The score is the fitted one, or else the highest probability.",
    )
    no_threshold: bool = option(False, "Do not mark images of no known class.")
    calibrated: bool = option(
        False, "Divide logits by the fitted temperature, so that scores match the accuracy."
    )
    allow_urls: bool = option(False, "Fetch http and https URLs, up to 64 MiB and 20 seconds each.")

    def __post_init__(self) -> None:
        if not self.paths:
            raise InputError(
                "There is nothing to classify; name files, folders or quoted patterns, or - for a "
                "list on standard input."
            )
        super().__post_init__()


@dataclass
class ThresholdArguments(Options):
    """Threshold: which model gets one, and how many images of known classes pass it."""

    model: str | None = common(
        None, "A model's or a run's directory; default: the newest model under results/.", path=True
    )
    accepted: float = common(
        0.95, "Share of validation images that pass as known.", between(0.001, 1)
    )
    ood_dir: str | None = common(
        None,
        "A folder of images of no known class, for a test. Prints how well the "
        "threshold separates them from the validation images; they are not used for the fit.",
        path=True,
    )
    per_device_eval_batch_size: int = common(128, "Images per device and step.", positive)
