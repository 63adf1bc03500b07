"""From pictures to the tensors that the model sees.

Pictures are decoded to uint8 and stay so until they are on the device: a quarter of the bytes of
float32 cross the bus. ``normalize_pixels`` then gives exactly what the checkpoint's own image
processor would have given.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from siglip_flowers.data.decoding import decode_rgb


class PixelDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of a data set as uint8 pixels.

    Each item is ``pixel_values`` (3, S, S) uint8, ``labels`` int and ``index`` int, the row's
    number, which keys the random numbers of augmentation.

    Args:
        rows: A data set with the columns ``image`` and ``label``.
        size: S, the side in pixels that pictures are resized to.
        resample: PIL's resampling filter, from the checkpoint's image processor.
    """

    def __init__(self, rows: datasets.Dataset, size: int, resample: int) -> None:
        self.rows = rows.with_format(None)
        self.labels: list[int] = list(rows["label"])
        self.images = rows.select_columns(["image"])
        self.size = size
        self.resample = Image.Resampling(resample)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._item(index, self.images[index]["image"])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        # One read of the Arrow table for a whole batch.
        images = self.images[list(indices)]["image"]
        return [self._item(index, image) for index, image in zip(indices, images, strict=True)]

    def _item(self, index: int, image: Image.Image) -> dict[str, Any]:
        pixels = resize_picture(image, self.size, self.resample)
        return {"pixel_values": pixels, "labels": self.labels[index], "index": index}


def resize_picture(image: Image.Image, size: int, resample: int) -> torch.Tensor:
    """Squash a picture to a square of ``size`` pixels: (3, S, S) uint8."""
    image = decode_rgb(image)
    if image.size != (size, size):
        image = image.resize((size, size), resample=Image.Resampling(resample))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def collate_pixels(items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack items to ``pixel_values`` (B, 3, S, S) uint8, ``labels`` and ``index`` (B,) int64."""
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": torch.tensor([item["labels"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
    }


class PixelNormalizer:
    """Turns uint8 pixels into what an image processor's rescaling and normalisation give.

    Args:
        processor: An image processor with ``rescale_factor``, ``image_mean`` and ``image_std``.
    """

    def __init__(self, processor: Any) -> None:
        self.rescale_factor = float(processor.rescale_factor)
        self.mean = tuple(processor.image_mean)
        self.std = tuple(processor.image_std)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, H, W) uint8, or float on the 0..255 scale, to normalised float32."""
        # The processor rescales in float64 and rounds to float32 before it normalises; to be
        # equal to the last bit, so does this, through a table of the 256 possible values.
        mean = torch.tensor(self.mean, device=pixels.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, -1, 1, 1)
        if pixels.dtype == torch.uint8:
            values = torch.arange(256, dtype=torch.float64) * self.rescale_factor
            scaled = values.float().to(pixels.device)[pixels.int()]
        else:
            scaled = pixels * self.rescale_factor
        return (scaled - mean) / std
