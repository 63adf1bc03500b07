"""Where the vision tower comes from: every kind of checkpoint, and every kind of bad one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SiglipModel, SiglipVisionModel

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.model.classifier import to_native
from siglip_flowers.model.loading import (
    load_classifier,
    load_image_processor,
    load_saved_classifier,
)
from siglip_flowers.model.towers import freeze
from tests.small_flowers import draw_pixel_values

NAMES = ["rose", "tulip", "daisy"]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def pixel_values():
    return draw_pixel_values(2, 16)


@pytest.fixture(scope="module")
def tower(tiny_dir):
    return SiglipVisionModel.from_pretrained(tiny_dir).eval()


@pytest.fixture
def copy(tiny_dir, tmp_path):
    """A copy of the checkpoint to be spoilt."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        shutil.copyfile(tiny_dir / name, folder / name)
    return folder


def check_features(model, tower, pixel_values):
    """The model has the checkpoint's own features, so every vision weight is in its place."""
    with torch.no_grad():
        outputs = tower(pixel_values)
        expected = outputs.last_hidden_state.mean(1)
        if model.config.pooling == "map":
            expected = outputs.pooler_output
        torch.testing.assert_close(model.eval().extract_features(pixel_values), expected, **CLOSE)


@pytest.mark.parametrize("pooling", ["map", "mean"])
@pytest.mark.parametrize("kind", ["two towers", "vision only", "classifier", "sharded", "half"])
def test_every_kind_of_checkpoint_gives_its_own_features(
    kind, pooling, tiny_dir, tower, pixel_values, tmp_path
):
    source = tiny_dir if kind == "two towers" else tmp_path
    if kind == "vision only":
        tower.save_pretrained(source)
    elif kind == "classifier":
        load_classifier(str(tiny_dir), ["a", "b"], head="cosine").save_pretrained(source)
    elif kind == "sharded":
        SiglipModel.from_pretrained(tiny_dir).save_pretrained(source, max_shard_size="60KB")
        assert len(list(source.glob("model-*.safetensors"))) > 2
    elif kind == "half":
        SiglipModel.from_pretrained(tiny_dir, dtype=torch.float16).save_pretrained(source)
        tower = SiglipVisionModel.from_pretrained(source, dtype=torch.float32).eval()
    model = load_classifier(str(source), NAMES, pooling=pooling)
    check_features(model, tower, pixel_values)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.class_names == NAMES
    assert model.classifier.weight.shape == (3, 32)


def test_native_classifier_without_pooling_head_serves_mean_but_not_map(
    tiny_dir, tower, pixel_values, tmp_path
):
    exported = to_native(load_classifier(str(tiny_dir), NAMES, pooling="mean"))
    exported.save_pretrained(tmp_path)
    model = load_classifier(str(tmp_path), NAMES, pooling="mean")
    check_features(model, tower, pixel_values)
    with pytest.raises(InputError, match="no attention-pooling head.*use --pooling mean"):
        load_classifier(str(tmp_path), NAMES, pooling="map")


@pytest.mark.parametrize("spoil", ["missing", "shape", "head"])
def test_incomplete_vision_weights_are_an_error(copy, spoil):
    weights = load_file(copy / "model.safetensors")
    name = {
        "missing": "vision_model.encoder.layers.1.mlp.fc1.weight",
        "shape": "vision_model.post_layernorm.weight",
        "head": "vision_model.head.probe",
    }[spoil]
    weights[name] = weights[name][..., :10].clone()
    if spoil in ("missing", "head"):
        del weights[name]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    short = name.removeprefix("vision_model.").replace(".", r"\.")
    with pytest.raises(InputError, match=f"lacks 1 vision weight .*{short}"):
        load_classifier(str(copy), NAMES)
    if spoil == "head":
        load_classifier(str(copy), NAMES, pooling="mean")


def test_vision_weights_that_the_configuration_has_no_place_for_are_an_error(copy, tmp_path):
    saved = tmp_path / "saved"
    load_classifier(str(copy), NAMES).save_pretrained(saved)
    for folder in (copy, saved):
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"]["num_hidden_layers"] = 1
        (folder / "config.json").write_text(json.dumps(config))
    # One layer of sixteen weights, whatever is in the text tower.
    message = r"has 16 (vision )?weights that .* lacks .*encoder\.layers\.1\..*and 13 more"
    for load in (
        lambda: load_classifier(str(copy), NAMES),
        lambda: load_classifier(str(copy), NAMES, pooling="mean"),
        lambda: load_classifier(str(saved), NAMES),
        lambda: load_saved_classifier(str(saved)),
    ):
        with pytest.raises(InputError, match=message):
            load()


