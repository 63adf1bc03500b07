"""Saliency: how much each patch of an image contributes, from the attention weights."""

from collections.abc import Callable
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
        else _roll_out(_record_layers(model, inputs, mask), mask)
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


def _run_hooked(
    model: SiglipClassifier,
    inputs: dict[str, torch.Tensor],
    hooks: list[tuple[torch.nn.Module, Callable[..., None]]],
) -> None:
    """Run the vision tower with forward hooks that are removed afterwards."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        model.extract_features(**inputs)
    finally:
        for handle in handles:
            handle.remove()


def _record_pooling_head(model: SiglipClassifier, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the weights (B, N) that the pooling head's query gives to the tokens."""
    found: list[torch.Tensor] = []
    tower: Any = model.vision_model
    # nn.MultiheadAttention returns its weights (B, 1, N), averaged over heads, after its output.
    attention = tower.head.attention
    _run_hooked(model, inputs, [(attention, lambda module, given, output: found.append(output[1]))])
    return found[0][:, 0].float()


def _record_layers(
    model: SiglipClassifier, inputs: dict[str, torch.Tensor], mask: torch.Tensor | None
) -> list[torch.Tensor]:
    """Return each layer's attention (B, N, N), averaged over heads.

    It is computed from queries and keys, since the fast implementations return no weights.
    """
    tower: Any = model.vision_model
    attentions = [layer.self_attn for layer in tower.encoder.layers]
    queries: list[torch.Tensor] = []
    keys: list[torch.Tensor] = []
    hooks: list[tuple[torch.nn.Module, Callable[..., None]]] = []
    for attention in attentions:
        hooks.append((attention.q_proj, lambda module, given, output: queries.append(output)))
        hooks.append((attention.k_proj, lambda module, given, output: keys.append(output)))
    _run_hooked(model, inputs, hooks)
    weights = []
    for attention, query, key in zip(attentions, queries, keys, strict=True):
        heads = attention.num_heads
        # (B, N, D) to (B, heads, N, D / heads).
        query, key = (
            part.float().unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key)
        )
        scores = query @ key.transpose(2, 3) * attention.scale
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None, :] == 0, -torch.inf)
        weights.append(scores.softmax(dim=3).mean(dim=1))
    return weights


def _roll_out(layers: list[torch.Tensor], mask: torch.Tensor | None) -> torch.Tensor:
    """Return the share of each patch in the mean of the tokens of its image: (B, N)."""
    batch, tokens, _ = layers[0].shape
    valid = layers[0].new_ones(batch, tokens) if mask is None else mask.to(layers[0].dtype)
    # One row from the last layer down: cheaper than products of N x N matrices.
    share = valid / valid.sum(dim=1, keepdim=True)
    for attention in reversed(layers):
        share = 0.5 * share + 0.5 * (share[:, None, :] @ attention)[:, 0]
    return share
