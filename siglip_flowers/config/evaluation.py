"""What is evaluated, and how."""

from dataclasses import dataclass, field

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.checks import check_choice, check_positive
from siglip_flowers.config.precision import DTYPES

SPLITS = ("train", "validation", "test")
TTA_KINDS = ("none", "flip", "multicrop")


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
    report: bool = field(
        default=False,
        metadata={
            "help": "Write a report (report.html, metrics.json, CSV and PNG) to the directory "
            "report_SPLIT in --output_dir, or in the run's directory, and print a summary."
        },
    )
    unknown_dir: str | None = field(
        default=None,
        metadata={
            "help": "--report: a folder of images that show none of the classes; how well scores "
            "tell them from the split's is reported beside the drawn ones."
        },
    )
    robustness: bool = field(
        default=False,
        metadata={
            "help": "Measure accuracy on changed images too: noise, blur, fog, snow, JPEG and "
            "others at five strengths, rotation, scale and resolution. 75 passes more; "
            "--max_eval_samples makes it shorter."
        },
    )
    tta: str = field(
        default="none",
        metadata={
            "help": "Test-time augmentation: measure what averaging probabilities over views of a "
            "image gains and costs. flip: and the mirrored image; multicrop: and five crops."
        },
    )
    compare: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Compare finished runs instead: two or more directories (or predictions files) "
            "with predictions of the same images; each is compared with the first."
        },
    )
    leaderboard: str | None = field(
        default=None,
        metadata={
            "help": "Rank all runs below this directory instead; without a name, results.",
            "nargs": "?",
            "const": "results",
        },
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
        check_choice("tta", self.tta, TTA_KINDS)
        self._check_tables()
        if self.dataloader_num_workers < 0:
            raise InputError(
                f"--dataloader_num_workers is {self.dataloader_num_workers}; it must be at least 0."
            )
        if self.zero_shot != (self.model_name_or_path is not None):
            raise InputError(
                "--zero_shot and --model_name_or_path go together; a trained model is named with "
                "--model."
            )
        if self.report and self.zero_shot and self.output_dir is None:
            raise InputError("--report with --zero_shot needs --output_dir; name a directory.")
        if self.unknown_dir is not None and not self.report:
            raise InputError(
                f"--unknown_dir {self.unknown_dir} is for the report; add --report true."
            )
        if self.zero_shot and self.model is not None:
            raise InputError(
                f"--model {self.model} is a trained model and --zero_shot evaluates a checkpoint; "
                "give one of the two."
            )

    def _check_tables(self) -> None:
        """Check the two options that read finished runs and evaluate nothing."""
        if len(self.compare) == 1:
            raise InputError(
                f"--compare names one run, {self.compare[0]}; name the first and those that are "
                "compared with it."
            )
        names = [name for name in ("compare", "leaderboard") if getattr(self, name)]
        if len(names) == 2:
            raise InputError("--compare and --leaderboard are two commands; give one of them.")
        for name in ("model", "zero_shot", "report", "robustness"):
            if names and getattr(self, name):
                raise InputError(
                    f"--{names[0]} reads finished runs, so --{name} has no use; drop one of them."
                )
