"""The images of a split, to hash and to show, and what the model attends to in them."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from PIL import Image

from siglip_flowers.config import DataArguments
from siglip_flowers.data.pixels.patches import PatchBudget
from siglip_flowers.data.pixels.tensors import (
    PixelNormalizer,
    collate_pixels,
    get_image_size,
    open_pixels,
    resize_image,
)
from siglip_flowers.data.rows import read_images
from siglip_flowers.evaluation.extension import Evaluation
from siglip_flowers.inference.engine import InferenceEngine
from siglip_flowers.inference.saliency import compute_saliency, draw_overlay
from siglip_flowers.report.contents import Attention, Report

THUMBNAIL, ATTENTION_SIDE = 72, 176
ATTENTION_IMAGES = 12
_QUALITY = 80
_BLOCK_ROWS = 256


class SplitImages:
    """Reads images of a split as the model gets them: squares, already decoded if cached.

    A NaFlex model's images, which are cached as patches, are decoded again.

    Args:
        rows: The split.
        processor: The model's image processor.
        data_arguments: Where the pixel cache is.
    """

    def __init__(
        self, rows: datasets.Dataset, processor: Any, data_arguments: DataArguments
    ) -> None:
        self.rows = rows
        size = get_image_size(processor)
        self._pixels = (
            None
            if isinstance(size, PatchBudget)
            else open_pixels(rows, size, processor.resample, data_arguments)
        )

    def read(self, rows: Sequence[int]) -> list[Image.Image]:
        """Return images by row number."""
        if not rows:
            return []
        if self._pixels is None:
            return read_images(self.rows, rows)
        batch = collate_pixels(self._pixels.__getitems__(list(rows)))["pixel_values"]
        return [Image.fromarray(image) for image in batch.permute(0, 2, 3, 1).contiguous().numpy()]

    def __iter__(self) -> Iterator[Image.Image]:
        for start in range(0, len(self.rows), _BLOCK_ROWS):
            yield from self.read(range(start, min(len(self.rows), start + _BLOCK_ROWS)))


def encode_thumbnail(image: Image.Image, side: int = THUMBNAIL) -> bytes:
    """Return an image as JPEG that fits into a square and is not enlarged."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def draw_attention(evaluation: Evaluation, images: SplitImages, report: Report) -> list[Attention]:
    """Draw where the model looks on confident mistakes, uncertain hits and certain hits."""
    share = ATTENTION_IMAGES // 3
    right = np.flatnonzero(report.result.labels == report.predicted)
    certain = right[np.argsort(-report.confidence[right], kind="stable")][:share].tolist()
    chosen = [*report.mistakes[:share], *report.uncertain_hits[:share], *certain]
    rows = list(dict.fromkeys(chosen))
    processor, device = evaluation.processor, PartialState().device
    engine = InferenceEngine(evaluation.model, processor, device=device)
    normalizer, size = PixelNormalizer(processor), get_image_size(processor)
    drawn = []
    for row, image in zip(rows, images.read(rows), strict=True):
        pixels = resize_image(image, size, processor.resample)[None]
        (saliency,) = compute_saliency(engine.model, normalizer.prepare(pixels.to(device)))
        scale = ATTENTION_SIDE / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        shown = image.resize((width, height), Image.Resampling.BICUBIC)
        overlay = draw_overlay(shown, saliency)
        drawn.append(
            Attention(
                row,
                encode_thumbnail(shown, ATTENTION_SIDE),
                encode_thumbnail(overlay, ATTENTION_SIDE),
            )
        )
    return drawn
