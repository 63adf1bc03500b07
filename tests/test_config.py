"""The options: which values are allowed, and what they become on this machine."""

import dataclasses
import inspect

import pytest
import torch
from transformers import TrainingArguments
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from siglip_flowers.commands.train import main
from siglip_flowers.config import SiglipTrainingArguments
from siglip_flowers.config.saved import REFUSED, REMOVED
from siglip_flowers.config.training_options import (
    SCHEDULES,
    InheritedOptions,
    TrainingOptions,
)

# Defaults that differ from the parent's on purpose.
CHANGED_DEFAULTS = {
    *("output_dir", "num_train_epochs", "learning_rate", "weight_decay", "lr_scheduler_type"),
    *("per_device_train_batch_size", "per_device_eval_batch_size", "warmup_steps", "bf16"),
    *("gradient_checkpointing", "eval_strategy", "save_strategy", "save_total_limit"),
    *("load_best_model_at_end", "metric_for_best_model", "logging_steps", "report_to"),
    *("logging_nan_inf_filter", "dataloader_num_workers", "dataloader_persistent_workers"),
}


def get_defaults(kind):
    return {item.name: item.default for item in dataclasses.fields(kind)}


def test_restated_defaults_are_the_parents_but_for_those_listed():
    ours, parents = get_defaults(InheritedOptions), get_defaults(TrainingArguments)
    differing = {name for name, value in ours.items() if value != parents[name]}
    # Unset in transformers 5.24, and False before.
    assert differing - {"gradient_checkpointing"} == CHANGED_DEFAULTS - {"gradient_checkpointing"}


def test_each_option_of_the_parent_is_accepted_or_refused(capsys):
    of_publishing = {"push_to_hub", "hub_model_id", "hub_private_repo"}
    accepted = set(get_defaults(TrainingOptions)) | of_publishing
    others = set(get_defaults(TrainingArguments)) - accepted
    assert set(REFUSED).isdisjoint(accepted)
    assert set(REMOVED).isdisjoint(set(get_defaults(TrainingOptions)))
    for name in sorted(others | set(REFUSED)):
        assert main([f"--{name}", "x"]) == 2
        shown = capsys.readouterr().err
        expected = (
            f"--{name} is not supported: {REFUSED[name]}"
            if name in REFUSED
            else f"Unknown option --{name}"
        )
        assert f": error: {expected}" in shown


