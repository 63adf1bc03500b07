"""How the model is trained: the options of this package, and the defaults it changes.

Without torch, which ``transformers.TrainingArguments`` imports, so that ``--help`` and bad usage
are answered at once; ``training.py`` joins the two.
"""

from dataclasses import dataclass, field

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.checks import check_choice, check_positive, check_range

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
class TrainingOptions:
    """The recipe of fine-tuning SigLIP.

    The fields up to the blank comment line restate one of ``transformers.TrainingArguments``, most
    of them with another default; the others are new.
    """

    output_dir: str | None = field(
        default="results",
        metadata={"help": "Where model, checkpoints, metrics and images are written."},
    )
    per_device_train_batch_size: int = field(
        default=64, metadata={"help": "Training images per device and step."}
    )
    per_device_eval_batch_size: int = field(
        default=128, metadata={"help": "Evaluation images per device and step."}
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
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "Learning-rate schedule after the warm-up."}
    )
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Warm-up: a number of steps, or below 1 a share of all."}
    )
    bf16: bool | None = field(
        default=None,
        metadata={"help": "bfloat16 autocast; default: where the device computes it natively."},
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log rows."})
    eval_strategy: str = field(
        default="epoch", metadata={"help": "When to evaluate: epoch, steps or no."}
    )
    save_strategy: str = field(
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
    report_to: list[str] | None = field(
        default=None,
        metadata={
            "help": "Trackers: any of aim, wandb, tensorboard, trackio; or none. Default: aim, "
            "where it is installed, or what SIGLIP_FLOWERS_REPORT_TO names."
        },
    )
    dataloader_num_workers: int | None = field(
        default=None,
        metadata={"help": "Processes that decode images; default: 0 on CPU, up to 8 a GPU."},
    )
    dataloader_persistent_workers: bool | None = field(
        default=None,
        metadata={
            "help": "Keep those processes from epoch to epoch instead of starting them anew; "
            "default: on a GPU."
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Stays false: the input path needs every column."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Stays false: every trained parameter has a gradient."}
    )
    label_smoothing_factor: float = field(
        default=0.0,
        metadata={"help": "Share of the target that is spread evenly over all classes."},
    )
    auto_find_batch_size: bool = field(
        default=False,
        metadata={
            "help": "Where memory runs out, halve the batch of a device, double "
            "--gradient_accumulation_steps and go on; a step sees the same images. In a single "
            "process; of several, the one without memory names the smaller batch and ends."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Hide a loss that is not finite from the log; the check costs time."},
    )
    # The feature "publish" pushes finished runs; these options of the Trainer are not offered.
    push_to_hub: bool = field(default=False, init=False)
    hub_model_id: str | None = field(default=None, init=False)
    hub_private_repo: bool | None = field(default=None, init=False)
    hub_token: str | None = field(default=None, init=False)
    hub_strategy: str = field(default="every_save", init=False)
    hub_always_push: bool = field(default=False, init=False)
    hub_revision: str | None = field(default=None, init=False)
    #
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace what an earlier run left in --output_dir."}
    )
    head_learning_rate: float | None = field(
        default=1e-3,
        metadata={"help": "Peak learning rate of a fresh head; null: --learning_rate."},
    )
    layer_decay: float | None = field(
        default=None,
        metadata={
            "help": "Layer-wise decay of the learning rate, e.g. 0.75: each encoder layer learns "
            "at this multiple of the one above it, the embeddings slowest."
        },
    )
    train_eval_samples: int = field(
        default=1020,
        metadata={"help": "Training images, unaugmented, evaluated beside the validation split."},
    )
    objective: str = field(
        default="cross_entropy",
        metadata={
            "help": "cross_entropy: softmax over the classes; sigmoid: SigLIP's pairwise sigmoid "
            "loss between images and classes; contrastive: the same between images and prompts "
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
    cpu_threads: int | None = field(
        default=None,
        metadata={
            "help": "Threads that compute on a CPU; default: what OMP_NUM_THREADS says, and under "
            "accelerate launch, which sets that to 1, this process's share of the cores."
        },
    )
    resume: str = field(
        default="auto",
        metadata={
            "help": "auto: go on with an unfinished run in --output_dir from its newest whole "
            "checkpoint; never: such a run is an error."
        },
    )
    on_nan: str = field(
        default="stop",
        metadata={
            "help": "What a loss or gradient norm that is not finite leads to. stop: the run "
            "ends before it writes another checkpoint; skip: the step makes no update, which "
            "waits for the device in every step."
        },
    )
    max_bad_steps: int = field(
        default=10,
        metadata={"help": "Bad steps that --on_nan skip passes over before the run stops."},
    )
    max_grad_norm_stop: float | None = field(
        default=None,
        metadata={"help": "A gradient norm above this, before clipping, counts as not finite too."},
    )
    aim_repo: str | None = field(
        default=None,
        metadata={
            "help": "Directory of the Aim repository, or aim://host:port; default: AIM_REPO, else "
            "the nearest above the working directory, else that itself."
        },
    )
    wandb_log_model: bool = field(
        default=False, metadata={"help": "Upload the final model to W&B as an artifact."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a new best."}
    )

    def __post_init__(self) -> None:
        for name in ("learning_rate", "head_learning_rate", "num_train_epochs"):
            check_positive(name, getattr(self, name))
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
            check_positive(name, getattr(self, name))
        for name in ("train_eval_samples", "early_stopping_patience", "cpu_threads"):
            check_positive(name, getattr(self, name))
        check_range("label_smoothing_factor", self.label_smoothing_factor, 0.0, 0.99)
        check_choice("resume", self.resume, ("auto", "never"))
        check_choice("on_nan", self.on_nan, ("stop", "skip"))
        check_positive("max_bad_steps", self.max_bad_steps)
        check_positive("max_grad_norm_stop", self.max_grad_norm_stop)
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("class_weights", self.class_weights, ("none", "balanced"))
        if self.class_weights == "balanced" and self.objective != "cross_entropy":
            raise InputError(
                f"--class_weights balanced goes with --objective cross_entropy, not "
                f"{self.objective}; drop it."
            )
        if self.layer_decay is not None:
            check_range("layer_decay", self.layer_decay, 0.01, 1.0)
        if self.ema is not None:
            check_range("ema", self.ema, 0.0, 0.999999)
        parse_wise_ft(self.wise_ft)
        if self.report_to is not None:
            names = [name for name in self.report_to if name != "none"]
            for name in names:
                check_choice("report_to", name, TRACKERS)
            self.report_to = names or ["none"]
