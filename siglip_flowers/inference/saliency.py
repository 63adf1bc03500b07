"""Saliency: how much each patch of an image contributes, from the attention weights."""

from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image

from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.towers import is_naflex


@torch.no_grad()
def compute_saliency(model: SiglipClassifier, inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """Return the weight of each patch in the pooled features of each image.

    With ``map`` pooling it is the attention of the pooling head, averaged over its heads. With
    ``mean`` pooling it is attention rollout: the share of each patch in the mean of the tokens, if
    every layer mixes tokens by its attention, averaged over heads, and keeps them by its residual
    connection, in equal parts.

    Args:
        model: The classifier, with any attention implementation; no other thread may use it.
        inputs: The model's inputs for B images, without labels.

    Returns:
        B arrays (patch rows, patch columns) float32 that sum to 1.

    Source: Abnar and Zuidema 2020, "Quantifying attention flow in transformers", section 3
    (rollout), with the mean of all tokens instead of a class token.
    """
    mask = inputs.get("pixel_attention_mask")
    weights = (
        _record_pooling_head(model, inputs)
        if model.config.pooling == "map"
        else _roll_out(_record_layers(model, inputs), mask)
    )
    maps = []
    for row, (height, width) in zip(weights, _list_grids(model, inputs), strict=True):
        values = row[: height * width].view(height, width)
        maps.append((values / values.sum()).cpu().numpy())
    return maps


def draw_overlay(image: Image.Image, saliency: np.ndarray) -> Image.Image:
    """Color an image by the weights (rows, columns) of its patches: dark where they are small."""
    shares = (saliency - saliency.min()) / max(float(np.ptp(saliency)), 1e-12)
    heat = Image.fromarray(shares.astype(np.float32))
    smooth = np.asarray(heat.resize(image.size, Image.Resampling.BILINEAR))
    colors = 255 * matplotlib.colormaps["inferno"](smooth)[..., :3]
    return Image.fromarray(np.round((np.asarray(image) + colors) / 2).astype(np.uint8))


def _list_grids(model: SiglipClassifier, inputs: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
    """Return the patch rows and columns of each image."""
    if is_naflex(model.config.vision_config):
        return [(int(rows), int(columns)) for rows, columns in inputs["spatial_shapes"].tolist()]
    pixels = inputs["pixel_values"]
    side = model.config.vision_config.patch_size
    return [(pixels.shape[2] // side, pixels.shape[3] // side)] * len(pixels)


def _record_pooling_head(model: SiglipClassifier, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the weights (B, N) that the pooling head's query gives to the tokens."""
    found: list[torch.Tensor] = []
    tower: Any = model.vision_model
    # nn.MultiheadAttention returns its weights (B, 1, N), averaged over heads, after its output.
    handle = tower.head.attention.register_forward_hook(
        lambda module, given, output: found.append(output[1])
    )
    try:
        model.extract_features(**inputs)
    finally:
        handle.remove()
    return found[0][:, 0].float()


def _record_layers(model: SiglipClassifier, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return each layer's attention (B, N, N), averaged over heads."""
    tower: Any = model.vision_model
    attention = tower.config._attn_implementation
    # The fast implementations return no weights.
    tower.set_attn_implementation("eager")
    try:
        layers = tower(**inputs, output_attentions=True).attentions
    finally:
        tower.set_attn_implementation(attention)
    return [weights.float().mean(dim=1) for weights in layers]


def _roll_out(layers: list[torch.Tensor], mask: torch.Tensor | None) -> torch.Tensor:
    """Return the share of each patch in the mean of the tokens of its image: (B, N)."""
    batch, tokens, _ = layers[0].shape
    valid = layers[0].new_ones(batch, tokens) if mask is None else mask.to(layers[0].dtype)
    # One row from the last layer down: cheaper than products of N x N matrices.
    share = valid / valid.sum(dim=1, keepdim=True)
    for attention in reversed(layers):
        share = 0.5 * share + 0.5 * (share[:, None, :] @ attention)[:, 0]
    return share
