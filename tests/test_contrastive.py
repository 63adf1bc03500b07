"""Contrastive fine-tuning against SiglipModel's own towers."""

import copy

import pytest
import torch
from transformers import SiglipModel

from siglip_flowers.base.prompts import build_prompts
from siglip_flowers.model.contrastive import load_contrastive
from siglip_flowers.model.loading import load_saved_classifier
from siglip_flowers.model.towers import freeze
from tests.small_flowers import draw_pixel_values, tokenize

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
NAMES = ["hard-leaved pocket orchid", "colt's foot", "rose", "bird of paradise", "tulip"]
TEMPLATES = ["a photo of a {}.", "{}, a type of flower", "{}"]
PROMPTS = build_prompts(NAMES, TEMPLATES)


@pytest.fixture(scope="module")
def pixel_values():
    return draw_pixel_values(6, 16)


@pytest.fixture
def model(tiny_dir):
    return load_contrastive(str(tiny_dir), NAMES, PROMPTS)


@pytest.fixture(scope="module")
def siglip(tiny_dir):
    return SiglipModel.from_pretrained(tiny_dir).eval()


@torch.no_grad()
def score_by_hand(siglip, tiny_dir, pixel_values):
    """Score images against averaged prompts with SiglipModel's towers."""
    classes = []
    for name in NAMES:
        ids = tokenize(tiny_dir, [template.format(name) for template in TEMPLATES])
        texts = siglip.text_model(input_ids=ids).pooler_output
        mean = (texts / texts.norm(dim=1, keepdim=True)).mean(0)
        classes.append(mean / mean.norm())
    images = siglip.vision_model(pixel_values=pixel_values).pooler_output
    cosine = images / images.norm(dim=1, keepdim=True) @ torch.stack(classes).T
    return siglip.logit_scale.exp() * cosine + siglip.logit_bias


def take_step(model, pixel_values, rate=1e-3):
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    labels, templates = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = model(pixel_values, labels=labels, templates=templates).loss
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def test_evaluation_logits_are_siglips_scores_of_averaged_prompts(
    model, siglip, tiny_dir, pixel_values
):
    expected = score_by_hand(siglip, tiny_dir, pixel_values)
    torch.testing.assert_close(model.eval()(pixel_values).logits, expected, **CLOSE)
    # Labels without templates, as an evaluation has them, change nothing.
    again = model(pixel_values, labels=torch.zeros(6, dtype=torch.int64)).logits
    torch.testing.assert_close(again, expected, **CLOSE)
    assert expected.std() > 0.01


@pytest.mark.parametrize("trained", [False, True])
def test_folded_classifier_gives_equal_logits_before_and_after_training(
    model, pixel_values, tmp_path, trained
):
    if trained:
        take_step(model, pixel_values)
        assert model.fold() is not None
        assert model.training
    folded = model.fold()
    with torch.no_grad():
        expected = model.eval()(pixel_values).logits
        torch.testing.assert_close(folded(pixel_values).logits, expected, **CLOSE)
        folded.save_pretrained(tmp_path)
        saved = load_saved_classifier(str(tmp_path))
        torch.testing.assert_close(saved(pixel_values).logits, expected, **CLOSE)
    assert saved.class_names == NAMES
    assert saved.config.activation == "sigmoid"


def test_class_embeddings_are_computed_anew_after_every_change(
    model, siglip, tiny_dir, pixel_values
):
    with torch.no_grad():
        before = model.eval()(pixel_values).logits
    start = copy.deepcopy(model.state_dict())
    take_step(model, pixel_values)
    trained = copy.deepcopy(siglip)
    trained.load_state_dict(model.state_dict())
    expected = score_by_hand(trained, tiny_dir, pixel_values)
    with torch.no_grad():
        after = model.eval()(pixel_values).logits
        torch.testing.assert_close(after, expected, **CLOSE)
        assert (after - before).abs().max() > 0.01
        # Weights that are put back between two evaluations, as those of the best checkpoint are.
        model.load_state_dict(start)
        torch.testing.assert_close(model.eval()(pixel_values).logits, before, **CLOSE)


@pytest.mark.parametrize(
    ("trainable", "checkpointing"), [("all", True), ("head", False), ("last:1", True)]
)
def test_every_trained_parameter_gets_a_gradient(model, pixel_values, trainable, checkpointing):
    freeze(model.vision_model, trainable)
    if checkpointing:
        model.gradient_checkpointing_enable()
    take_step(model, pixel_values)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == trained
    assert {"logit_scale", "logit_bias"} <= trained


def test_training_loss_is_the_sigmoid_loss_of_siglips_features(
    model, siglip, tiny_dir, pixel_values
):
    labels, templates = torch.tensor([0, 1, 2, 0, 4, 0]), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = model.train()(pixel_values, labels=labels, templates=templates).loss
    pairs = zip(labels.tolist(), templates.tolist(), strict=True)
    ids = tokenize(
        tiny_dir, [TEMPLATES[template].format(NAMES[label]) for label, template in pairs]
    )
    with torch.no_grad():
        logits = siglip(input_ids=ids, pixel_values=pixel_values).logits_per_image
        # Pairs of the same class are positives: images 0, 3 and 5.
        signs = torch.where(labels[:, None] == labels[None, :], 1.0, -1.0)
        by_hand = -torch.nn.functional.logsigmoid(signs * logits).sum(1).mean()
    torch.testing.assert_close(loss, by_hand, **CLOSE)
    assert (signs == 1).sum() == 12
