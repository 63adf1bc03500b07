"""LoRA and DoRA: small, exact, and gone from the model that is saved."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import SiglipVisionConfig

from siglip_flowers.commands.train import main as train
from siglip_flowers.config import ModelArguments
from siglip_flowers.model import SiglipClassifier, SiglipClassifierConfig
from siglip_flowers.model.adapters import (
    DroppedLinear,
    add_adapters,
    fold_model,
    save_adapter,
    select_trained,
)
from siglip_flowers.model.contrastive import load_contrastive
from siglip_flowers.model.ensemble import AVERAGE_FILE
from siglip_flowers.model.loading import load_classifier, load_saved_classifier
from tests.small_flowers import build_flowers, draw_pixel_values
from tests.small_runs import make_folder, small_options
from tests.small_trainers import copy_weights, list_changed, start_trainer

PeftModel = pytest.importorskip("peft").PeftModel

NAMES = ["rose", "tulip", "daisy"]


@pytest.fixture(scope="module")
def data(flowers_dir):
    return build_flowers(flowers_dir, train=8)


def adapt(tiny_dir, head="linear", pooling="map", **options):
    model = load_classifier(str(tiny_dir), NAMES, head=head, pooling=pooling)
    options = {"lora_r": 4, "pooling": pooling, **options}
    add_adapters(model, ModelArguments(model_name_or_path=str(tiny_dir), **options))
    return model


def train_briefly(model, steps=3):
    """Take AdamW steps with decay, large enough to show; returns the last step's gradients."""
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.1)
    pixels, labels = draw_pixel_values(4, 16), torch.tensor([0, 1, 2, 0])
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(pixel_values=pixels).logits, labels).backward()
        optimizer.step()
    return {name: value.grad for name, value in trained.items()}


def classify(model):
    with torch.no_grad():
        return model.eval()(pixel_values=draw_pixel_values(4, 16, seed=1)).logits


