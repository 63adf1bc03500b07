"""The settings of a run as a card shows them: what decides the result, not the machine."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from siglip_flowers.config import (
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    ProbeArguments,
    SiglipTrainingArguments,
)
from siglip_flowers.publish.finished import PATH_SETTINGS

KINDS = (
    DataArguments,
    AugmentationArguments,
    ModelArguments,
    SiglipTrainingArguments,
    ProbeArguments,
)
# Shown whether or not they have their defaults.
ALWAYS = (
    "objective",
    "pooling",
    "head_init",
    "trainable",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "head_learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "optim",
    "bf16",
    "seed",
    "split_seed",
)
# How the work was carried out and looked at, which the result does not depend on.
NOT_SHOWN = (
    *PATH_SETTINGS,
    "accelerator_config",
    "activation_checkpointing",
    "attn_implementation",
    "cpu_threads",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "ddp_backend",
    "ddp_timeout",
    "deepspeed",
    "disable_tqdm",
    "do_eval",
    "do_predict",
    "do_train",
    "feature_cache",
    "fsdp_config",
    "gradient_checkpointing",
    "hub_model_id",
    "hub_private_repo",
    "image_workers",
    "local_rank",
    "log_level",
    "log_level_replica",
    "logging_first_step",
    "logging_steps",
    "logging_strategy",
    "oxford_url",
    "per_device_eval_batch_size",
    "pixel_cache",
    "project",
    "report_to",
    "resume",
    "resume_from_checkpoint",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "trackio_bucket_id",
    "trackio_space_id",
    "trackio_static_space_id",
    "use_cpu",
    "wandb_log_model",
)


def choose_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a card shows: the essential ones, then those not at their default.

    Args:
        settings: The resolved configuration of the run.
    """
    chosen = {name: settings[name] for name in ALWAYS if name in settings}
    for kind in KINDS:
        for item in dataclasses.fields(kind):
            if item.name in settings and item.name not in (*ALWAYS, *NOT_SHOWN):
                value = settings[item.name]
                if value != _plain_default(item):
                    chosen[item.name] = value
    return chosen


def _plain_default(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    # An enumeration of the library is saved by its value.
    return getattr(item.default, "value", item.default)
