"""Saliency against the same thing computed from the weights, and from transformers' attentions."""

import numpy as np
import pytest
import torch
from transformers import Siglip2VisionConfig, SiglipVisionConfig

from siglip_flowers import SiglipClassifier, SiglipClassifierConfig
from siglip_flowers.inference.saliency import compute_saliency
from tests.small_runs import TINY

SIZES = {**TINY, "num_hidden_layers": 3, "patch_size": 4}


def make_model(vision_config, pooling, attention="eager"):
    torch.manual_seed(5)
    # As saved models are: without the head that they do not use.
    vision_config.vision_use_head = pooling == "map"
    config = SiglipClassifierConfig(vision_config=vision_config, pooling=pooling, num_labels=3)
    model = SiglipClassifier._from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Weights of the usual size leave attention almost even.
            if any(part in name for part in ("q_proj", "k_proj", "in_proj_weight", "probe")):
                parameter.copy_(torch.randn(parameter.shape))
    return model


def make_square(pooling, attention="eager"):
    model = make_model(SiglipVisionConfig(image_size=16, **SIZES), pooling, attention)
    torch.manual_seed(6)
    return model, {"pixel_values": torch.randn(2, 3, 16, 16)}


def make_naflex(pooling):
    """One image fills the budget of 12 patches, the other leaves half of it empty."""
    model = make_model(Siglip2VisionConfig(num_patches=16, **SIZES), pooling)
    torch.manual_seed(6)
    mask = torch.ones(2, 12, dtype=torch.int32)
    mask[1, 6:] = 0
    return model, {
        "pixel_values": torch.randn(2, 12, 48),
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([[3, 4], [3, 2]]),
    }


def get_tokens(model, inputs):
    with torch.no_grad():
        return model.vision_model(**inputs).last_hidden_state


def attend_by_hand(head, tokens):
    """Weights (N,) of one image's tokens, by the formula of multi-head attention."""
    width = tokens.shape[1]
    query_weight, key_weight, _ = head.attention.in_proj_weight.detach().split(width)
    query_bias, key_bias, _ = head.attention.in_proj_bias.detach().split(width)
    query = head.probe.detach()[0, 0] @ query_weight.T + query_bias
    keys = tokens @ key_weight.T + key_bias
    heads = head.attention.num_heads
    side = width // heads
    weights = [
        torch.softmax(keys[:, part] @ query[part] / side**0.5, dim=0)
        for part in (slice(number * side, (number + 1) * side) for number in range(heads))
    ]
    return torch.stack(weights).mean(dim=0).numpy()


def test_map_pooling_shows_the_attention_of_the_pooling_head():
    model, inputs = make_square("map", "sdpa")
    found = compute_saliency(model, inputs)
    for image, tokens in zip(found, get_tokens(model, inputs), strict=True):
        assert image.shape == (4, 4)
        assert image.dtype == np.float32
        expected = attend_by_hand(model.vision_model.head, tokens)
        assert expected.max() > 2 / 16, "the reference is too even to tell anything"
        np.testing.assert_allclose(image.ravel(), expected, atol=1e-6)


def test_mean_pooling_shows_attention_rollout():
    model, inputs = make_square("mean", "sdpa")
    found = compute_saliency(model, inputs)
    reference, _ = make_square("mean", "eager")
    with torch.no_grad():
        layers = reference.vision_model(**inputs, output_attentions=True).attentions
    assert len(layers) == 3
    for number, image in enumerate(found):
        product = np.eye(16)
        for layer in layers:
            product = (0.5 * np.eye(16) + 0.5 * layer[number].mean(dim=0).numpy()) @ product
        expected = product.mean(axis=0)
        assert expected.max() > 1.2 / 16, "the reference is too even to tell anything"
        np.testing.assert_allclose(image.ravel(), expected, atol=1e-6)


@pytest.mark.parametrize("pooling", ["map", "mean"])
def test_naflex_images_have_their_own_grid_without_padding(pooling):
    model, inputs = make_naflex(pooling)
    found = compute_saliency(model, inputs)
    assert [image.shape for image in found] == [(3, 4), (3, 2)]
    for image in found:
        assert image.sum() == pytest.approx(1, abs=1e-5)
    # The padding has no influence.
    changed = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
    changed["pixel_values"][1, 6:] = 9.0
    for before, after in zip(found, compute_saliency(model, changed), strict=True):
        np.testing.assert_allclose(before, after, atol=1e-6)
    if pooling == "map":
        tokens = get_tokens(model, inputs)
        for image, row, count in zip(found, tokens, (12, 6), strict=True):
            expected = attend_by_hand(model.vision_model.head, row[:count])
            np.testing.assert_allclose(image.ravel(), expected, atol=1e-6)


def test_the_model_is_left_as_it_was():
    model, inputs = make_square("mean", "sdpa")
    before = model.extract_features(**inputs)
    compute_saliency(model, inputs)
    assert torch.equal(model.extract_features(**inputs), before)
    assert model.vision_model.config._attn_implementation == "sdpa"
