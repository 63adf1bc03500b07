"""Pictures of a split with what the model's pooling looked at."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image

from siglip_flowers.data.pixels import PixelNormalizer, get_picture_size, resize_picture
from siglip_flowers.inference.engine import InferenceEngine
from siglip_flowers.inference.saliency import compute_saliency
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.reporting.contents import Attention, ReportContents
from siglip_flowers.reporting.pictures import SplitPictures, encode_thumbnail

PICTURES = 12
SIDE = 176


def draw_attention(
    model: SiglipClassifier,
    processor: Any,
    pictures: SplitPictures,
    rows: Sequence[int],
    device: torch.device,
) -> list[Attention]:
    """Draw where the model looks on pictures of the split, by row number."""
    engine = InferenceEngine(model, processor, device=device)
    normalizer, size = PixelNormalizer(processor), get_picture_size(processor)
    drawn = []
    for row, picture in zip(rows, pictures.read(rows), strict=True):
        pixels = resize_picture(picture, size, processor.resample)[None]
        (saliency,) = compute_saliency(engine.model, normalizer.prepare(pixels.to(device)))
        shown = _enlarge(picture)
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
    share = PICTURES // 3
    right = np.flatnonzero(contents.labels == contents.predicted)
    certain = right[np.argsort(-contents.confidence[right], kind="stable")][:share].tolist()
    rows = [*contents.mistakes[:share], *contents.uncertain_hits[:share], *certain]
    return list(dict.fromkeys(rows))


def _enlarge(picture: Image.Image) -> Image.Image:
    scale = SIDE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def draw_overlay(picture: Image.Image, saliency: np.ndarray) -> Image.Image:
    """Colour a picture by the weights (rows, columns) of its patches: dark where they are small."""
    shares = (saliency - saliency.min()) / max(float(np.ptp(saliency)), 1e-12)
    heat = Image.fromarray(shares.astype(np.float32))
    smooth = np.asarray(heat.resize(picture.size, Image.Resampling.BILINEAR))
    colours = 255 * matplotlib.colormaps["inferno"](smooth)[..., :3]
    return Image.fromarray(np.round((np.asarray(picture) + colours) / 2).astype(np.uint8))
