"""Run a classifier's forward pass at the speed of the device."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from siglip_flowers.data.pixels.patches import PatchBudget
from siglip_flowers.data.pixels.tensors import PixelNormalizer, read_form
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.loading import set_attention
from siglip_flowers.model.towers import run_vision_tower
from siglip_flowers.runtime.devices import choose_attention, resolve_dtype
from siglip_flowers.runtime.memory import run_in_parts


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 products in float32 inside the block; by default convolutions use TF32."""
    backends: Any = torch.backends
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


class InferenceEngine:
    """A classifier ready to run on uint8 pixels.

    In float32 and with no attention named, its outputs are bit-identical to those of
    ``model(pixel_values=...)``. In another dtype the encoder's weights are cast once
    (autocast casts them for every batch); the head stays in float32, so that logits keep their
    precision.

    Args:
        model: The classifier. It is moved to the device; a copy is made if weights or attention
            have to change.
        processor: Its image processor.
        device: Where to run.
        dtype: See :func:`~siglip_flowers.runtime.devices.resolve_dtype`.
        attn_implementation: ``eager``, ``sdpa``, ...; default: the fastest one.

    Raises:
        InputError: A dtype that the device lacks, or unknown attention.
    """

    def __init__(
        self,
        model: SiglipClassifier,
        processor: Any,
        *,
        device: torch.device,
        dtype: str | torch.dtype = "float32",
        attn_implementation: str | None = None,
    ) -> None:
        self.device = device
        self.dtype = resolve_dtype(dtype, device)
        if self.dtype != torch.float32 or attn_implementation is not None:
            tokens = count_tokens(model.config.vision_config, processor)
            attention = attn_implementation or choose_attention(device, self.dtype, tokens)
            model = copy.deepcopy(model)
            set_attention(model, attention)
            tower: Any = model.vision_model
            tower.to(self.dtype)
        self.model: SiglipClassifier = model
        self.model.eval().to(device)  # type: ignore[arg-type]
        self._normalizer = PixelNormalizer(processor)
        self._largest_batch: int | None = None

    def extract_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map uint8 pixels to pooled features (B, D) float32 on the device.

        They are (B, 3, S, S), or packed patches (B, 1 + P, K).
        """
        return self._run(pixels, lambda features: features)

    def extract_poolings(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map the same to every pooling that the tower gives, (B, P, D) float32 on the device.

        The order is that of :func:`~siglip_flowers.evaluation.features.list_poolings`.
        """
        return self._run(pixels, lambda features: features, self._pool)

    def classify(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map the same to logits (B, C) float32 on the device."""
        return self._run(pixels, self.model.classify_features)

    def classify_with_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map the same to features and logits side by side, (B, D + C) float32 on the device."""
        return self._run(
            pixels,
            lambda features: torch.cat([features, self.model.classify_features(features)], dim=1),
        )

    @torch.inference_mode()
    def _run(
        self,
        pixels: torch.Tensor,
        finish: Callable[[torch.Tensor], torch.Tensor],
        encode: Callable[..., torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Run a batch; if it exceeds the memory, this and all further ones in smaller parts."""

        def run(part: torch.Tensor) -> torch.Tensor:
            features = (encode or self.model.extract_features)(**self.prepare(part))
            # The encoder's features have its dtype; the head gets float32.
            return finish(features.float())

        size = self._largest_batch or len(pixels)
        with full_float32():
            outputs, fitted = run_in_parts(run, pixels, size)
        if fitted < size:
            self._largest_batch = fitted
        return outputs

    def _pool(self, **inputs: torch.Tensor) -> torch.Tensor:
        pooled = run_vision_tower(self.model.vision_model, **inputs)
        return torch.stack([features for features in pooled if features is not None], dim=1)

    def prepare(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the inputs of the encoder for uint8 pixels, on the device."""
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        inputs = self._normalizer.prepare(pixels.to(self.device, non_blocking=True))
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        return inputs


def count_tokens(vision_config: Any, processor: Any) -> int:
    """Return the largest number of patches of an image."""
    size = read_form(processor).size
    if isinstance(size, PatchBudget):
        return size.max_num_patches
    tokens: int = (size // vision_config.patch_size) ** 2
    return tokens
