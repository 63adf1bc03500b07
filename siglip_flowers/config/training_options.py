"""How the model is trained.

Without torch, which ``transformers.TrainingArguments`` imports, so that ``--help`` and bad usage
are answered at once; ``training.py`` joins the two.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Any

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.metric_names import TRAINING_METRICS
from siglip_flowers.config.fields import (
    check_choice,
    check_interval,
    check_not_negative,
    check_positive,
    check_range,
    option,
)

OBJECTIVES = ("cross_entropy", "sigmoid", "contrastive")
TRACKERS = ("aim", "wandb", "tensorboard", "trackio")
STRATEGIES = ("no", "steps", "epoch")
# Optimizers of torch and transformers, with the names that --optim_args can set for each.
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adamw_torch_fused": (),
    "adamw_torch": (),
    "muon": ("lr", "momentum", "adjust_lr_fn"),
    "adafactor": (),
    "sgd": ("momentum", "dampening", "nesterov"),
    "adagrad": ("lr_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
}
# Schedules, with the names that --lr_scheduler_kwargs can set for each.
SCHEDULES: dict[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate", "num_cycles"),
    "polynomial": ("lr_end", "power"),
    "constant": (),
    "constant_with_warmup": (),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": (
        "num_decay_steps",
        "num_stable_steps",
        "warmup_type",
        "decay_type",
        "min_lr_ratio",
        "num_cycles",
    ),
    "reduce_lr_on_plateau": ("factor", "patience", "threshold", "cooldown", "min_lr", "eps"),
}


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


def parse_optim_args(optim_args: str | None) -> dict[str, str]:
    """Return the settings of ``name=value,name=value``."""
    pairs = [part.partition("=") for part in (optim_args or "").replace(" ", "").split(",") if part]
    if any(not (name and sign and value) for name, sign, value in pairs):
        raise InputError(f"--optim_args is {optim_args!r}; write name=value,name=value.")
    return {name: value for name, _, value in pairs}


@dataclass
class InheritedOptions:
    """Options of ``transformers.TrainingArguments`` that are accepted, with our defaults.

    No other option of that class is known on the command line or in a file.
    """

    output_dir: str = option(
        "results",
        "Where everything is written.",
        common=True,
        path="output",
    )
    num_train_epochs: float = option(10.0, "Passes over the training images.", common=True)
    max_steps: int = option(
        -1, "Train for this many steps instead of --num_train_epochs; -1: no limit.", common=True
    )
    per_device_train_batch_size: int = option(
        64, "Training images per device and step.", common=True
    )
    per_device_eval_batch_size: int = option(128, "Evaluation images per device and step.")
    gradient_accumulation_steps: int = option(
        1, "Batches whose gradients are added up for each step.", common=True
    )
    learning_rate: float = option(
        2e-5,
        "Peak learning rate of the encoder. Released SigLIP checkpoints need 1e-5 to 3e-5; small "
        "or untrained encoders need more.",
        common=True,
    )
    weight_decay: float = option(
        0.05, "Weight decay, except on biases, norms and probe.", common=True
    )
    optim: str = option("adamw_torch_fused", f"Optimizer: {', '.join(OPTIMIZERS)}.")
    optim_args: str | None = option(
        None, "More settings of sgd, adagrad or rmsprop: name=value,name=value."
    )
    adam_beta1: float = option(0.9, "AdamW's decay of the average gradient.")
    adam_beta2: float = option(0.999, "AdamW's decay of the average squared gradient.")
    adam_epsilon: float = option(1e-8, "AdamW's term for numerical stability.")
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm; 0: not at all.")
    lr_scheduler_type: str = option(
        "cosine",
        f"Learning rate schedule after the warm-up. One of {', '.join(SCHEDULES)}.",
        common=True,
    )
    lr_scheduler_kwargs: dict[str, Any] | None = option(
        None, 'More settings of the schedule, as JSON: {"min_lr": 1e-6}.'
    )
    warmup_steps: float = option(
        0.1, "Warm-up: a number of steps, or below 1 a share of all steps.", common=True
    )
    label_smoothing_factor: float = option(
        0.0, "Share of the target that is spread evenly over all classes.", common=True
    )
    bf16: bool | None = option(
        None, "bfloat16 autocast; default: if the device computes it natively.", common=True
    )
    fp16: bool = option(
        False, "float16 autocast with loss scaling; default: on GPUs without bfloat16."
    )
    tf32: bool | None = option(None, "TensorFloat-32 products; default: off.")
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass, which saves memory.", common=True
    )
    torch_compile: bool = option(
        False, "Compile the model: a slower start, then faster steps.", common=True
    )
    torch_compile_backend: str | None = option(None, "Backend of torch.compile; default: inductor.")
    torch_compile_mode: str | None = option(None, "Mode of torch.compile; default: default.")
    torch_empty_cache_steps: int | None = option(
        None, "Steps after which unused memory is returned to the device; slower."
    )
    auto_find_batch_size: bool = option(
        False,
        "If memory runs out, halve the batch per device and double --gradient_accumulation_steps. "
        "A step sees the same images. Only in a single process; of several, the one that runs out "
        "names the smaller batch and ends.",
    )
    eval_strategy: str = option("epoch", "When to evaluate: epoch, steps or no.")
    eval_steps: float | None = option(
        None,
        "Steps between evaluations, or below 1 a share of all steps; default: --logging_steps.",
    )
    eval_delay: float = option(0.0, "Epochs or steps before the first evaluation.")
    eval_on_start: bool = option(False, "Evaluate before the first step.")
    eval_accumulation_steps: int | None = option(
        None, "Evaluation steps after which predictions are moved to the CPU; default: at the end."
    )
    save_strategy: str = option("epoch", "When to save a checkpoint: epoch, steps, best or no.")
    save_steps: float = option(500, "Steps between checkpoints, or below 1 a share of all steps.")
    save_total_limit: int | None = option(1, "Checkpoints to keep besides the best one.")
    load_best_model_at_end: bool = option(
        True, "Keep the weights of the best evaluation instead of the last ones."
    )
    metric_for_best_model: str = option(
        "validation_accuracy",
        "Metric that chooses the best evaluation. Whether higher is better follows from its name.",
        common=True,
    )
    logging_strategy: str = option("steps", "When to log: steps, epoch or no.")
    logging_steps: float = option(10, "Steps between log rows, or below 1 a share of all steps.")
    logging_first_step: bool = option(False, "Log the first step too.")
    logging_nan_inf_filter: bool = option(
        False, "Hide a loss that is not finite from the log; the check costs time."
    )
    disable_tqdm: bool | None = option(None, "Hide progress bars.")
    report_to: list[str] | None = option(
        None,
        "Trackers: any of aim, wandb, tensorboard, trackio; or none. Default: aim if it is "
        "installed, or what SIGLIP_FLOWERS_REPORT_TO names.",
        common=True,
    )
    run_name: str | None = option(None, "Name of the run in trackers; default: --output_dir.")
    project: str = option("huggingface", "Project of the run in trackio.")
    seed: int = option(42, "Seed of everything random in training.", common=True)
    data_seed: int | None = option(None, "Seed of the order of images; default: --seed.")
    full_determinism: bool = option(False, "Use deterministic kernels only; slower.")
    use_cpu: bool = option(False, "Train on the CPU even if there is a GPU.")
    dataloader_num_workers: int | None = option(
        None, "Processes that decode images; default: 0 on a CPU, up to 8 per GPU."
    )
    dataloader_persistent_workers: bool | None = option(
        None, "Keep those processes between epochs; default: on a GPU."
    )
    dataloader_prefetch_factor: int | None = option(
        None, "Batches that each of those processes prepares ahead; default: 2."
    )
    dataloader_drop_last: bool = option(
        False, "Drop the last training batch if it is incomplete; evaluation uses every image."
    )
    dataloader_pin_memory: bool = option(True, "Copy batches through pinned memory, on a GPU.")
    ddp_backend: str | None = option(None, "Backend of torch.distributed: nccl or gloo.")
    ddp_timeout: int = option(1800, "Seconds after which a process stops waiting for the others.")
    ddp_bucket_cap_mb: int | None = option(
        None, "Megabytes of gradients that are exchanged at a time; default: 25."
    )


@dataclass
class TrainingOptions(InheritedOptions):
    """Training: the recipe, its schedule, logging and saving."""

    overwrite_output_dir: bool = option(
        False, "Replace what an earlier run left in --output_dir.", common=True
    )
    resume: str = option(
        "auto",
        "auto or never. auto: resume an unfinished run in --output_dir from its newest whole "
        "checkpoint; never: such a run is an error.",
    )
    head_learning_rate: float | None = option(
        1e-3, "Peak learning rate of the head; null: --learning_rate.", common=True
    )
    layer_decay: float | None = option(
        None,
        "Layer-wise decay of the learning rate, for example 0.75. Each encoder layer learns at "
        "this multiple of the rate of the one above it, the embeddings slowest.",
        common=True,
    )
    train_eval_samples: int = option(
        1020, "Training images, not augmented, that are evaluated with the validation split."
    )
    objective: str = option(
        "cross_entropy",
        "cross_entropy, sigmoid or contrastive. cross_entropy: softmax over the classes; sigmoid: "
        "SigLIP's pairwise sigmoid loss between images and classes; contrastive: the same between "
        "images and prompts of their classes, training both towers.",
        common=True,
    )
    class_weights: str = option(
        "none", "balanced: weigh classes by inverse frequency (cross_entropy only)."
    )
    train_text_tower: bool = option(
        True, "contrastive: train the text tower too. false freezes it."
    )
    ema: float | None = option(
        None,
        "Decay of a moving average of the weights, which is evaluated and saved.",
    )
    wise_ft: str | None = option(
        None,
        "Weight-space ensemble of the start and the trained model: 0 to 1, or sweep. The start is "
        "the text or probe head; 0 is the start, and sweep chooses on the validation split.",
    )
    early_stopping_patience: int | None = option(
        None, "Stop after this many evaluations without a new best.", common=True
    )
    on_nan: str = option(
        "stop",
        "What happens if a loss or gradient norm is not finite: stop or skip. stop: the run ends "
        "before a checkpoint is written with it; skip: the step's update is left out, which waits "
        "for the device in every step.",
    )
    max_bad_steps: int = option(10, "Steps that --on_nan skip leaves out before the run stops.")
    max_grad_norm_stop: float | None = option(
        None, "A gradient norm above this, before clipping, counts as not finite too."
    )
    cpu_threads: int | None = option(
        None,
        "Threads that compute on a CPU; default: OMP_NUM_THREADS, or under accelerate launch, "
        "which sets that to 1, this process's share of the cores.",
    )
    aim_repo: str | None = option(
        None,
        "Directory of the Aim repository, or aim://host:port; default: AIM_REPO, else the nearest "
        "above the working directory, else that itself.",
        path="output",
    )
    wandb_log_model: bool = option(False, "Upload the final model to W&B as an artifact.")

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        if self.metric_for_best_model not in TRAINING_METRICS:
            word = re.sub("^(eval|val|test|validation)_", "", self.metric_for_best_model)
            similar = [
                metric for metric in TRAINING_METRICS if metric.startswith(f"validation_{word}")
            ]
            nearest = similar or difflib.get_close_matches(
                f"validation_{word}", TRAINING_METRICS, n=1, cutoff=0.0
            )
            raise InputError(
                f"--metric_for_best_model is {self.metric_for_best_model!r}; did you mean "
                f"{nearest[0]}?"
            )
        parse_wise_ft(self.wise_ft)
        parse_optim_args(self.optim_args)
        if self.report_to is not None:
            names = [name for name in self.report_to if name != "none"]
            for name in names:
                check_choice("report_to", name, TRACKERS)
            self.report_to = names or ["none"]

    def _check_choices(self) -> None:
        for name, choices in (
            ("optim", tuple(OPTIMIZERS)),
            ("lr_scheduler_type", tuple(SCHEDULES)),
            ("eval_strategy", STRATEGIES),
            ("logging_strategy", STRATEGIES),
            ("save_strategy", (*STRATEGIES, "best")),
            ("torch_compile_backend", ("inductor", "eager", "aot_eager", "cudagraphs")),
            ("torch_compile_mode", ("default", "reduce-overhead", "max-autotune")),
            ("ddp_backend", ("nccl", "gloo")),
            ("resume", ("auto", "never")),
            ("on_nan", ("stop", "skip")),
            ("objective", OBJECTIVES),
            ("class_weights", ("none", "balanced")),
        ):
            check_choice(name, getattr(self, name), choices)

    def _check_numbers(self) -> None:
        for name in (
            *("per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs"),
            *("gradient_accumulation_steps", "learning_rate", "head_learning_rate"),
            *("adam_epsilon", "torch_empty_cache_steps", "eval_accumulation_steps"),
            *("save_total_limit", "train_eval_samples", "early_stopping_patience"),
            *("max_bad_steps", "max_grad_norm_stop", "cpu_threads", "ddp_timeout"),
            *("ddp_bucket_cap_mb", "dataloader_prefetch_factor"),
        ):
            check_positive(name, getattr(self, name))
        for name in ("weight_decay", "max_grad_norm", "eval_delay", "dataloader_num_workers"):
            check_not_negative(name, getattr(self, name))
        for name in ("logging_steps", "eval_steps", "save_steps"):
            check_interval(name, getattr(self, name))
        check_not_negative("warmup_steps", self.warmup_steps)
        for name in ("adam_beta1", "adam_beta2"):
            check_range(name, getattr(self, name), 0.0, 0.999999)
        for name in ("seed", "data_seed"):
            check_range(name, getattr(self, name), 0, 2**32 - 1)
        check_range("label_smoothing_factor", self.label_smoothing_factor, 0.0, 0.99)
        check_range("layer_decay", self.layer_decay, 0.01, 1.0)
        check_range("ema", self.ema, 0.0, 0.999999)
        if self.max_steps == 0 or self.max_steps < -1:
            raise InputError(
                f"--max_steps is {self.max_steps}; give a number of steps, or -1 for no limit."
            )
