"""What is evaluated, and how."""

from dataclasses import dataclass, field

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.checks import check_choice, check_positive
from siglip_flowers.config.precision import DTYPES

SPLITS = ("train", "validation", "test")


@dataclass
class EvaluationArguments:
    """What to evaluate, and on which split."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "A model directory (results/my-run/model, or the run's directory) or a Hub "
            "id; left out, the newest model under results/."
        },
    )
    split: str = field(default="test", metadata={"help": "train, validation or test."})
    zero_shot: bool = field(
        default=False,
        metadata={"help": "Evaluate --model_name_or_path by its text tower, without training."},
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The two-tower SigLIP checkpoint of --zero_shot."}
    )
    prompt_templates: str | None = field(
        default=None,
        metadata={"help": "--zero_shot: a file with one prompt a line, {} for the class name."},
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Write metrics_SPLIT.json and predictions_SPLIT.parquet here."},
    )
    per_device_eval_batch_size: int = field(
        default=128, metadata={"help": "Images per device and step."}
    )
    dataloader_num_workers: int = field(
        default=0,
        metadata={"help": "Decoding processes; 0 decodes in threads, beside the model as well."},
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Number format of the encoder: float32, for figures that are exact; auto "
            "(bfloat16 where the device computes it natively), bfloat16, or float16 on CUDA."
        },
    )
    compile: bool = field(
        default=False,
        metadata={"help": "Compile the model: faster after seconds to a minute at the start."},
    )

    def __post_init__(self) -> None:
        check_choice("split", self.split, SPLITS)
        check_positive("per_device_eval_batch_size", self.per_device_eval_batch_size)
        check_choice("dtype", self.dtype, DTYPES)
        if self.dataloader_num_workers < 0:
            raise InputError(
                f"--dataloader_num_workers is {self.dataloader_num_workers}; it must be at least 0."
            )
        if self.zero_shot != (self.model_name_or_path is not None):
            raise InputError(
                "--zero_shot and --model_name_or_path go together; a trained model is named with "
                "--model."
            )
        if self.zero_shot and self.model is not None:
            raise InputError(
                f"--model {self.model} is a trained model and --zero_shot evaluates a checkpoint; "
                "give one of the two."
            )
