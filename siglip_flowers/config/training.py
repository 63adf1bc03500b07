"""How the model is trained."""

import os
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from siglip_flowers.config.checks import check_choice, check_positive, check_range
from siglip_flowers.errors import InputError

OBJECTIVES = ("cross_entropy", "sigmoid", "contrastive")
TRACKERS = ("aim", "wandb", "tensorboard", "trackio")


def parse_wise_ft(wise_ft: str | None) -> list[float]:
    """Return the alphas to try: none, the one given, or 0, 0.1, ..., 1 for ``sweep``."""
    if wise_ft is None:
        return []
    if wise_ft == "sweep":
        return [tenth / 10 for tenth in range(11)]
    try:
        alpha = float(wise_ft)
    except ValueError:
        alpha = -1.0
    if not 0.0 <= alpha <= 1.0:
        raise InputError(f"--wise_ft is {wise_ft!r}; use a number from 0 to 1, or sweep.")
    return [alpha]


@dataclass
class FlowersTrainingArguments(TrainingArguments):
    """``transformers.TrainingArguments`` with the recipe defaults of fine-tuning SigLIP.

    The fields up to the blank comment line change a default of the parent; the others are new.
    """

    output_dir: str | None = field(
        default="results",
        metadata={"help": "Where model, checkpoints, metrics and pictures are written."},
    )
    per_device_train_batch_size: int = field(
        default=64, metadata={"help": "Training pictures per device and step."}
    )
    per_device_eval_batch_size: int = field(
        default=128, metadata={"help": "Evaluation pictures per device and step."}
    )
    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes over the train split."})
    learning_rate: float = field(
        default=2e-5,
        metadata={
            "help": "Peak learning rate of the encoder. Released SigLIP checkpoints want 1e-5 to "
            "3e-5; small or untrained encoders want more."
        },
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Not on biases, norms, probe."})
    lr_scheduler_type: str = field(  # type: ignore[assignment]
        default="cosine", metadata={"help": "Learning-rate schedule after the warm-up."}
    )
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Warm-up: a number of steps, or below 1 a share of all."}
    )
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "bfloat16 autocast; default: where the device computes it natively."},
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log rows."})
    eval_strategy: str = field(  # type: ignore[assignment]
        default="epoch", metadata={"help": "When to evaluate: epoch, steps or no."}
    )
    save_strategy: str = field(  # type: ignore[assignment]
        default="epoch", metadata={"help": "When to save a checkpoint: epoch, steps, best or no."}
    )
    save_total_limit: int | None = field(
        default=1, metadata={"help": "Checkpoints to keep besides the best one."}
    )
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Keep the weights of the best evaluation, not the last."}
    )
    metric_for_best_model: str | None = field(
        default="validation_accuracy", metadata={"help": "What the best evaluation is best in."}
    )
    greater_is_better: bool | None = field(
        default=True, metadata={"help": "Whether a larger --metric_for_best_model is better."}
    )
    report_to: list[str] = field(  # type: ignore[assignment]
        default_factory=lambda: ["none"],
        metadata={"help": "Trackers: any of aim, wandb, tensorboard, trackio; or none."},
    )
    dataloader_num_workers: int | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Processes that decode pictures; default: 0 on CPU, up to 8 a GPU."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Stays false: the input path needs every column."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Stays false: every trained parameter has a gradient."}
    )
    #
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace what an earlier run left in --output_dir."}
    )
    head_learning_rate: float | None = field(
        default=1e-3,
        metadata={"help": "Peak learning rate of a fresh head; null: --learning_rate."},
    )
    train_eval_samples: int = field(
        default=1020,
        metadata={"help": "Training pictures, unaugmented, evaluated beside the validation split."},
    )
    objective: str = field(
        default="cross_entropy",
        metadata={
            "help": "cross_entropy: softmax over the classes; sigmoid: SigLIP's pairwise sigmoid "
            "loss between pictures and classes; contrastive: the same between pictures and prompts "
            "of their classes, training both towers."
        },
    )
    class_weights: str = field(
        default="none",
        metadata={"help": "balanced: weigh classes by inverse frequency (cross_entropy only)."},
    )
    train_text_tower: bool = field(
        default=True, metadata={"help": "contrastive: train the text tower too; false locks it."}
    )
    ema: float | None = field(
        default=None,
        metadata={"help": "Decay of a moving average of the weights, which is evaluated and kept."},
    )
    wise_ft: str | None = field(
        default=None,
        metadata={
            "help": "Weight-space ensemble of the start (text or probe head) and the fine-tuned "
            "model: an alpha from 0 (start) to 1, or sweep to choose it on the validation split."
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a new best."}
    )

    def __post_init__(self) -> None:
        for name in ("learning_rate", "head_learning_rate", "num_train_epochs"):
            check_positive(name, getattr(self, name))
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
            check_positive(name, getattr(self, name))
        for name in ("train_eval_samples", "early_stopping_patience"):
            check_positive(name, getattr(self, name))
        check_range("label_smoothing_factor", self.label_smoothing_factor, 0.0, 0.99)
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("class_weights", self.class_weights, ("none", "balanced"))
        if self.class_weights == "balanced" and self.objective != "cross_entropy":
            raise InputError(
                f"--class_weights balanced goes with --objective cross_entropy, not "
                f"{self.objective}; drop it."
            )
        if self.ema is not None:
            check_range("ema", self.ema, 0.0, 0.999999)
        parse_wise_ft(self.wise_ft)
        self.report_to = [name for name in self.report_to if name != "none"]
        for name in self.report_to:
            check_choice("report_to", name, TRACKERS)
        # The parent refuses bf16 on a machine without an accelerator unless told to use the CPU.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        cuda = torch.cuda.is_available() and not self.use_cpu
        if self.bf16 is None:
            self.bf16 = not self.fp16 and _computes_bf16(cuda, self.use_cpu)
        if self.dataloader_num_workers is None:
            local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            self.dataloader_num_workers = (
                min(8, (os.cpu_count() or 1) // local_ranks) if cuda else 0
            )
        if not cuda:
            self.dataloader_pin_memory = False
        super().__post_init__()

    @property
    def checkpoint_dir(self) -> str:
        """The directory that holds ``checkpoint-STEP`` directories."""
        assert self.output_dir is not None
        return os.path.join(self.output_dir, "checkpoints")


def _computes_bf16(cuda: bool, use_cpu: bool) -> bool:
    if cuda:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # A processor without these instructions emulates bfloat16, slower than float32.
    return use_cpu and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