def test_buffers_of_old_files_and_strange_weights_are_told_apart(copy):
    weights = load_file(copy / "model.safetensors")
    for tower in ("vision_model", "text_model"):
        weights[f"{tower}.embeddings.position_ids"] = torch.arange(64)[None]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    load_classifier(str(copy), NAMES)
    weights["vision_model.embeddings.class_embedding"] = torch.zeros(32)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="has 1 vision weight .*embeddings.class_embedding"):
        load_classifier(str(copy), NAMES)


def test_missing_processor_is_told(copy):
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(RunError, match="needs a preprocessor_config.json"):
        load_image_processor(str(copy))


def test_only_a_trained_classifier_is_loaded_as_one(tiny_dir, tmp_path):
    with pytest.raises(InputError, match="'siglip' checkpoint, not a trained classifier"):
        load_saved_classifier(str(tiny_dir))
    load_classifier(str(tiny_dir), NAMES).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["classifier.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks 1 weight .*classifier.bias"):
        load_saved_classifier(str(tmp_path))


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["map", "mean"])
@pytest.mark.parametrize("size", [24, 32])
def test_other_image_size_interpolates_as_transformers_does(tiny_dir, tower, pooling, size):
    model = load_classifier(str(tiny_dir), NAMES, pooling=pooling, image_size=size).eval()
    pixels = draw_pixel_values(2, size)
    outputs = tower(pixels, interpolate_pos_encoding=True)
    expected = outputs.last_hidden_state.mean(1)
    if pooling == "map":
        expected = outputs.pooler_output
    torch.testing.assert_close(model.extract_features(pixels), expected, **CLOSE)
    assert model.config.vision_config.image_size == size


@pytest.mark.parametrize("size, remedy", [(100, "use 96 or 104"), (4, r"use 8\.$")])
def test_indivisible_image_size_is_refused(tiny_dir, size, remedy):
    with pytest.raises(InputError, match=f"--image_size is {size}.*patch size 8; {remedy}"):
        load_classifier(str(tiny_dir), NAMES, image_size=size)


def test_from_scratch_takes_no_weight_and_follows_the_seed(tiny_dir, tower):
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(load_classifier(str(tiny_dir), NAMES, from_scratch=True))
    first, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    for name, pretrained in tower.state_dict().items():
        ours = first[f"vision_model.{name}"]
        # Biases and norms start at constants whatever the seed.
        if ours.ndim > 1:
            assert not torch.equal(ours, pretrained), name
            assert not torch.equal(ours, other[f"vision_model.{name}"]), name
            assert ours.std() > 1e-3, name


def test_from_scratch_needs_no_weights_and_is_float32_whatever_the_checkpoint_says(
    copy, pixel_values
):
    (copy / "model.safetensors").unlink()
    config = json.loads((copy / "config.json").read_text())
    config["dtype"] = config["vision_config"]["dtype"] = "bfloat16"
    (copy / "config.json").write_text(json.dumps(config))
    model = load_classifier(str(copy), NAMES, from_scratch=True, image_size=24)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(draw_pixel_values(2, 24)).logits.dtype == torch.float32


def trained_names(encoder):
    return {name for name, p in encoder.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("pooling", ["map", "mean"])
@pytest.mark.parametrize("before", ["all", "head"])
def test_freezing_names_exactly_the_parameters_that_train(tiny_dir, pooling, before):
    model = load_classifier(str(tiny_dir), NAMES, pooling=pooling)
    encoder = model.vision_model
    every = {name for name, _ in encoder.named_parameters()}
    freeze(encoder, before)
    freeze(encoder, "all")
    assert trained_names(encoder) == every
    freeze(encoder, before)
    freeze(encoder, "last:1")
    parts = ("encoder.layers.1.", "post_layernorm.", "head.")
    assert trained_names(encoder) == {name for name in every if name.startswith(parts)}
    assert any(name.startswith("head.") for name in every) == (pooling == "map")
    freeze(encoder, "head")
    assert trained_names(encoder) == set()
    assert all(p.requires_grad for p in model.classifier.parameters())
