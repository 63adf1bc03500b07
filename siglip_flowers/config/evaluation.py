"""What is evaluated, and how."""

from dataclasses import dataclass

from siglip_flowers.config.checks import check_choice, check_not_negative, check_positive
from siglip_flowers.config.fields import option
from siglip_flowers.config.precision import DTYPES

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
        path=True,
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
