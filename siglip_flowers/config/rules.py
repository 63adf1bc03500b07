"""Rules about two or more options: each is a condition and a sentence.

A rule about one option alone is checked in ``__post_init__`` of its dataclass.
"""

import dataclasses
import enum
import importlib.util
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.training_options import OPTIMIZERS, SCHEDULES, parse_optim_args


@dataclass(frozen=True)
class Rule:
    """A combination of options that a command refuses.

    Attributes:
        refuses: Takes an object with every option of the command as an attribute and returns
            whether the combination is refused.
        message: What is wrong and what to do; ``{option}`` is replaced by the option's value.
        example: A command line that the rule refuses, after variables of its environment.
    """

    refuses: Callable[[Any], bool]
    message: str
    example: str


def merge_options(*instances: Any) -> SimpleNamespace:
    """Return one object with the fields of all dataclass instances as attributes."""
    pairs = ((field.name, one) for one in instances for field in dataclasses.fields(one))
    values = {name: getattr(instance, name, None) for name, instance in pairs}
    plain = {k: v.value if isinstance(v, enum.Enum) else v for k, v in values.items()}
    return SimpleNamespace(**plain)


def check_rules(rules: Iterable[Rule], options: Any) -> None:
    """Raise InputError with the message of the first rule that refuses the options."""
    for rule in rules:
        if rule.refuses(options):
            raise InputError(rule.message.format_map(vars(options)))


DATA_RULES = (
    Rule(
        lambda o: o.data_source == "hub" and o.dataset_name is None,
        "--data_source hub requires --dataset_name.",
        "--data_source hub",
    ),
    Rule(
        lambda o: o.data_source in ("folder", "table") and o.data_dir is None,
        "--data_source {data_source} requires --data_dir.",
        "--data_source folder",
    ),
    Rule(
        lambda o: o.dataset_name is not None and o.data_source not in (None, "hub"),
        "--dataset_name requires --data_source hub, not {data_source}; remove one of them.",
        "--data_source procedural --dataset_name someone/flowers",
    ),
)


def needs_text_tower(options: Any) -> bool:
    """Return whether a training run starts from the checkpoint's text tower."""
    return options.head_init == "text" or options.objective == "contrastive"


def has_measured_start(options: Any) -> bool:
    """Return whether the model classifies before its first step: zero-shot or probed."""
    return needs_text_tower(options) or options.head_init == "probe"


def uses_fsdp() -> bool:
    """Return whether ``accelerate launch`` asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def uses_deepspeed() -> bool:
    """Return whether ``accelerate launch`` asks for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def _mixes_images(options: Any) -> bool:
    return bool(options.augment and (options.mixup_alpha or options.cutmix_alpha))


def _adapts_missing_attention(options: Any) -> bool:
    adapted = options.lora_r is not None and "attention" in (options.lora_target_modules or ())
    return adapted and (options.use_dora or options.pooling != "map")


