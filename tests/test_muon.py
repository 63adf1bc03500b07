"""Muon beside AdamW: the same steps as torch's two optimizers, under one schedule, resumable."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, get_scheduler

from siglip_flowers.config import ModelArguments
from siglip_flowers.model.adapters import add_adapters
from siglip_flowers.model.loading import load_classifier
from siglip_flowers.training.optimizer import (
    MuonWithAdamW,
    build_parameter_groups,
    orthogonalize,
    split_for_muon,
)
from tests.small_flowers import build_flowers
from tests.small_runs import make_checkpoint
from tests.small_trainers import copy_weights, list_changed, start_trainer

MUON = {"momentum": 0.9, "adjust_lr_fn": "original"}
ADAMW = {"betas": (0.9, 0.98), "eps": 1e-7}
TRAINING = SimpleNamespace(
    learning_rate=1e-3, head_learning_rate=3e-3, weight_decay=0.1, layer_decay=None,
    optim_args="lr=0.02,momentum=0.9,adjust_lr_fn=original", adam_beta1=0.9, adam_beta2=0.98,
    adam_epsilon=1e-7, device=torch.device("cpu"),
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("tiny"))


def split(model):
    return split_for_muon(model, build_parameter_groups(model, TRAINING), TRAINING)


def name_by_kind(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {True: set(), False: set()}
    for group in groups:
        found[group["muon"]] |= {names[id(parameter)] for parameter in group["params"]}
    return found[True], found[False]


@pytest.mark.parametrize("schedule", ["polynomial", "cosine_with_min_lr"])
def test_schedules_that_ask_for_the_rate_find_it(tiny, schedule):
    optimizer = MuonWithAdamW(split(load_classifier(str(tiny), ["a", "b"])), TRAINING)
    settings = {} if schedule == "polynomial" else {"min_lr": 1e-5}
    steps = get_scheduler(schedule, optimizer, 0, 10, settings)
    before = steps.get_last_lr()
    for _ in range(5):
        optimizer.step()
        steps.step()
    assert all(now < then for now, then in zip(steps.get_last_lr(), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_orthogonalization_keeps_the_singular_vectors(dtype, shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    u, sizes, v = torch.linalg.svd(orthogonalize(matrices, dtype).float(), full_matrices=False)
    assert 0.5 < sizes.min() < sizes.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    overlap = ((u @ v) * (left @ right)).sum(dim=(1, 2)) / min(shape)
    assert overlap.min() > 0.97


@pytest.mark.parametrize("lora", [False, True])
def test_muon_has_the_matrices_of_the_encoder_layers_only(tiny, lora):
    model = load_classifier(str(tiny), ["a", "b"])
    if lora:
        pytest.importorskip("peft")
        add_adapters(model, ModelArguments(model_name_or_path=str(tiny), lora_r=2))
    matrices, others = name_by_kind(model, split(model))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert matrices | others == trained
    assert not matrices & others
    layer = {f"self_attn.{part}_proj" for part in "qkv"} | {"self_attn.out_proj"}
    expected = {
        f"vision_model.encoder.layers.{number}.{part}.weight"
        for number in range(2)
        for part in layer | {"mlp.fc1", "mlp.fc2"}
    }
    assert matrices == (set() if lora else expected)


def test_steps_are_those_of_torchs_two_optimizers(tiny):
    torch.manual_seed(0)
    model = load_classifier(str(tiny), ["a", "b"])
    reference = copy.deepcopy(model)
    torchs = [
        make([dict(group) for group in split(reference) if group["muon"] == kind], **options)
        for kind, make, options in (
            (True, torch.optim.Muon, MUON),
            (False, torch.optim.AdamW, ADAMW),
        )
    ]
    ours = MuonWithAdamW(split(model), TRAINING)
    ours.dtype = torch.bfloat16  # as torch's, whatever this processor computes
    for trained, optimizers in ((model, [ours]), (reference, torchs)):
        schedules = [LambdaLR(each, lambda step: 1 / (1 + step)) for each in optimizers]
        for step in range(5):
            torch.manual_seed(step)
            for parameter in trained.parameters():
                parameter.grad = torch.randn_like(parameter)
            for each in (*optimizers, *schedules):
                each.step()
    # torch multiplies matrix by matrix, which may round another way in bfloat16.
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=0, atol=1e-3)


class RecordRates(TrainerCallback):
    def __init__(self):
        self.rates = []

    def on_step_begin(self, *args, optimizer, **kwargs):
        self.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})


def test_a_resumed_run_has_every_rate_and_ends_with_the_same_weights(flowers_dir, tiny, tmp_path):
    data = build_flowers(flowers_dir, train=8)
    options = {
        "optim": "muon",
        "optim_args": "lr=0.01,adjust_lr_fn=original",
        "lr_scheduler_type": "linear",
        "head_learning_rate": 3e-3,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 2,
    }
    whole = start_trainer(tiny, data, tmp_path / "whole", **options)
    whole.train()
    again = start_trainer(tiny, data, tmp_path / "again", **options)
    again.add_callback(seen := RecordRates())
    (checkpoint,) = (tmp_path / "whole").rglob("checkpoint-2")
    again.train(resume_from_checkpoint=str(checkpoint))
    assert not list_changed(copy_weights(whole), copy_weights(again))
    # Half of each rate after half of the steps.
    assert seen.rates[0] == pytest.approx(
        {
            "encoder, decayed, Muon": 0.005,
            "encoder, decayed": 5e-4,
            "encoder, undecayed": 5e-4,
            "head, decayed": 1.5e-3,
            "head, undecayed": 1.5e-3,
        }
    )
