"""What an exported classifier takes: names of inputs, preprocessing in words, drawn samples."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from siglip_flowers.data.pixels.patches import PatchBudget
from siglip_flowers.data.pixels.tensors import PixelNormalizer, get_image_size, resize_image
from siglip_flowers.data.sources.drawing import draw_flower
from siglip_flowers.model.towers import is_naflex

# In the order of the model's own arguments.
SQUARE_INPUTS = ("pixel_values",)
NAFLEX_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
# Width and height; NaFlex keeps the ratio of the sides.
_DRAWN_SHAPES = ((128, 128), (128, 96), (80, 128), (128, 64), (112, 112))


def name_inputs(model: Any) -> tuple[str, ...]:
    """Return the names of the arguments that an exported model takes, in order."""
    return NAFLEX_INPUTS if is_naflex(model.config.vision_config) else SQUARE_INPUTS


def describe_preprocessing(processor: Any) -> dict[str, Any]:
    """Return what makes an image the model's input, as facts for whoever has only the file."""
    size = get_image_size(processor)
    facts: dict[str, Any] = {
        "color": "RGB",
        "resample": Image.Resampling(processor.resample).name.lower(),
        "rescale_factor": float(processor.rescale_factor),
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "order": "resize, times rescale_factor, minus mean, divided by std",
    }
    if isinstance(size, PatchBudget):
        return {
            **facts,
            "patch_size": size.patch_size,
            "max_num_patches": size.max_num_patches,
            "resize": "keep the ratio of the sides; whole patches, at most max_num_patches",
            "layout": "patches, rows of row, column, color; zero behind the image's last",
        }
    return {
        **facts,
        "size": {"height": size, "width": size},
        "resize": "squash to the size, no crop",
        "layout": "NCHW",
    }


def prepare_images(
    images: Sequence[Image.Image], processor: Any, names: Sequence[str]
) -> tuple[torch.Tensor, ...]:
    """Return the model's inputs for images, in the order of the names."""
    size = get_image_size(processor)
    pixels = torch.stack([resize_image(p, size, processor.resample) for p in images])
    return select_inputs(PixelNormalizer(processor).prepare(pixels), names)


def select_inputs(
    prepared: dict[str, torch.Tensor], names: Sequence[str]
) -> tuple[torch.Tensor, ...]:
    """Return prepared inputs in the order of the names."""
    return tuple(prepared[name].contiguous() for name in names)


def draw_images(count: int) -> list[Image.Image]:
    """Draw flowers of several shapes."""
    return [
        Image.fromarray(draw_flower(number % 102, number // 102, 128)).resize(
            _DRAWN_SHAPES[number % len(_DRAWN_SHAPES)]
        )
        for number in range(count)
    ]