_ADAPTER_RULES = (
    Rule(
        lambda o: o.lora_r is None and bool(o.lora_alpha or o.use_dora or o.lora_target_modules),
        "--lora_alpha, --use_dora and --lora_target_modules require --lora_r.",
        "--use_dora",
    ),
    Rule(
        lambda o: o.lora_r is not None and o.trainable != "all",
        "--lora_r {lora_r} trains adapters on a frozen encoder, which contradicts --trainable "
        "{trainable}; remove one of them.",
        "--lora_r 4 --trainable head",
    ),
    Rule(
        lambda o: o.lora_r is not None and o.from_scratch,
        "--lora_r {lora_r} would adapt an encoder of random weights; remove --from_scratch.",
        "--lora_r 4 --from_scratch",
    ),
    Rule(
        _adapts_missing_attention,
        "--lora_target_modules attention is the attention of the pooling head, which neither "
        "--use_dora true nor --pooling mean adapts; remove one of them.",
        "--lora_r 4 --pooling mean --lora_target_modules attention",
    ),
    Rule(
        lambda o: o.lora_r is not None and o.wise_ft is not None,
        "--wise_ft {wise_ft} averages whole models, which does not work with the adapters of "
        "--lora_r {lora_r}; remove one of them.",
        "--lora_r 4 --wise_ft 0.5 --head_init probe",
    ),
)
_OBJECTIVE_RULES = (
    Rule(
        lambda o: needs_text_tower(o) and o.pooling != "map",
        "--pooling {pooling} leaves the text tower's space; use --pooling map.",
        "--head_init text --pooling mean",
    ),
    Rule(
        lambda o: needs_text_tower(o) and o.from_scratch,
        "--from_scratch leaves no text tower to start from; use --head_init random and another "
        "objective than contrastive.",
        "--head_init text --from_scratch",
    ),
    Rule(
        lambda o: o.head_init == "probe" and o.objective != "cross_entropy",
        "--head_init probe requires --objective cross_entropy, not {objective}.",
        "--head_init probe --objective sigmoid",
    ),
    Rule(
        lambda o: o.head_init == "probe" and o.head == "cosine",
        "--head_init probe fits a linear head; remove --head cosine.",
        "--head_init probe --head cosine",
    ),
    Rule(
        lambda o: o.objective == "contrastive" and o.head is not None,
        "--objective contrastive has the embeddings of the prompts as its head; remove --head.",
        "--objective contrastive --head linear",
    ),
    Rule(
        lambda o: o.objective == "contrastive" and o.label_smoothing_factor > 0,
        "--objective contrastive has no classes to smooth over; set --label_smoothing_factor to 0.",
        "--objective contrastive --label_smoothing_factor 0.1",
    ),
    Rule(
        lambda o: o.objective == "contrastive" and o.class_balance != "none",
        "--objective contrastive compares images with the prompts of their batch, which "
        "--class_balance does not balance; remove it.",
        "--objective contrastive --class_balance weights",
    ),
    Rule(
        lambda o: o.objective == "contrastive" and _mixes_images(o),
        "--mixup_alpha and --cutmix_alpha mix classes, which a prompt cannot describe; set both to "
        "0 with --objective contrastive.",
        "--objective contrastive --cutmix_alpha 1",
    ),
    Rule(
        lambda o: o.wise_ft is not None and not has_measured_start(o),
        "--wise_ft {wise_ft} needs a start that classifies; add --head_init text or probe.",
        "--wise_ft 0.5",
    ),
    Rule(
        lambda o: o.layer_decay is not None and o.trainable == "head",
        "--layer_decay acts on the encoder, which --trainable head freezes; remove one of them.",
        "--layer_decay 0.7 --trainable head",
    ),
)


def _mixes_shares_and_steps(options: Any) -> bool:
    evaluated, saved = options.eval_steps or options.logging_steps, options.save_steps
    if (evaluated < 1) != (saved < 1):
        return True
    ratio = saved / evaluated
    return abs(ratio - round(ratio)) > 1e-6 or ratio < 1


def _name_settings(kind: str, settings: str, bad: str, value: str, names: tuple[str, ...]) -> Rule:
    """Return the rule that one schedule or optimizer has these settings only."""

    def refuses(options: Any) -> bool:
        given = getattr(options, settings)
        found = parse_optim_args(given) if settings == "optim_args" else given or ()
        return getattr(options, kind) == value and not set(found) <= set(names)

    known = f"the settings {', '.join(names)}" if names else "no settings"
    message = f"--{kind} {value} has {known}; change --{settings}."
    return Rule(refuses, message, f"--{kind} {value} --{settings} {bad}")