# For each option: a good value, and a bad one with what is said about it.
VALUES = [
    ("data_source", "procedural", "web", "choose one of oxford"),
    ("split_protocol", "official", "mine", "choose one of swapped, official"),
    ("shots", "2", "0", "greater than 0"),
    ("max_train_samples", "9", "-4", "greater than 0"),
    ("max_eval_samples", "9", "0", "greater than 0"),
    ("image_workers", "2", "0", "greater than 0"),
    ("validation_fraction", "0.3", "0.5", "between 0 and 0.5"),
    ("split_seed", "1", "x", "invalid int value"),
    ("procedural_images_per_class", "5", "4", "at least 5"),
    ("procedural_image_size", "16", "15", "at least 16"),
    ("skip_corrupt_images", "true", "maybe", "use true or false"),
    ("crop_min_scale", "0.3", "0", "between 0.01 and 1"),
    ("train_resize_scale", "1", "0.9", "between 1 and 4"),
    ("horizontal_flip", "0", "1.5", "between 0 and 1"),
    ("color_jitter", "0", "1", "between 0 and 0.99"),
    ("mixup_alpha", "0.2", "-0.1", "between 0 and 100"),
    ("cutmix_alpha", "1", "nan", "use a finite number"),
    ("pooling", "mean", "max", "choose one of map, mean"),
    ("trainable", "last:3", "first:2", "use all, head or last:N"),
    ("image_size", "32", "0", "greater than 0"),
    ("max_num_patches", "64", "0", "greater than 0"),
    ("head_init", "probe", "zero", "choose one of random, text, probe"),
    ("lora_r", "4", "0", "greater than 0"),
    ("num_train_epochs", "0.5", "0", "greater than 0"),
    ("max_steps", "3", "0", "give a number of steps"),
    ("per_device_train_batch_size", "1", "0", "greater than 0"),
    ("per_device_eval_batch_size", "1", "-1", "greater than 0"),
    ("gradient_accumulation_steps", "2", "0", "greater than 0"),
    ("learning_rate", "1e-5", "-1", "greater than 0"),
    ("head_learning_rate", "1e-2", "inf", "use a finite number"),
    ("weight_decay", "0", "-0.1", "at least 0"),
    ("optim", "adafactor", "adamw_bnb_8bit", "choose one of adamw_torch_fused"),
    ("optim_args", "eps=1", "momentum", "write name=value"),
    ("adam_beta1", "0", "1", "between 0 and"),
    ("adam_beta2", "0.99", "1.5", "between 0 and"),
    ("adam_epsilon", "1e-6", "0", "greater than 0"),
    ("max_grad_norm", "0", "-1", "at least 0"),
    ("lr_scheduler_type", "linear", "sawtooth", "choose one of linear"),
    ("lr_scheduler_kwargs", '{"num_cycles": 1}', "{", "invalid JSON"),
    ("warmup_steps", "0", "-1", "at least 0"),
    ("label_smoothing_factor", "0.1", "1", "between 0 and 0.99"),
    ("bf16", "false", "16", "use true or false"),
    ("torch_compile_backend", "eager", "x", "choose one of inductor"),
    ("torch_compile_mode", "default", "fast", "choose one of default"),
    ("torch_empty_cache_steps", "5", "0", "greater than 0"),
    ("eval_strategy", "epoch", "never", "choose one of no, steps, epoch"),
    ("eval_steps", "0.5", "1.5", "use a whole number of steps"),
    ("eval_delay", "1", "-1", "at least 0"),
    ("eval_accumulation_steps", "1", "0", "greater than 0"),
    ("save_strategy", "best", "x", "choose one of no, steps, epoch, best"),
    ("save_steps", "10", "0", "greater than 0"),
    ("save_total_limit", "2", "0", "greater than 0"),
    ("save_dtype", "bfloat16", "int8", "choose one of float32, bfloat16, float16"),
    ("metric_for_best_model", "train_nll", "f1", "did you mean validation_f1_"),
    ("metric_for_best_model", "validation_f1_macro", "loss", "did you mean validation_loss?"),
    ("logging_strategy", "epoch", "x", "choose one of no, steps, epoch"),
    ("logging_steps", "5", "0", "greater than 0"),
    ("report_to", "wandb", "mlflow", "choose one of aim, wandb"),
    ("seed", "0", "-1", "between 0 and"),
    ("data_seed", "3", "4294967296", "between 0 and"),
    ("dataloader_num_workers", "0", "-1", "at least 0"),
    ("dataloader_prefetch_factor", "2", "0", "greater than 0"),
    ("ddp_backend", "gloo", "mpi", "choose one of nccl, gloo"),
    ("ddp_timeout", "60", "0", "greater than 0"),
    ("ddp_bucket_cap_mb", "10", "0", "greater than 0"),
    ("resume", "never", "always", "choose one of auto, never"),
    ("layer_decay", "0.7", "1.5", "between 0.01 and 1"),
    ("train_eval_samples", "3", "0", "greater than 0"),
    ("objective", "sigmoid", "x", "choose one of cross_entropy"),
    ("class_balance", "weights", "x", "choose one of none, weights, sampler"),
    ("class_balance_strength", "0.5", "-1", "between 0 and 2"),
    ("patch_drop", "0.5", "1", "between 0 and 0.9"),
    ("patch_drop_until", "0.5", "2", "between 0 and 1"),
    ("ema", "0.9", "1.5", "between 0 and"),
    ("wise_ft", "sweep", "1.5", "use a number from 0 to 1, or sweep"),
    ("early_stopping_patience", "1", "0", "greater than 0"),
    ("on_nan", "skip", "rollback", "choose one of stop, skip"),
    ("max_bad_steps", "1", "0", "greater than 0"),
    ("max_grad_norm_stop", "5", "0", "greater than 0"),
    ("cpu_threads", "1", "0", "greater than 0"),
]


@pytest.mark.parametrize(("name", "good", "bad", "message"), VALUES, ids=lambda value: value[:30])
def test_a_bad_value_is_refused_and_a_good_one_is_not(name, good, bad, message, capsys):
    assert main([f"--{name}", bad]) == 2
    shown = capsys.readouterr().err
    assert f"--{name}" in shown
    assert message in shown
    # What is wrong next is something else.
    assert main([f"--{name}", good, "--unheard_of"]) == 2
    assert "Unknown option --unheard_of" in capsys.readouterr().err


def test_settings_of_schedules_are_those_that_they_take():
    common = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items():
        if kind.value in SCHEDULES and kind.value != "reduce_lr_on_plateau":
            taken = set(inspect.signature(function).parameters) - common
            assert set(SCHEDULES[kind.value]) == taken, kind
    plateau = inspect.signature(torch.optim.lr_scheduler.ReduceLROnPlateau).parameters
    assert set(SCHEDULES["reduce_lr_on_plateau"]) <= set(plateau)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without a GPU")
def test_a_machine_without_a_gpu_trains_on_its_processor():
    arguments = SiglipTrainingArguments.from_options(TrainingOptions())
    assert arguments.device == torch.device("cpu")
    assert arguments.dataloader_pin_memory is False
    assert SiglipTrainingArguments(bf16=True).bf16 is True
    assert SiglipTrainingArguments(bf16=False).bf16 is False


def test_gradient_checkpointing_warns_of_no_deprecation(recwarn):
    arguments = SiglipTrainingArguments(gradient_checkpointing=True)
    assert arguments.gradient_checkpointing is True
    assert arguments.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert not [warning for warning in recwarn if "deprecated" in str(warning.message)]
