"""How the model is trained.

Without torch, which ``transformers.TrainingArguments`` imports, so that ``--help`` and bad usage
are answered at once; ``training.py`` joins the two.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.metric_names import TRAINING_METRICS
from siglip_flowers.config.fields import (
    DTYPES,
    Options,
    between,
    check_choice,
    common,
    directory,
    not_negative,
    option,
    positive,
    steps_or_share,
    suggest_nearest,
)

OBJECTIVES = ("cross_entropy", "sigmoid", "contrastive")
CLASS_BALANCES = ("none", "weights", "sampler", "logit_adjustment")
TRACKERS = ("aim", "wandb", "tensorboard", "trackio")
STRATEGIES = ("no", "steps", "epoch")
# Optimizers of torch and transformers, with the names that --optim_args can set for each.
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adamw_torch_fused": (),
    "adamw_torch": (),
    "muon": ("lr", "momentum", "adjust_lr_fn"),
    "adafactor": (),
    "sgd": ("momentum",),
}
# The only setting among them that is a word; the others are numbers from 0 to 1.
MUON_RATES = ("original", "match_rms_adamw")
SCHEDULES = (
    *("linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "constant"),
    *("constant_with_warmup", "inverse_sqrt", "warmup_stable_decay", "reduce_lr_on_plateau"),
)


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


@cache
def parse_optim_args(optim_args: str | None) -> dict[str, str]:
    """Return the settings of ``name=value,name=value``, in lower case.

    Raises:
        InputError: It is written otherwise, or a value is neither a known word nor a number.
    """
    settings = (optim_args or "").replace(" ", "").lower().split(",")
    pairs = [setting.partition("=") for setting in settings if setting]
    if any(not (name and sign and value) for name, sign, value in pairs):
        raise InputError(f"--optim_args is {optim_args!r}; write name=value,name=value.")
    for name, _, value in pairs:
        if name == "adjust_lr_fn":
            check_choice(f"optim_args {name}", value, MUON_RATES)
            continue
        try:
            usable = 0.0 <= float(value) <= 1.0
        except ValueError:
            usable = False
        if not usable:
            raise InputError(f"--optim_args {name} is {value!r}; use a number from 0 to 1.")
    return {name: value for name, _, value in pairs}


@dataclass
class TrainingOptions(Options):
    """Training: the recipe, its schedule, logging and saving."""

    # Options of transformers.TrainingArguments; no other option of that class is known on the
    # command line or in a file.
    output_dir: str = common("results", "Where everything is written.", directory, path="output")
    num_train_epochs: float = common(10.0, "Passes over the training images.", positive)
    max_steps: int = common(-1, "Number of steps, instead of --num_train_epochs; -1: no limit.")
    per_device_train_batch_size: int = common(64, "Training images per device and step.", positive)
    per_device_eval_batch_size: int = option(128, "Evaluation images per device.", positive)
    gradient_accumulation_steps: int = common(1, "Batches per optimizer step.", positive)
    learning_rate: float = common(2e-5, "Peak rate; 1e-5 to 3e-5 for released encoders.", positive)
    weight_decay: float = common(0.05, "Weight decay, except for biases and norms.", not_negative)
    optim: str = option("adamw_torch_fused", f"One of {', '.join(OPTIMIZERS)}.", tuple(OPTIMIZERS))
    optim_args: str | None = option(None, "Settings of the optimizer: name=value,name=value.")
    adam_beta1: float = option(0.9, "AdamW's decay of gradients.", between(0, 0.999999))
    adam_beta2: float = option(0.999, "AdamW's decay of squared gradients.", between(0, 0.999999))
    adam_epsilon: float = option(1e-8, "AdamW's term for numerical stability.", positive)
    max_grad_norm: float = option(1.0, "Clip gradients to this norm; 0: off.", not_negative)
    lr_scheduler_type: str = common(
        "cosine", f"Schedule after the warm-up: {', '.join(SCHEDULES)}.", SCHEDULES
    )
    lr_scheduler_kwargs: dict[str, Any] | None = option(
        None, 'More settings of the schedule, as JSON: {"min_lr": 1e-6}.'
    )
    warmup_steps: float = common(0.1, "Warm-up steps; below 1: a share of all.", not_negative)
    label_smoothing_factor: float = common(
        0.0, "Share of the target that is spread evenly over all classes.", between(0, 0.99)
    )
    bf16: bool | None = common(None, "bfloat16 autocast; default: if the device has it.")
    fp16: bool = option(False, "float16 autocast; default: on GPUs without bfloat16.")
    tf32: bool | None = option(None, "TensorFloat-32 products; default: off.")
    gradient_checkpointing: bool = common(False, "Save memory by recomputing activations.")
    torch_compile: bool = common(False, "Compile the model: a slower start, then faster steps.")
    torch_compile_backend: str | None = option(
        None, "Backend; default: inductor.", ("inductor", "eager", "aot_eager", "cudagraphs")
    )
    torch_compile_mode: str | None = option(
        None, "Mode; default: default.", ("default", "reduce-overhead", "max-autotune")
    )
    auto_find_batch_size: bool = option(
        False,
        "If memory runs out, halve the batch per device and double --gradient_accumulation_steps. "
        "Only in a single process; with --objective contrastive, images have half the negatives.",
    )
    eval_strategy: str = option("epoch", "When to evaluate: epoch, steps or no.", STRATEGIES)
    eval_steps: float | None = option(
        None, "Steps per evaluation (below 1: a share); default: --logging_steps.", steps_or_share
    )
    eval_delay: float = option(0.0, "Epochs or steps before the first evaluation.", not_negative)
    eval_on_start: bool = option(False, "Evaluate before the first step.")
    save_strategy: str = option(
        "epoch", "When to save a checkpoint: epoch, steps, best or no.", (*STRATEGIES, "best")
    )
    save_steps: float = option(
        500, "Steps between checkpoints; below 1: a share of all steps.", steps_or_share
    )
    save_total_limit: int | None = option(1, "Checkpoints to keep, with the best one.", positive)
    load_best_model_at_end: bool = option(True, "Keep the best weights instead of the last.")
    metric_for_best_model: str = common(
        "validation_accuracy",
        "Metric that chooses the best evaluation. Whether higher is better follows from its name.",
    )
    logging_strategy: str = option("steps", "When to log: steps, epoch or no.", STRATEGIES)
    logging_steps: float = option(
        10, "Steps between log rows; below 1: a share of all steps.", steps_or_share
    )
    logging_first_step: bool = option(False, "Log the first step too.")
    logging_nan_inf_filter: bool = option(False, "Hide losses that are not finite; slower.")
    disable_tqdm: bool | None = option(None, "Hide progress bars.")
    report_to: list[str] | None = common(
        None,
        "Trackers: any of aim, wandb, tensorboard, trackio; or none. Default: aim if it is "
        "installed, or what SIGLIP_FLOWERS_REPORT_TO names.",
        (*TRACKERS, "none"),
    )
    run_name: str | None = option(None, "Name of the run in trackers; default: --output_dir.")
    seed: int = common(42, "Seed of everything random in training.", between(0, 2**32 - 1))
    data_seed: int | None = option(
        None, "Seed of the order of images; default: --seed.", between(0, 2**32 - 1)
    )
    full_determinism: bool = option(False, "Use deterministic kernels only; slower.")
    use_cpu: bool = option(False, "Train on the CPU even if there is a GPU.")
    dataloader_num_workers: int | None = option(
        None,
        "Processes that decode images; default: up to 8 per GPU, or 0 on a CPU or if --pixel_cache "
        "has the images. If shared memory has no room for their batches, fewer start.",
        between(0, 256),
    )
    dataloader_persistent_workers: bool | None = option(
        None, "Keep those processes between epochs; default: on a GPU."
    )
    dataloader_prefetch_factor: int | None = option(
        None, "Batches that each of those processes prepares ahead; default: 2.", positive
    )
    dataloader_drop_last: bool = option(False, "Drop the last training batch if it is short.")
    dataloader_pin_memory: bool = option(True, "Copy batches through pinned memory, on a GPU.")
    ddp_backend: str | None = option(None, "Backend of DDP: nccl or gloo.", ("nccl", "gloo"))
    ddp_timeout: int = option(1800, "Seconds processes wait for each other.", between(1, 999_999))
    ddp_bucket_cap_mb: int | None = option(
        None, "Megabytes of gradients that are exchanged at a time; default: 25.", positive
    )

    # Options of this package.
    overwrite_output_dir: bool = common(False, "Replace what an earlier run left in --output_dir.")
    resume: str = option(
        "auto",
        "auto or never. auto: resume an unfinished run in --output_dir from its newest whole "
        "checkpoint; never: such a run is an error.",
        ("auto", "never"),
    )
    save_dtype: str = option(
        "float32",
        "Dtype of the saved weights: float32, bfloat16 or float16. Metrics are of these weights.",
        DTYPES[1:],
    )
    head_learning_rate: float | None = common(
        1e-3, "Peak learning rate of the head; null: --learning_rate.", positive
    )
    layer_decay: float | None = common(
        None,
        "Layer-wise decay of the learning rate, for example 0.75. Each encoder layer learns at "
        "this multiple of the rate of the one above it, the embeddings slowest.",
        between(0.01, 1),
    )
    train_eval_samples: int = option(
        1020,
        "Training images, not augmented, evaluated with the validation split. At least one per "
        "class, drawn by --split_seed.",
        positive,
    )
    objective: str = common(
        "cross_entropy",
        "Loss: cross_entropy, sigmoid or contrastive. cross_entropy: softmax over the classes; "
        "sigmoid: SigLIP's pairwise sigmoid loss between images and classes; contrastive: the same "
        "between images and prompts of their classes, training both towers.",
        OBJECTIVES,
    )
    class_balance: str = common(
        "none",
        "For classes of different sizes: none, weights, sampler or logit_adjustment. weights: of "
        "the loss, by inverse frequency; sampler: images of small classes are drawn more often; "
        "logit_adjustment: they get a margin in training, and scores assume equal frequencies.",
        CLASS_BALANCES,
    )
    class_balance_strength: float = option(
        1.0, "Exponent of the class frequencies in --class_balance.", between(0, 2)
    )
    patch_drop: float = option(
        0.0,
        "Share of the patches of each training image that is left out, at random: faster steps, "
        "and regularization. For fixed-resolution checkpoints.",
        between(0, 0.9),
    )
    patch_drop_until: float = option(
        0.8, "Share of all steps after which --patch_drop ends.", between(0, 1)
    )
    train_text_tower: bool = option(True, "contrastive: train the text tower too.")
    ema: float | None = option(
        None, "Decay of a moving average of weights, which is saved.", between(0, 0.999999)
    )
    wise_ft: str | None = option(
        None,
        "Weight-space ensemble of the start and the trained model: 0 to 1, or sweep. The start is "
        "the text or probe head; 0 is the start, and sweep chooses on the validation split.",
    )
    early_stopping_patience: int | None = common(
        None, "Stop after this many evaluations without a new best.", positive
    )
    on_nan: str = option(
        "stop",
        "If a loss or gradient norm is not finite: stop before a checkpoint is written with it, or "
        "skip the update, which waits for the device in every step.",
        ("stop", "skip"),
    )
    max_bad_steps: int = option(10, "Most steps that --on_nan skip leaves out.", positive)
    cpu_threads: int | None = option(
        None,
        "Threads on a CPU; default: OMP_NUM_THREADS, or a share of the cores.",
        between(1, 4096),
    )
    aim_repo: str | None = option(
        None,
        "Directory of the Aim repository, or aim://host:port; default: AIM_REPO, else the nearest "
        "one above the working directory, else that directory.",
        path="output",
    )

    def __post_init__(self) -> None:
        if self.report_to is not None:
            self.report_to = [name for name in self.report_to if name != "none"] or ["none"]
        super().__post_init__()
        if self.max_steps == 0 or self.max_steps < -1:
            raise InputError(
                f"--max_steps is {self.max_steps}; give a number of steps, or -1 for no limit."
            )
        if self.metric_for_best_model not in TRAINING_METRICS:
            word = re.sub("^(eval|val|test|validation)_", "", self.metric_for_best_model)
            wanted = f"validation_{word}"
            similar = [metric for metric in TRAINING_METRICS if metric.startswith(wanted)]
            nearest = suggest_nearest((similar or [wanted])[0], set(TRAINING_METRICS))
            raise InputError(f"--metric_for_best_model is {self.metric_for_best_model!r}{nearest}")
        parse_wise_ft(self.wise_ft)
        parse_optim_args(self.optim_args)
