"""The arguments: which values are allowed, and what they become on this machine."""

import os

import pytest
import torch
from transformers import TrainingArguments

from siglip_flowers.base.errors import InputError
from siglip_flowers.config import (
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    SiglipTrainingArguments,
    parse_trainable,
    parse_wise_ft,
)


@pytest.mark.parametrize(
    "kind, values, message",
    [
        (DataArguments, {"data_source": "web"}, "--data_source is 'web'; choose one of oxford"),
        (DataArguments, {"split_protocol": "mine"}, "choose one of swapped, official"),
        (DataArguments, {"shots": 0}, "--shots is 0; it must be greater than 0"),
        (DataArguments, {"max_train_samples": -4}, "--max_train_samples is -4"),
        (DataArguments, {"validation_fraction": 0.5}, "--validation_fraction is 0.5"),
        (DataArguments, {"validation_fraction": 0.0}, "--validation_fraction is 0.0"),
        (DataArguments, {"procedural_images_per_class": 4}, "at least 5"),
        (DataArguments, {"procedural_image_size": 15}, "at least 16"),
        (DataArguments, {"data_source": "hub"}, "--data_source hub needs --dataset_name"),
        (DataArguments, {"data_source": "folder"}, "--data_source folder needs --data_dir"),
        (
            DataArguments,
            {"data_source": "procedural", "dataset_name": "a/b"},
            "--dataset_name goes with --data_source hub, not procedural",
        ),
        (AugmentationArguments, {"random_erasing": 1.1}, "--random_erasing is 1.1"),
        (AugmentationArguments, {"crop_min_scale": 0.0}, "--crop_min_scale is 0.0"),
        (AugmentationArguments, {"train_resize_scale": 0.9}, "between 1 and 4"),
        (AugmentationArguments, {"mixup_alpha": -0.1}, "--mixup_alpha is -0.1"),
        (ModelArguments, {"image_size": 0}, "--image_size is 0"),
        (ModelArguments, {"head_init": "zero"}, "choose one of random, text, probe"),
        (SiglipTrainingArguments, {"head_learning_rate": 0.0}, "--head_learning_rate is 0.0"),
        (SiglipTrainingArguments, {"per_device_train_batch_size": 0}, "batch_size is 0"),
        (SiglipTrainingArguments, {"label_smoothing_factor": 1.0}, "between 0 and 0.99"),
        (SiglipTrainingArguments, {"report_to": ["comet"]}, "--report_to is 'comet'"),
        (SiglipTrainingArguments, {"wise_ft": "always"}, "--wise_ft is 'always'"),
        (SiglipTrainingArguments, {"ema": -0.1}, "--ema is -0.1"),
        (
            SiglipTrainingArguments,
            {"class_weights": "balanced", "objective": "contrastive"},
            "--class_weights balanced goes with --objective cross_entropy, not contrastive",
        ),
    ],
)
def test_values_out_of_range_are_refused(kind, values, message):
    with pytest.raises(InputError, match=message):
        kind(**values)


@pytest.mark.parametrize("value, expected", [("all", None), ("head", None), ("last:3", 3)])
def test_trainable_parts_are_read(value, expected):
    assert parse_trainable(value) == expected


@pytest.mark.parametrize("value", ["", "last", "last:", "last:-1", "last:0", "last:1.5", "ALL"])
def test_other_trainable_parts_are_refused(value):
    with pytest.raises(InputError, match="use all, head or last:N with N >= 1"):
        parse_trainable(value)


def test_ensemble_alphas_are_read():
    assert parse_wise_ft(None) == []
    assert parse_wise_ft("0.3") == [0.3]
    assert parse_wise_ft("1") == [1.0]
    sweep = parse_wise_ft("sweep")
    assert sweep[0] == 0.0
    assert sweep[-1] == 1.0
    assert len(sweep) == 11


@pytest.mark.parametrize("value", ["-0.1", "1.01", "nan", "half", ""])
def test_other_alphas_are_refused(value):
    with pytest.raises(InputError, match=r"use a number from 0 to 1, or sweep"):
        parse_wise_ft(value)


def test_the_recipe_differs_from_the_parents_where_it_says_so(tmp_path):
    ours, parent = SiglipTrainingArguments(), TrainingArguments(str(tmp_path))
    assert ours.output_dir == "results"
    assert parent.learning_rate == 5e-5
    assert ours.learning_rate == 2e-5
    assert ours.eval_strategy == ours.save_strategy == "epoch"
    assert ours.load_best_model_at_end
    assert ours.metric_for_best_model == "validation_accuracy"
    assert ours.remove_unused_columns is False
    assert ours.ddp_find_unused_parameters is False


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without a GPU")
def test_a_machine_without_a_gpu_trains_on_its_processor():
    arguments = SiglipTrainingArguments()
    assert arguments.device == torch.device("cpu")
    assert arguments.dataloader_num_workers == 0
    assert arguments.dataloader_pin_memory is False
    assert SiglipTrainingArguments(bf16=True).bf16 is True
    assert SiglipTrainingArguments(bf16=False).bf16 is False


@pytest.mark.parametrize(
    ("cuda", "given", "workers", "persistent"),
    [
        (True, {}, 3, True),
        (True, {"dataloader_persistent_workers": False}, 3, False),
        (True, {"dataloader_num_workers": 0}, 0, False),
        (False, {}, 0, False),
        (False, {"dataloader_num_workers": 2}, 2, False),
        (False, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}, 2, True),
        # Taken from a run on a GPU, say.
        (False, {"dataloader_persistent_workers": True}, 0, False),
    ],
)
def test_workers_of_a_gpu_follow_the_usable_cores_and_outlive_an_epoch(
    monkeypatch, cuda, given, workers, persistent
):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5, 6}, raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    arguments = SiglipTrainingArguments(bf16=False, tf32=False, **given)
    assert arguments.dataloader_num_workers == workers
    assert arguments.dataloader_persistent_workers is persistent


def test_trackers_are_as_named_and_nothing_said_is_kept_apart_from_none():
    assert SiglipTrainingArguments().report_to is None
    assert SiglipTrainingArguments(report_to=[]).report_to == ["none"]
    assert SiglipTrainingArguments(report_to=["none", "wandb"]).report_to == ["wandb"]


def test_checkpoints_lie_below_the_output_directory():
    assert SiglipTrainingArguments(output_dir="a b").checkpoint_dir == "a b/checkpoints"
