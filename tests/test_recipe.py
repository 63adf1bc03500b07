"""Layer decay with a schedule, gradual unfreezing and stochastic depth, in real training."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import get_cosine_schedule_with_warmup

from siglip_flowers.base.errors import InputError
from siglip_flowers.commands.train import main as train
from siglip_flowers.config import SiglipTrainingArguments
from siglip_flowers.model.contrastive import load_contrastive
from siglip_flowers.model.freezing import freeze, locate_parameters
from siglip_flowers.model.loading import load_classifier
from siglip_flowers.model.stochastic_depth import add_stochastic_depth, drop_branch
from siglip_flowers.training.unfreezing import GradualUnfreezing
from tests.conftest import REPOSITORY
from tests.small_flowers import build_flowers, draw_pixel_values
from tests.small_runs import make_checkpoint, make_folder, small_options
from tests.small_trainers import copy_weights, list_changed, start_trainer


@pytest.fixture(scope="module")
def data(flowers_dir):
    return build_flowers(flowers_dir, train=8)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    return make_checkpoint(folder / "checkpoint"), make_folder(folder / "images")


def test_warm_up_and_cosine_scale_the_rate_of_every_block(nano_dir, data, tmp_path):
    trainer = start_trainer(
        nano_dir,
        data,
        tmp_path,
        layer_decay=0.5,
        learning_rate=1e-4,
        head_learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        max_steps=6,
    )
    trainer.create_optimizer_and_scheduler(6)
    peaks = {group["name"]: group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert peaks["head, decayed"] == 1e-3
    assert peaks["vision 0, decayed"] == 1e-4
    assert peaks["vision 8, undecayed"] == pytest.approx(1e-4 * 0.5**8)
    # transformers' own schedule on one rate of 1.
    single = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_cosine_schedule_with_warmup(single, 2, 6)
    shares = []
    for _ in range(6):
        share = reference.get_last_lr()[0]
        shares.append(share)
        for group in trainer.optimizer.param_groups:
            assert group["lr"] == pytest.approx(share * peaks[group["name"]])
        for optimizer, scheduler in (
            (trainer.optimizer, trainer.lr_scheduler),
            (single, reference),
        ):
            optimizer.step()
            scheduler.step()
    assert shares[0] == 0.0
    assert shares[2] == max(shares) == 1.0
    assert 0.0 < shares[5] < shares[3]


def test_the_logged_rate_is_that_of_the_top_block(nano_dir, data, tmp_path):
    trainer = start_trainer(
        nano_dir, data, tmp_path, layer_decay=0.5, lr_scheduler_type="constant", max_steps=1
    )
    trainer.train()
    (rate,) = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert rate == 1e-3


def list_held(unfreezing, model, step, steps):
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    return {name for name in names if unfreezing.is_held(name, step, steps)}


def test_blocks_join_one_by_one_from_the_top(nano_dir):
    """Ten blocks below the head (top, eight layers, embeddings) over half of 40 steps."""
    model = load_classifier(str(nano_dir), ["a", "b"])
    unfreezing = GradualUnfreezing(model, 0.5)
    places = locate_parameters(model)
    for step in range(40):
        joined = min(10, step // 2)
        held = list_held(unfreezing, model, step, 40)
        expected = {
            name
            for name, place in places.items()
            if place.part == "vision" and place.height >= joined
        }
        assert held == expected, step
    assert list_held(unfreezing, model, 1, 40) == {
        name for name in places if not name.startswith("classifier.")
    }


def test_only_blocks_that_train_are_counted(nano_dir):
    model = load_classifier(str(nano_dir), ["a", "b"])
    freeze(model.vision_model, "last:2")
    unfreezing = GradualUnfreezing(model, 1.0)
    counts = [
        len({locate_parameters(model)[name].height for name in held})
        for held in (list_held(unfreezing, model, step, 3) for step in range(4))
    ]
    assert counts == [3, 2, 1, 0]  # top and two layers, of nine blocks


def test_without_a_head_the_tops_of_both_towers_train_from_the_first_step(nano_dir):
    model = load_contrastive(str(nano_dir), ["a", "b"], ["{}"])
    unfreezing, places = GradualUnfreezing(model, 0.9), locate_parameters(model)
    held = list_held(unfreezing, model, 0, 100)
    assert held == {name for name, place in places.items() if place.height > 0}
    for step in (89, 90):
        held = {places[name].part for name in list_held(unfreezing, model, step, 100)}
        assert held == ({"vision", "text"} if step == 89 else set())


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_held_blocks_do_not_move_at_all_and_have_no_state(nano_dir, data, tmp_path, optim):
    """Neither by weight decay nor by momentum; 10 blocks join between steps 1 and 5."""
    trainer = start_trainer(
        nano_dir,
        data,
        tmp_path,
        optim=optim,
        optim_args="momentum=0.9" if optim == "sgd" else None,
        weight_decay=0.5,
        gradual_unfreezing=0.5,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
        max_steps=10,
    )
    places = locate_parameters(trainer.model)
    names = {id(value): name for name, value in trainer.model.named_parameters()}
    seen = []
    before = copy_weights(trainer)

    class Watch:
        def on_step_end(self, args, state, control, **kwargs):
            after = copy_weights(trainer)
            with_state = {names[id(value)] for value in trainer.optimizer.state}
            seen.append((list_changed(before, after), with_state))

        def __getattr__(self, name):
            if not name.startswith("on_"):
                raise AttributeError(name)
            return lambda args, state, control, **kwargs: control

    trainer.add_callback(Watch())
    trainer.train()
    for step, (changed, with_state) in enumerate(seen):
        joined = {
            name for name, place in places.items()
            if place.part == "head" or place.height + 1 <= 2 * step
        }  # fmt: skip
        assert changed <= joined, step
        assert with_state == joined, step
        # A softmax's keys have no use for a bias: gradients of rounding only, or none.
        assert {name for name in joined - changed if "k_proj.bias" not in name} == set(), step
    assert len(seen) == 10


def test_the_clipped_norm_is_that_of_the_blocks_that_train(nano_dir, data, tmp_path):
    norms = {}
    for name, options in {
        "held": {"gradual_unfreezing": 1.0},
        "all": {},
        "head": {"model": {"trainable": "head"}},
    }.items():
        trainer = start_trainer(nano_dir, data, tmp_path / name, max_steps=1, **options)
        trainer.train()
        norms[name] = trainer.state.log_history[0]["grad_norm"]
    assert norms["held"] == pytest.approx(norms["head"], rel=1e-5)
    assert norms["all"] > 1.01 * norms["held"]


@pytest.mark.usefixtures("_unset_determinism")
def test_a_run_resumed_in_the_middle_of_unfreezing_is_bit_identical(nano_dir, data, tmp_path):
    options = {
        "gradual_unfreezing": 0.8,
        "layer_decay": 0.7,
        "drop_path": 0.3,
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 3,
        "save_total_limit": 4,
        "full_determinism": True,
    }
    whole = start_trainer(nano_dir, data, tmp_path / "whole", **options)
    whole.train()
    kept = tmp_path / "resumed" / "checkpoints" / "checkpoint-3"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "checkpoint-3", kept)
    resumed = start_trainer(nano_dir, data, tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(kept))
    assert not list_changed(copy_weights(whole), copy_weights(resumed))
    plain = start_trainer(nano_dir, data, tmp_path / "plain", **{**options, "drop_path": 0.0})
    plain.train()
    assert list_changed(copy_weights(whole), copy_weights(plain))


def test_stochastic_depth_drops_whole_branches_at_its_rate_and_keeps_the_mean():
    torch.manual_seed(0)
    branch = torch.randn(20000, 2, 3)
    dropped = drop_branch(branch, 0.3)
    zero = (dropped == 0).flatten(1).all(1)
    assert zero.float().mean().item() == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(dropped[~zero], branch[~zero] / 0.7)


def test_rates_of_stochastic_depth_rise_to_the_last_layer(nano_dir):
    model = load_classifier(str(nano_dir), ["a", "b"])
    layers = model.vision_model.encoder.layers
    add_stochastic_depth(layers, 0.8)
    counts = []

    def count(module, inputs, output):
        output = output[0] if isinstance(output, tuple) else output
        counts.append((output == 0).flatten(1).all(1).float().mean().item())

    for layer in layers:  # after the hooks that drop
        layer.self_attn.register_forward_hook(count)
        layer.mlp.register_forward_hook(count)
    torch.manual_seed(0)
    with torch.no_grad():
        model.train()
        for _ in range(4):
            model(pixel_values=draw_pixel_values(50))
    shares = np.array(counts).reshape(4, 8, 2).mean((0, 2))
    np.testing.assert_allclose(shares, 0.1 * np.arange(1, 9), atol=0.09)


def test_stochastic_depth_changes_neither_evaluation_nor_what_is_saved(nano_dir, tmp_path):
    torch.manual_seed(0)
    plain = load_classifier(str(nano_dir), ["a", "b"])
    torch.manual_seed(0)
    model = load_classifier(str(nano_dir), ["a", "b"])
    add_stochastic_depth(model.vision_model.encoder.layers, 0.5)
    pixels = draw_pixel_values(4)
    with torch.no_grad():
        expected = plain.eval()(pixel_values=pixels).logits
        assert model.eval()(pixel_values=pixels).logits.equal(expected)
        assert not model.train()(pixel_values=pixels).logits.equal(expected)
    model.save_pretrained(tmp_path / "deep")
    plain.save_pretrained(tmp_path / "plain")
    for name in ("config.json", "model.safetensors"):
        files = [(tmp_path / folder / name).read_bytes() for folder in ("deep", "plain")]
        assert files[0] == files[1]


def test_gradient_checkpointing_repeats_the_same_drops(nano_dir):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = load_classifier(str(nano_dir), ["a", "b"])
        add_stochastic_depth(model.vision_model.encoder.layers, 0.5)
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(1)
        model.train()(pixel_values=draw_pixel_values(4)).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layer_decay": 1.5}, "--layer_decay is 1.5; it must lie between 0.01 and 1"),
        ({"gradual_unfreezing": 3}, "--gradual_unfreezing is 3; it must lie between 0 and 1"),
        ({"drop_path": 1.0}, "--drop_path is 1.0; it must lie between 0 and 0.95"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SiglipTrainingArguments(**options)


@pytest.mark.parametrize(
    "option", [("--layer_decay", "0.5"), ("--gradual_unfreezing", "0.5"), ("--drop_path", "0.1")]
)
def test_options_without_an_encoder_to_act_on_are_refused(small, tmp_path, capsys, option):
    run = tmp_path / "run"
    assert train(small_options(*small, run, "--trainable", "head", *option)) == 2
    assert f"{' '.join(option)} acts on an encoder that trains" in capsys.readouterr().err
    assert not run.exists()


VARIANTS = {
    "unfreezing": ["--layer_decay", "0.7", "--gradual_unfreezing", "0.6"],
    "lora": ["--lora_r", "2", "--lora_dropout", "0", "--gradual_unfreezing", "0.6"],
}
WORKER = """
import json, sys
from tests.distributed_worker import run_script
codes = [run_script("train.py", options) for options in json.loads(sys.argv[1])]
assert codes == [0] * len(codes), codes
"""


@pytest.mark.slow
def test_two_processes_train_as_one_and_no_parameter_is_unused(small, tmp_path):
    """24 images: 3 steps an epoch of 2 x 4 or 1 x 8, of which blocks join in the first 4."""
    pytest.importorskip("peft")
    checkpoint, images = small

    def write_options(name, batch_size):
        return small_options(
            checkpoint,
            images,
            tmp_path / name,
            *("--per_device_train_batch_size", str(batch_size), "--augment", "false"),
            *("--use_cpu", "true", "--gradient_checkpointing", "true", "--logging_steps", "1"),
            *VARIANTS[name.partition("-")[2]],
        )

    for variant in VARIANTS:
        assert train(write_options(f"one-{variant}", 8)) == 0
    (tmp_path / "worker.py").write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plan = json.dumps([write_options(f"two-{variant}", 4) for variant in VARIANTS])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
            *("--master_port", str(port), str(tmp_path / "worker.py"), plan),
        ],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(REPOSITORY),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for variant in VARIANTS:
        one, two = (tmp_path / f"{kind}-{variant}" for kind in ("one", "two"))
        facts = [json.loads((run / "metrics.json").read_text())["training"] for run in (one, two)]
        assert [fact["processes"] for fact in facts] == [1, 2]
        weights = [load_file(run / "model" / "model.safetensors") for run in (one, two)]
        for name, value in weights[0].items():
            if not name.endswith(("k_proj.bias", "in_proj_bias")):
                torch.testing.assert_close(
                    weights[1][name], value, atol=2e-5, rtol=0, msg=f"{variant}: {name}"
                )
        losses = []
        for run in (one, two):
            with (run / "history.csv").open(newline="") as file:
                losses.append([float(r["loss"]) for r in csv.DictReader(file) if r.get("loss")])
        assert len(losses[0]) == 6
        np.testing.assert_allclose(*losses, rtol=1e-4)
    adapters = [
        load_file(tmp_path / f"{kind}-lora" / "adapter" / "adapter_model.safetensors")
        for kind in ("one", "two")
    ]
    assert adapters[0].keys() == adapters[1].keys()
