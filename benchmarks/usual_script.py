"""The usual script, for comparison: the image-classification example of transformers.

Images are decoded, cropped and normalized one by one in Python whenever they are asked for,
under ``set_transform``; a plain ``Trainer`` trains ``SiglipForImageClassification``. The transforms
are torchvision's of the example, written with Pillow, and vary images as the package does.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image, ImageEnhance
from transformers import (
    SiglipConfig,
    SiglipForImageClassification,
    SiglipVisionConfig,
    Trainer,
    TrainingArguments,
)

from siglip_flowers.config import AugmentationArguments

ASPECT_RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10


def random_resized_crop(
    image: Image.Image, size: int, min_scale: float, resample: int
) -> Image.Image:
    """Cut a random box out of an image and resize it to ``size`` pixels square.

    Source: Szegedy et al. 2015, section 6, with torchvision's retries and fallback.
    """
    width, height = image.size
    for _ in range(ATTEMPTS):
        area = width * height * random.uniform(min_scale, 1.0)
        ratio = math.exp(random.uniform(*(math.log(bound) for bound in ASPECT_RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            break
    else:
        w = h = min(width, height)
        left, top = (width - w) // 2, (height - h) // 2
    cropped = image.crop((left, top, left + w, top + h))
    return cropped.resize((size, size), resample=Image.Resampling(resample))


def jitter(image: Image.Image, strength: float) -> Image.Image:
    """Change brightness, contrast and saturation in random order by up to ``strength``."""
    changes: list[Any] = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    random.shuffle(changes)
    for change in changes:
        image = change(image).enhance(random.uniform(1 - strength, 1 + strength))
    return image


def build_transform(
    processor: Any, augmentation: AugmentationArguments
) -> Callable[[dict[str, list[Any]]], dict[str, list[Any]]]:
    """Return the function for ``set_transform``: adds ``pixel_values`` (3, S, S) float32."""
    size, resample = processor.size["height"], processor.resample
    mean = torch.tensor(processor.image_mean).view(3, 1, 1)
    std = torch.tensor(processor.image_std).view(3, 1, 1)

    def transform(image: Image.Image) -> torch.Tensor:
        image = random_resized_crop(image, size, augmentation.crop_min_scale, resample)
        if random.random() < augmentation.horizontal_flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if augmentation.color_jitter:
            image = jitter(image, augmentation.color_jitter)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return (pixels - mean) / std

    def transform_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        batch["pixel_values"] = [transform(image.convert("RGB")) for image in batch["image"]]
        return batch

    return transform_batch


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack ``pixel_values`` (B, 3, S, S) float32 and ``labels`` (B,) int64."""
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.tensor([example["label"] for example in examples]),
    }


def build_model(
    vision_config: SiglipVisionConfig, num_labels: int, attn_implementation: str | None
) -> SiglipForImageClassification:
    """Build the classifier of transformers with fresh weights: speed does not depend on them."""
    config = SiglipConfig(vision_config=vision_config.to_dict())
    config.num_labels = num_labels
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    return SiglipForImageClassification(config)


def build_trainer(
    model: SiglipForImageClassification,
    rows: datasets.Dataset,
    processor: Any,
    augmentation: AugmentationArguments,
    arguments: TrainingArguments,
) -> Trainer:
    """Put the plain Trainer of the example together."""
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=rows.with_transform(build_transform(processor, augmentation)),
        data_collator=collate,
    )
