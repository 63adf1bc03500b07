"""The options: which values are allowed, and what they become on this machine."""

import pytest
import torch
from transformers import TrainingArguments

from siglip_flowers.base.errors import InputError
from siglip_flowers.commands.train import main
from siglip_flowers.config.saved import read_gone
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.config.training_options import TrainingOptions


def test_each_option_of_the_parent_is_accepted_or_refused(capsys):
    of_publishing = {"push_to_hub", "hub_model_id", "hub_private_repo"}
    accepted = set(TrainingOptions.__dataclass_fields__) | of_publishing
    others = set(TrainingArguments.__dataclass_fields__) - accepted
    refused, removed = read_gone()
    assert set(refused).isdisjoint(accepted)
    assert set(removed).isdisjoint(TrainingOptions.__dataclass_fields__)
    for name in sorted(others | set(refused)):
        assert main([f"--{name}", "x"]) == 2
        shown = capsys.readouterr().err
        expected = (
            f"--{name} is not supported: {refused[name]}"
            if name in refused
            else f"Unknown option --{name}"
        )
        assert f": error: {expected}" in shown


# An option for each kind of check: a good value, and a bad one with what is said about it.
VALUES = [
    ("data_source", "procedural", "web", "choose one of oxford"),
    ("shots", "2", "0", "greater than 0"),
    ("shots", "2", "99999999999999999999", "invalid int value"),
    ("dataloader_num_workers", "2", "9999", "between 0 and 256"),
    # As of a variable of the shell that is not set.
    ("output_dir", "x", "", "is empty"),
    ("validation_fraction", "0.3", "0.5", "between 0.001 and 0.499"),
    ("split_seed", "1", "x", "invalid int value"),
    ("shots_seed", "0", "-1", "at least 0"),
    ("skip_corrupt_images", "true", "maybe", "use true or false"),
    ("color_jitter", "0", "1", "between 0 and 0.99"),
    ("cutmix_alpha", "1", "nan", "use a finite number"),
    ("trainable", "last:3", "first:2", "use all, head or last:N"),
    ("lora_target_modules", "fc1", "fc3", "choose one of q_proj"),
    ("max_steps", "3", "0", "give a number of steps"),
    ("optim_args", "momentum=0.9", "momentum", "write name=value"),
    (
        "optim_args",
        "adjust_lr_fn=Original",
        "adjust_lr_fn=bogus",
        "choose one of original, match_rms",
    ),
    ("optim_args", "lr=1e-3", "momentum=abc", "use a number from 0 to 1"),
    ("lr_scheduler_kwargs", '{"num_cycles": 1}', "{", "invalid JSON"),
    ("lr_scheduler_kwargs", '{"min_lr": 1e-9}', '{"min_lr": NaN}', "use a finite number"),
    ("eval_steps", "0.5", "1.5", "use a whole number of steps"),
    ("metric_for_best_model", "train_nll", "f1", "did you mean validation_f1_"),
    ("metric_for_best_model", "validation_f1_macro", "loss", "did you mean validation_loss?"),
    ("metric_for_best_model", "validation_loss", "eval_acuracy", "mean validation_accuracy?"),
    ("report_to", "wandb", "mlflow", "choose one of aim, wandb"),
    ("wise_ft", "sweep", "1.5", "use a number from 0 to 1, or sweep"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scheduler_kwargs": {"gamma": 1}}, "lr_scheduler_type cosine: .*'gamma'"),
        (
            {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {"gamma": 1}},
            "it has no settings",
        ),
        ({"lr_scheduler_kwargs": {"last_epoch": 3}}, "last_epoch cannot be set"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": "x"}},
            "patience is 'x'; use a number of at least 0",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
        ({"save_strategy": "steps", "eval_strategy": "steps", "eval_steps": 7}, "multiple"),
        ({"fp16": True, "use_cpu": True}, "--fp16 has no effect on a CPU"),
        ({"fp16": True, "bf16": True}, "At most one of fp16 and bf16"),
        ({"dataloader_prefetch_factor": 2, "dataloader_num_workers": 0}, "prefetch"),
    ],
)
def test_what_the_trainer_would_refuse_later_is_refused_at_once(options, message):
    with pytest.raises(InputError, match=message):
        SiglipTrainingArguments(**options)
    SiglipTrainingArguments(
        lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs={"num_decay_steps": 1}
    )


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without a GPU")
def test_a_machine_without_a_gpu_trains_on_its_processor():
    arguments = SiglipTrainingArguments()
    assert arguments.device == torch.device("cpu")
    assert arguments.dataloader_pin_memory is False
    assert SiglipTrainingArguments(bf16=True).bf16 is True
    assert SiglipTrainingArguments(bf16=False).bf16 is False


def test_gradient_checkpointing_warns_of_no_deprecation(recwarn):
    arguments = SiglipTrainingArguments(gradient_checkpointing=True)
    assert arguments.gradient_checkpointing is True
    assert arguments.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert not [warning for warning in recwarn if "deprecated" in str(warning.message)]