@pytest.mark.parametrize(("head", "options"), [("linear", {}), ("cosine", {"use_dora": True})])
def test_adapters_start_as_nothing_then_train_alone_with_the_head(tiny_dir, head, options):
    torch.manual_seed(0)
    plain = load_classifier(str(tiny_dir), NAMES, head=head)
    torch.manual_seed(0)
    model = adapt(tiny_dir, head, **options)
    torch.testing.assert_close(classify(model), classify(plain), atol=1e-5, rtol=1e-5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = train_briefly(model)
    changed = list_changed(before, model.state_dict())
    assert changed - {"classifier.logit_bias"} == gradients.keys() - {"classifier.logit_bias"}
    assert all("lora_" in name or name.startswith("classifier.") for name in changed)
    # In every adapted module both factors learn; a softmax has no use for one bias for all.
    silent = {name for name, value in gradients.items() if not value.any()}
    assert silent <= {"classifier.logit_bias"}
    assert (classify(model) - classify(plain)).abs().max() > 0.1


def measure_saved_bytes(model):
    """Return the bytes kept for the backward pass: storages of saved tensors, parameters apart."""
    parameters = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no address is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(pixel_values=draw_pixel_values(4, 64), labels=torch.arange(4))
    return sum(
        tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in parameters
    )


def test_adapters_keep_no_more_for_the_backward_pass_than_full_fine_tuning():
    """A tower with the proportions of SigLIP: MLPs four times as wide, a rank of 2% of it."""
    tower = SiglipVisionConfig(
        hidden_size=96, intermediate_size=384, num_hidden_layers=4, num_attention_heads=3,
        image_size=64, patch_size=8,
    )  # fmt: skip

    def measure(adapters=None):
        config = SiglipClassifierConfig(tower, id2label=dict(enumerate("abcd")))
        model = SiglipClassifier(config)
        if adapters is not None:
            add_adapters(model, ModelArguments(lora_r=2, **adapters))
        return measure_saved_bytes(model)

    whole = measure()
    assert measure({}) <= whole
    assert measure({"lora_dropout": 0.1}) <= whole
    assert measure({"lora_target_modules": ["q_proj", "v_proj"]}) <= 0.75 * whole
    head = SiglipClassifier(SiglipClassifierConfig(tower, id2label=dict(enumerate("abcd"))))
    head.vision_model.requires_grad_(False)
    assert measure_saved_bytes(head) < 0.01 * whole


def test_dropout_that_is_computed_again_is_that_of_torch(tiny_dir):
    factor = torch.nn.Linear(6, 2, bias=False)
    values, results = torch.randn(5, 6, requires_grad=True), []
    plain = torch.nn.Sequential(torch.nn.Dropout(0.5), factor)
    for layer in (DroppedLinear(factor, 0.5), plain):
        torch.manual_seed(3)
        output = layer(values)
        torch.manual_seed(4)  # other layers draw in between
        gradients = torch.autograd.grad(output.square().sum(), (values, factor.weight))
        results.append((output, *gradients))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
    model = adapt(tiny_dir, lora_dropout=0.5)
    assert model.peft_config["default"].lora_dropout == 0.5
    pixels = draw_pixel_values(2, 16)
    train_briefly(model)
    first, second = (model.train()(pixel_values=pixels).logits for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(classify(model), classify(model))


@pytest.mark.parametrize(("pooling", "use_dora"), [("map", False), ("map", True), ("mean", False)])
def test_every_projection_of_the_encoder_and_its_pooling_is_adapted(tiny_dir, pooling, use_dora):
    model = adapt(tiny_dir, pooling=pooling, use_dora=use_dora)
    adapted = {name.partition(".lora_A")[0] for name in select_trained(model) if ".lora_A" in name}
    words = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    expected = {
        f"vision_model.encoder.layers.{layer}.{word}"
        for layer in range(2)
        for word in (*words, "mlp.fc1", "mlp.fc2")
    }
    if pooling == "map":
        expected |= {"vision_model.head.mlp.fc1", "vision_model.head.mlp.fc2"}
        if not use_dora:
            expected.add("vision_model.head.attention")
    assert adapted == expected
    alpha = {8}  # 2 x the rank: what trl's defaults make of it
    assert {model.peft_config["default"].lora_alpha} == alpha


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"lora_target_modules": ["out_proj", "attention"], "lora_alpha": 32},
        {"pooling": "mean"},
        {"head": "cosine"},
    ],
    ids=lambda options: " ".join(options) or "default",
)
def test_merged_model_and_peft_on_the_base_model_have_the_adapted_logits(
    tiny_dir, tmp_path, options
):
    model = adapt(tiny_dir, **options)
    train_briefly(model)
    expected = classify(model)
    folded = fold_model(model)
    torch.testing.assert_close(classify(folded), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(classify(model), expected)  # a copy was merged
    pooling = options.get("pooling", "map")
    cosine = options.get("head") == "cosine"
    base = load_classifier(str(tiny_dir), NAMES, pooling=pooling, normalize_features=cosine)
    assert folded.state_dict().keys() == base.state_dict().keys()
    folded.save_pretrained(tmp_path / "model")
    torch.testing.assert_close(
        classify(load_saved_classifier(str(tmp_path / "model"))), expected, atol=1e-4, rtol=1e-4
    )
    (tmp_path / "adapter").mkdir()
    save_adapter(model, folded, tmp_path / "adapter")
    files = {"adapter_config.json", "adapter_model.safetensors"}
    assert set(os.listdir(tmp_path / "adapter")) == files
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    torch.testing.assert_close(classify(loaded), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("train_text_tower", [True, False])
def test_of_two_towers_both_are_adapted_unless_the_text_tower_is_locked(
    tiny_dir, tmp_path, train_text_tower
):
    model = load_contrastive(
        str(tiny_dir), NAMES, [[f"a {name}"] for name in NAMES], train_text_tower=train_text_tower
    )
    add_adapters(model, ModelArguments(model_name_or_path=str(tiny_dir), lora_r=2))
    trained = select_trained(model)
    parts = {name.partition(".")[0] for name in trained}
    towers = {"vision_model", "text_model"} if train_text_tower else {"vision_model"}
    assert parts == {"logit_scale", "logit_bias", *towers}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = {
        "pixel_values": draw_pixel_values(3, 16),
        "labels": torch.arange(3),
        "templates": torch.zeros(3, dtype=torch.long),
    }
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(**batch).loss.backward()
        optimizer.step()
    for tower in towers:
        assert any(v.any() for n, v in select_trained(model).items() if tower in n and "_B" in n)
    expected = classify(model)
    folded = fold_model(model)
    torch.testing.assert_close(classify(folded), expected, atol=1e-4, rtol=1e-4)
    save_adapter(model, folded, tmp_path)
    base = load_classifier(str(tiny_dir), NAMES, normalize_features=True)
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    torch.testing.assert_close(classify(loaded), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("_unset_determinism")
def test_checkpoints_are_small_and_a_resumed_run_is_bit_identical(tiny_dir, data, tmp_path):
    """With dropout and a moving average: every state that training has."""
    options = {
        "model": {"lora_r": 2, "use_dora": True, "lora_dropout": 0.2}, "save_strategy": "steps",
        "save_steps": 2, "save_total_limit": 3, "full_determinism": True, "ema": 0.9,
    }  # fmt: skip
    whole = start_trainer(tiny_dir, data, tmp_path / "whole", **options)
    start = copy_weights(whole)
    whole.train()
    trained = select_trained(whole.model).keys()
    assert list_changed(start, copy_weights(whole)) == trained
    checkpoint = tmp_path / "whole" / "checkpoints" / "checkpoint-2"
    assert load_file(checkpoint / "model.safetensors").keys() == trained
    assert load_file(checkpoint / AVERAGE_FILE).keys() == trained
    kept = tmp_path / "resumed" / "checkpoints" / "checkpoint-2"
    shutil.copytree(checkpoint, kept)
    resumed = start_trainer(tiny_dir, data, tmp_path / "resumed", **options)
    with torch.no_grad():
        for name, parameter in resumed.model.named_parameters():
            if name in trained:
                parameter.fill_(0.5)  # nothing may be left of where it started
    resumed.train(resume_from_checkpoint=str(kept))
    assert not list_changed(copy_weights(whole), copy_weights(resumed))
    assert not list_changed(whole.average.weights, resumed.average.weights)


@pytest.fixture(scope="module")
def small(tiny_dir, tmp_path_factory):
    return tiny_dir, make_folder(tmp_path_factory.mktemp("adapters") / "images")


def test_a_missing_peft_is_refused_at_once(small, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    options = small_options(*small, run, "--lora_r", "2", "--head_init", "probe")
    monkeypatch.setattr("siglip_flowers.model.adapters.find_spec", lambda name: None)
    assert train(options) == 2
    assert "--lora_r requires the package peft" in capsys.readouterr().err
    assert not run.exists()


def test_a_run_leaves_a_merged_model_and_a_small_adapter_that_agree(small, tmp_path):
    checkpoint, _ = small
    run = tmp_path / "run"
    assert train(
        small_options(
            *small, run, "--lora_r", "2", "--objective", "sigmoid", "--learning_rate", "0.03",
            "--lora_target_modules", "q_proj", "v_proj", "attention", "--ema", "0.5",
            "--layer_decay", "0.8", "--head", "cosine",
        )
    ) == 0  # fmt: skip
    model = load_saved_classifier(str(run / "model"))
    base = load_classifier(str(checkpoint), model.class_names, normalize_features=True)
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["r"] == 2
    adapted = PeftModel.from_pretrained(base, str(run / "adapter"))
    pixels = draw_pixel_values(3, size=16)
    with torch.no_grad():
        ours, theirs = (m.eval()(pixel_values=pixels).logits for m in (model, adapted))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
