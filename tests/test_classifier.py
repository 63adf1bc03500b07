"""The classifier against transformers' own SigLIP models, on the real small checkpoint."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from siglip_flowers.base.errors import InputError
from siglip_flowers.model.classifier import to_native
from siglip_flowers.model.loading import (
    load_classifier,
    load_image_processor,
    load_saved_classifier,
)
from siglip_flowers.model.towers import freeze
from tests.small_flowers import draw_pixel_values, read_images

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
NAMES = ["pink primrose", "colt's foot", "sword lily", "rose", "tulip", "wallflower"]


@pytest.fixture(scope="module")
def pixel_values():
    return draw_pixel_values(3, 16)


@pytest.fixture
def build(tiny_dir):
    def build(**options):
        torch.manual_seed(0)
        return load_classifier(str(tiny_dir), NAMES, **options).eval()

    return build


def randomize_head(model):
    """Give every parameter of the head a value that a mistake would show in."""
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "map"},
        {"pooling": "mean", "normalize_features": True},
        {"pooling": "mean", "head": "cosine"},
    ],
)
def test_native_export_is_refused_where_it_would_be_another_model(build, options):
    with pytest.raises(InputError, match="Train with --pooling mean and --head linear"):
        to_native(build(**options))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("trainable", "pooling"),
    [("all", "map"), ("head", "mean"), ("last:1", "map"), ("last:1", "mean")],
)
def test_every_trained_parameter_gets_a_gradient(
    build, pixel_values, pooling, trainable, checkpointing
):
    model = build(pooling=pooling, head="cosine", activation="sigmoid").train()
    freeze(model.vision_model, trainable)
    if checkpointing:
        model.gradient_checkpointing_enable()
    model(pixel_values, labels=torch.tensor([0, 1, 2])).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == trained
    assert {n for n in trained if n.startswith("classifier.")} == {
        "classifier.class_embeddings",
        "classifier.logit_scale",
        "classifier.logit_bias",
    }


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["map", "mean"])
def test_folded_cosine_head_gives_equal_logits(build, pixel_values, pooling):
    model = randomize_head(build(pooling=pooling, head="cosine", activation="sigmoid"))
    folded = model.fold()
    torch.testing.assert_close(folded(pixel_values).logits, model(pixel_values).logits, **CLOSE)
    assert isinstance(folded.classifier, torch.nn.Linear)
    assert (folded.config.head, folded.config.activation) == ("linear", "sigmoid")
    assert folded.config.id2label == dict(enumerate(NAMES))
    assert model.config.head == "cosine"
    assert not folded.training
    assert model.train().fold().training


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "map"},
        {"pooling": "mean"},
        {"head": "cosine", "activation": "sigmoid"},
        {"normalize_features": True, "activation": "sigmoid", "image_size": 24},
    ],
)
def test_saving_restores_weights_and_configuration_bit_for_bit(build, tmp_path, options):
    model = randomize_head(build(**options))
    model.save_pretrained(tmp_path)
    reloaded = load_saved_classifier(str(tmp_path))
    ours, theirs = model.state_dict(), reloaded.state_dict()
    assert ours.keys() == theirs.keys() == load_file(tmp_path / "model.safetensors").keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    config = reloaded.config
    assert config.id2label == dict(enumerate(NAMES))
    assert config.label2id == {name: index for index, name in enumerate(NAMES)}
    assert reloaded.class_names == NAMES
    for key in ("pooling", "head", "normalize_features", "activation", "problem_type"):
        assert getattr(config, key) == getattr(model.config, key)
    assert config.vision_config.image_size == options.get("image_size", 16)
    assert config.vision_config.vision_use_head == (model.config.pooling == "map")
    pixels = draw_pixel_values(2, options.get("image_size", 16))
    assert torch.equal(reloaded(pixels).logits, model(pixels).logits)
    assert not reloaded.training


@torch.no_grad()
@pytest.mark.parametrize(
    "activation, problem_type",
    [("softmax", "single_label_classification"), ("sigmoid", "multi_label_classification")],
)
def test_pipeline_scores_with_the_stored_activation_and_names(
    build, tiny_dir, flowers_dir, tmp_path, activation, problem_type
):
    model = randomize_head(build(activation=activation))
    processor = load_image_processor(str(tiny_dir))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["problem_type"] == problem_type
    images = read_images(flowers_dir, 3)
    classify = pipeline("image-classification", model=str(tmp_path), device="cpu")
    answers = classify(images, top_k=len(NAMES))
    logits = model(**processor(images, return_tensors="pt")).logits
    probabilities = model.to_probabilities(logits)
    by_hand = logits.exp() / logits.exp().sum(1, keepdim=True)
    if activation == "sigmoid":
        by_hand = 1 / (1 + (-logits).exp())
    torch.testing.assert_close(probabilities, by_hand)
    for answer, row in zip(answers, probabilities, strict=True):
        scores = {entry["label"]: entry["score"] for entry in answer}
        assert scores == pytest.approx(dict(zip(NAMES, row.tolist(), strict=True)), abs=1e-5)
        assert answer[0]["label"] == NAMES[int(row.argmax())]


@torch.no_grad()
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_every_class_starts_at_the_same_chance(build, kind, activation):
    model = build(head=kind, activation=activation)
    head, sigmoid = model.classifier, activation == "sigmoid"
    bias = head.bias if kind == "linear" else head.logit_bias
    if kind == "cosine":
        assert head.logit_scale.exp().item() == pytest.approx(10.0)
        assert sigmoid is (bias is not None)
    if sigmoid:
        chance = torch.full_like(bias, 1 / len(model.class_names))
        torch.testing.assert_close(bias.sigmoid(), chance)
    elif bias is not None:
        assert not bias.any()


def test_loss_with_labels_is_the_activations(build, pixel_values):
    labels = torch.tensor([5, 0, 3])
    softmax, sigmoid = build(), build(activation="sigmoid")
    outputs = softmax(pixel_values, labels=labels)
    expected = -outputs.logits.log_softmax(1)[torch.arange(3), labels].mean()
    torch.testing.assert_close(outputs.loss, expected)
    outputs = sigmoid(pixel_values, labels=labels)
    signs = 2 * torch.nn.functional.one_hot(labels, len(NAMES)) - 1
    expected = -torch.nn.functional.logsigmoid(signs * outputs.logits).sum(1).mean()
    torch.testing.assert_close(outputs.loss, expected)
