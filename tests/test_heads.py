"""Heads that know something before the first step, against SiglipModel and scikit-learn."""

import pytest
import torch
from transformers import SiglipModel

from siglip_flowers.base.prompts import FLOWER_NAMES, build_prompts
from siglip_flowers.model.heads import set_calibration, set_text_head
from siglip_flowers.model.loading import load_classifier, load_image_processor
from siglip_flowers.model.text_head import load_calibration, zero_shot_head
from tests.small_flowers import read_images, tokenize

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
TEMPLATES = ["a photo of a {}.", "{}"]


@pytest.fixture(scope="module")
def tiny(tiny_dir):
    return str(tiny_dir)


@pytest.mark.parametrize("head", ["linear", "cosine"])
@torch.no_grad()
def test_text_head_is_siglips_own_zero_shot_classifier(tiny, flowers_dir, head):
    names = list(FLOWER_NAMES[:12])
    images = read_images(flowers_dir, 6)
    pixels = load_image_processor(tiny)(images, return_tensors="pt")["pixel_values"]
    model = load_classifier(tiny, names, head=head, normalize_features=True, activation="sigmoid")
    # The features of a cosine head are normalized either way.
    set_text_head(model, zero_shot_head(tiny, names, build_prompts(names, TEMPLATES[:1])))
    siglip = SiglipModel.from_pretrained(tiny).eval()
    tokens = tokenize(tiny, [TEMPLATES[0].format(name) for name in names])
    expected = siglip(input_ids=tokens, pixel_values=pixels).logits_per_image
    logits = model.eval()(pixels).logits
    torch.testing.assert_close(logits, expected, **CLOSE)
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    torch.testing.assert_close(model.fold()(pixels).logits, expected, **CLOSE)
    assert expected.std() > 0.01


def test_calibration_of_the_checkpoint_reaches_a_random_cosine_head(tiny):
    siglip = SiglipModel.from_pretrained(tiny)
    model = load_classifier(tiny, ["rose", "tulip"], head="cosine", activation="sigmoid")
    before = model.classifier.class_embeddings.clone()
    set_calibration(model, *load_calibration(tiny))
    assert model.classifier.logit_scale.item() == siglip.logit_scale.item()
    assert model.classifier.logit_bias.item() == siglip.logit_bias.item()
    assert model.classifier.logit_scale.shape == ()
    assert torch.equal(model.classifier.class_embeddings, before)
