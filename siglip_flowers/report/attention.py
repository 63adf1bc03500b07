"""Images of a split with what the model's pooling looked at."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from siglip_flowers.data.pixels.tensors import PixelNormalizer, get_image_size, resize_image
from siglip_flowers.inference.engine import InferenceEngine
from siglip_flowers.inference.saliency import compute_saliency, draw_overlay
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.report.contents import Attention, ReportContents
from siglip_flowers.report.images import SplitImages, encode_thumbnail

IMAGES = 12
SIDE = 176


def draw_attention(
    model: SiglipClassifier,
    processor: Any,
    images: SplitImages,
    rows: Sequence[int],
    device: torch.device,
) -> list[Attention]:
    """Draw where the model looks on images of the split, by row number."""
    engine = InferenceEngine(model, processor, device=device)
    normalizer, size = PixelNormalizer(processor), get_image_size(processor)
    drawn = []
    for row, image in zip(rows, images.read(rows), strict=True):
        pixels = resize_image(image, size, processor.resample)[None]
        (saliency,) = compute_saliency(engine.model, normalizer.prepare(pixels.to(device)))
        shown = _enlarge(image)
        drawn.append(
            Attention(
                row,
                encode_thumbnail(shown, SIDE),
                encode_thumbnail(draw_overlay(shown, saliency), SIDE),
            )
        )
    return drawn


def choose_attention_rows(contents: ReportContents) -> list[int]:
    """Return a third confident mistakes, a third uncertain hits, and a third certain hits."""
    share = IMAGES // 3
    right = np.flatnonzero(contents.labels == contents.predicted)
    certain = right[np.argsort(-contents.confidence[right], kind="stable")][:share].tolist()
    rows = [*contents.mistakes[:share], *contents.uncertain_hits[:share], *certain]
    return list(dict.fromkeys(rows))


def _enlarge(image: Image.Image) -> Image.Image:
    scale = SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
