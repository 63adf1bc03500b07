"""Rules about two or more options: each is a condition and a sentence.

A rule about one option alone is checked in ``__post_init__`` of its dataclass.
"""

import dataclasses
import enum
import importlib.util
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.data import AugmentationArguments
from siglip_flowers.config.evaluation import EvaluationArguments
from siglip_flowers.config.fields import get_default, list_options
from siglip_flowers.config.model import ModelArguments
from siglip_flowers.config.training_options import OPTIMIZERS, TrainingOptions, parse_optim_args


@dataclass(frozen=True)
class Rule:
    """A combination of options that a command refuses.

    Attributes:
        refuses: Takes an object with every option of the command as an attribute and returns
            whether the combination is refused.
        message: What is wrong and what to do; ``{option}`` is replaced by the option's value.
        example: A command line that the rule refuses, after variables of its environment.
        needed: The option that the settings need.
        settings: Options without effect if ``needed`` has another value: those of a YAML file are
            dropped if the command line gives ``needed`` such a value.
    """

    refuses: Callable[[Any], bool]
    message: str
    example: str
    needed: str = ""
    settings: tuple[str, ...] = ()


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


def requires(needed: str, example: str, kind: type) -> Rule:
    """Return the rule that options have no effect without another one.

    Args:
        needed: The other option, which must differ from its default, or after a space its values.
        example: A command line with the options.
        kind: The dataclass of all of them.
    """
    defaults = {field.name: get_default(field) for field in list_options(kind)}
    other, _, values = needed.partition(" ")
    names = tuple(name for name in re.findall(r"--(\w+)", example) if name != other)

    def refuses(options: Any) -> bool:
        found = getattr(options, other)
        off = str(found).lower() not in values.split("|") if values else found == defaults[other]
        return off and any(getattr(options, name) != defaults[name] for name in names)

    verb = "requires" if len(names) == 1 else "require"
    message = f"--{', --'.join(names)} {verb} --{needed.partition('|')[0]}."
    return Rule(refuses, message, example, other, names)