_SCHEDULE_RULES = (
    *(
        _name_settings("lr_scheduler_type", "lr_scheduler_kwargs", """'{"gamma": 1}'""", *item)
        for item in SCHEDULES.items()
    ),
    Rule(
        lambda o: (
            o.lr_scheduler_type == "cosine_with_min_lr"
            and not {"min_lr", "min_lr_rate"} & set(o.lr_scheduler_kwargs or ())
        ),
        "--lr_scheduler_type cosine_with_min_lr requires --lr_scheduler_kwargs with min_lr or "
        "min_lr_rate.",
        "--lr_scheduler_type cosine_with_min_lr",
    ),
    Rule(
        lambda o: (
            o.lr_scheduler_type == "warmup_stable_decay"
            and "num_decay_steps" not in (o.lr_scheduler_kwargs or ())
        ),
        "--lr_scheduler_type warmup_stable_decay requires --lr_scheduler_kwargs with "
        "num_decay_steps.",
        "--lr_scheduler_type warmup_stable_decay",
    ),
    Rule(
        lambda o: o.lr_scheduler_type == "reduce_lr_on_plateau" and o.eval_strategy == "no",
        "--lr_scheduler_type reduce_lr_on_plateau requires evaluations; remove --eval_strategy no.",
        "--lr_scheduler_type reduce_lr_on_plateau --eval_strategy no",
    ),
    *(_name_settings("optim", "optim_args", "gamma=1", *item) for item in OPTIMIZERS.items()),
    Rule(
        lambda o: o.early_stopping_patience is not None and o.eval_strategy == "no",
        "--early_stopping_patience requires evaluations; remove --eval_strategy no.",
        "--early_stopping_patience 2 --eval_strategy no",
    ),
    Rule(
        lambda o: o.load_best_model_at_end and o.save_strategy not in (o.eval_strategy, "best"),
        "--load_best_model_at_end requires --save_strategy and --eval_strategy to be equal, not "
        "{save_strategy} and {eval_strategy}; change one, or add --load_best_model_at_end false.",
        "--eval_strategy no",
    ),
    Rule(
        lambda o: (
            o.load_best_model_at_end
            and o.save_strategy == o.eval_strategy == "steps"
            and _mixes_shares_and_steps(o)
        ),
        "--load_best_model_at_end requires --save_steps {save_steps} to be a multiple of "
        "--eval_steps; change one, or add --load_best_model_at_end false.",
        "--eval_strategy steps --save_strategy steps --eval_steps 4 --save_steps 6",
    ),
    Rule(
        lambda o: o.fp16 and bool(o.bf16),
        "--fp16 and --bf16 contradict each other; remove one of them.",
        "--fp16 --bf16",
    ),
    Rule(
        lambda o: o.dataloader_prefetch_factor is not None and o.dataloader_num_workers == 0,
        "--dataloader_prefetch_factor requires --dataloader_num_workers of at least 1.",
        "--dataloader_prefetch_factor 2 --dataloader_num_workers 0",
    ),
)
_DDP = "launch with configs/accelerate/ddp.yaml."
_FSDP2 = "ACCELERATE_USE_FSDP=true FSDP_VERSION=2"
_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED=true ACCELERATE_DEEPSPEED_ZERO_STAGE="
# Those that ``accelerate launch`` makes apply through its environment variables.
_LAUNCH_RULES = (
    Rule(
        lambda o: uses_fsdp() and os.environ.get("FSDP_VERSION", "1") != "2",
        "Only version 2 of FSDP is supported; write fsdp_version: 2 as "
        "configs/accelerate/fsdp2.yaml does.",
        "ACCELERATE_USE_FSDP=true FSDP_VERSION=1",
    ),
    Rule(
        lambda o: uses_fsdp() and o.lora_r is not None,
        f"--lora_r {{lora_r}} trains few weights, which FSDP does not shard; {_DDP}",
        f"{_FSDP2} --lora_r 4",
    ),
    Rule(
        lambda o: uses_fsdp() and o.ema is not None,
        f"--ema keeps the whole average in every process, which FSDP excludes; remove it or {_DDP}",
        f"{_FSDP2} --ema 0.99",
    ),
    Rule(
        lambda o: o.optim == "muon" and (uses_fsdp() or uses_deepspeed()),
        "--optim muon requires whole matrices, which FSDP and DeepSpeed split; use another --optim "
        f"or {_DDP}",
        f"{_FSDP2} --optim muon",
    ),
    Rule(
        lambda o: uses_fsdp() and o.objective == "sigmoid",
        "--objective sigmoid trains single numbers, which FSDP cannot shard; use another objective "
        f"or {_DDP}",
        f"{_FSDP2} --objective sigmoid",
    ),
    Rule(
        lambda o: uses_deepspeed() and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3",
        "DeepSpeed's zero_stage 3 is not supported; use zero_stage 2 or "
        "configs/accelerate/fsdp2.yaml.",
        f"{_DEEPSPEED}3",
    ),
    Rule(
        lambda o: uses_deepspeed() and importlib.util.find_spec("deepspeed") is None,
        "The launch configuration asks for DeepSpeed, which is not installed; run pip install "
        f"deepspeed or {_DDP}",
        f"{_DEEPSPEED}2",
    ),
)
TRAIN_RULES = DATA_RULES + _ADAPTER_RULES + _OBJECTIVE_RULES + _SCHEDULE_RULES + _LAUNCH_RULES
EVAL_RULES = (
    *DATA_RULES,
    Rule(
        lambda o: o.zero_shot != (o.model_name_or_path is not None),
        "--zero_shot and --model_name_or_path require each other; a trained model is named with "
        "--model.",
        "--zero_shot",
    ),
    Rule(
        lambda o: o.zero_shot and o.model is not None,
        "--model {model} is a trained model, but --zero_shot evaluates a checkpoint; remove one of "
        "them.",
        "--model results/x --zero_shot --model_name_or_path x",
    ),
)
PREDICT_RULES = (
    Rule(
        lambda o: o.json and o.csv,
        "--json and --csv are two formats; remove one of them.",
        "x.jpg --json --csv",
    ),
    Rule(
        lambda o: o.threshold is not None and o.no_threshold,
        "--threshold and --no_threshold contradict each other; remove one of them.",
        "x.jpg --threshold 0.5 --no_threshold",
    ),
)
# The rules of each core command; those of a feature are in its options.py.
RULES = {
    "train": TRAIN_RULES,
    "eval": EVAL_RULES,
    "predict": PREDICT_RULES,
    "threshold": DATA_RULES,
}