DATA_RULES = (
    Rule(
        lambda o: (
            (o.data_source == "hub" and o.dataset_name is None)
            or (o.data_source in ("folder", "table") and o.data_dir is None)
        ),
        "--data_source {data_source} requires --dataset_name (for hub) or --data_dir.",
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


def _adapts_missing_attention(options: Any) -> bool:
    adapted = options.lora_r is not None and "attention" in (options.lora_target_modules or ())
    return adapted and (options.use_dora or options.pooling != "map")


def _needs_classes(options: Any) -> bool:
    mixes = options.augment and (options.mixup_alpha or options.cutmix_alpha)
    balances = options.class_balance != "none" or options.label_smoothing_factor > 0
    return bool(options.head is not None or balances or mixes)


_MODEL_RULES = (
    requires(
        "lora_r",
        "--lora_alpha 4 --lora_dropout 0.1 --use_dora --lora_target_modules fc1",
        ModelArguments,
    ),
    Rule(
        lambda o: not needs_text_tower(o) and bool(o.prompt_templates or o.class_prompts),
        "--prompt_templates and --class_prompts require --head_init text or --objective "
        "contrastive.",
        "--prompt_templates prompts.txt",
    ),
    Rule(
        lambda o: (
            o.lora_r is not None
            and (o.trainable != "all" or o.from_scratch or o.wise_ft is not None)
        ),
        "--lora_r {lora_r} trains adapters on a frozen pretrained encoder, which excludes "
        "--trainable, --from_scratch and --wise_ft; remove them or --lora_r.",
        "--lora_r 4 --trainable head",
    ),
    Rule(
        _adapts_missing_attention,
        "--lora_target_modules attention is the attention of the pooling head, which neither "
        "--use_dora true nor --pooling mean adapts; remove one of them.",
        "--lora_r 4 --pooling mean --lora_target_modules attention",
    ),
    Rule(
        lambda o: needs_text_tower(o) and (o.pooling != "map" or o.from_scratch),
        "--head_init text and --objective contrastive start from the text tower of the checkpoint, "
        "which excludes --pooling mean and --from_scratch; remove them.",
        "--head_init text --pooling mean",
    ),
    Rule(
        lambda o: o.head_init == "probe" and (o.objective != "cross_entropy" or o.head == "cosine"),
        "--head_init probe fits a linear head, which requires --objective cross_entropy and "
        "excludes --head cosine.",
        "--head_init probe --objective sigmoid",
    ),
    Rule(
        lambda o: o.objective == "contrastive" and _needs_classes(o),
        "--objective contrastive compares images with prompts instead of classes, which excludes "
        "--head, --class_balance, --label_smoothing_factor, --mixup_alpha and --cutmix_alpha; "
        "remove them or set them to 0.",
        "--objective contrastive --label_smoothing_factor 0.1",
    ),
    Rule(
        lambda o: o.wise_ft is not None and not has_measured_start(o),
        "--wise_ft {wise_ft} requires a start that classifies; add --head_init text or probe.",
        "--wise_ft 0.5",
    ),
    Rule(
        lambda o: o.layer_decay is not None and o.trainable == "head",
        "--layer_decay acts on the encoder, which --trainable head freezes; remove one of them.",
        "--layer_decay 0.7 --trainable head",
    ),
)
_SETTINGS = "; ".join(
    f"{name} has {', '.join(names)}" for name, names in OPTIMIZERS.items() if names
)


WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau")
# What transformers checks by itself is not here.
_TRAINER_RULES = (
    requires("augment true", "--augment false --train_image_size 32", AugmentationArguments),
    requires("patch_drop", "--patch_drop_until 0.5", TrainingOptions),
    requires("class_balance", "--class_balance_strength 2", TrainingOptions),
    requires("on_nan skip", "--max_bad_steps 3", TrainingOptions),
    requires(
        "optim adamw_torch_fused|adamw_torch|muon",
        "--optim sgd --adam_beta1 0.8 --adam_beta2 0.9 --adam_epsilon 0.1",
        TrainingOptions,
    ),
    requires("objective contrastive", "--train_text_tower false", TrainingOptions),
    Rule(
        lambda o: not set(parse_optim_args(o.optim_args)) <= set(OPTIMIZERS[o.optim]),
        f"--optim {{optim}} does not take --optim_args {{optim_args}}: {_SETTINGS}.",
        "--optim sgd --optim_args momentum=0.9,lr=0.1",
        "optim",
        ("optim_args",),
    ),
    Rule(
        lambda o: o.early_stopping_patience is not None and o.eval_strategy == "no",
        "--early_stopping_patience requires evaluations; remove --eval_strategy no.",
        "--early_stopping_patience 2 --eval_strategy no",
    ),
    Rule(
        lambda o: o.save_strategy == "best" and o.eval_strategy == "no",
        "--save_strategy best requires evaluations; remove --eval_strategy no.",
        "--save_strategy best --eval_strategy no",
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
            and (o.eval_steps or o.logging_steps) != o.save_steps
        ),
        "--load_best_model_at_end requires --save_steps and --eval_steps to be equal; change one, "
        "or use --save_strategy best, which saves after each new best evaluation.",
        "--eval_strategy steps --save_strategy steps --eval_steps 5 --save_steps 10",
    ),
    Rule(
        lambda o: o.lr_scheduler_type in WITHOUT_WARMUP and o.warmup_steps not in (0, 0.1),
        "--lr_scheduler_type {lr_scheduler_type} has no warm-up; set --warmup_steps to 0.",
        "--lr_scheduler_type constant --warmup_steps 20",
    ),
    Rule(
        lambda o: o.aim_repo is not None and "aim" not in (o.report_to or ["aim"]),
        "--aim_repo requires aim among the trackers of --report_to; add it or remove --aim_repo.",
        "--aim_repo runs --report_to tensorboard",
    ),
    Rule(
        lambda o: o.fp16 and bool(o.bf16),
        "--fp16 and --bf16 contradict each other; remove one of them.",
        "--fp16 --bf16",
    ),
)
_DDP = "launch with configs/accelerate/ddp.yaml."
# Those that ``accelerate launch`` makes apply through its environment variables.
_LAUNCH_RULES = (
    Rule(
        lambda o: o.ddp_backend is not None and "WORLD_SIZE" not in os.environ,
        f"--ddp_backend is for several processes; remove it or {_DDP}",
        "--ddp_backend gloo",
    ),
    Rule(
        lambda o: uses_fsdp() and os.environ.get("FSDP_VERSION", "1") != "2",
        "Only version 2 of FSDP is supported; write fsdp_version: 2 as "
        "configs/accelerate/fsdp2.yaml does.",
        "ACCELERATE_USE_FSDP=true FSDP_VERSION=1",
    ),
    Rule(
        lambda o: (
            uses_fsdp()
            and (
                o.lora_r is not None
                or o.ema is not None
                or o.optim == "muon"
                or o.objective == "sigmoid"
            )
        ),
        "FSDP shards weights, with which --lora_r, --ema, --optim muon and --objective sigmoid do "
        f"not work; remove them or {_DDP}",
        "ACCELERATE_USE_FSDP=true FSDP_VERSION=2 --ema 0.99",
    ),
    Rule(
        lambda o: (
            uses_deepspeed()
            and (
                o.optim == "muon"
                or o.on_nan == "skip"
                or os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
                or importlib.util.find_spec("deepspeed") is None
            )
        ),
        "DeepSpeed requires the package deepspeed, zero_stage 2 or less, --on_nan stop and another "
        f"--optim than muon; change this or {_DDP}",
        "ACCELERATE_USE_DEEPSPEED=true ACCELERATE_DEEPSPEED_ZERO_STAGE=3",
    ),
)
TRAIN_RULES = DATA_RULES + _MODEL_RULES + _TRAINER_RULES + _LAUNCH_RULES
EVAL_RULES = (
    *DATA_RULES,
    Rule(
        lambda o: (
            o.zero_shot != (o.model_name_or_path is not None)
            or (o.zero_shot and o.model is not None)
        ),
        "--zero_shot evaluates the checkpoint of --model_name_or_path, and requires it; a trained "
        "model is named with --model alone.",
        "--zero_shot",
    ),
    requires("zero_shot", "--prompt_templates x --class_prompts y", EvaluationArguments),
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
