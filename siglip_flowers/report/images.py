"""The images of a split, to hash and to show."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
from PIL import Image

from siglip_flowers.config import DataArguments
from siglip_flowers.data.pixels.patches import PatchBudget
from siglip_flowers.data.pixels.tensors import collate_pixels, get_image_size, open_pixels
from siglip_flowers.data.rows import read_images

THUMBNAIL = 72
_QUALITY = 80
_ROWS_AT_A_TIME = 256


class SplitImages:
    """Reads images of a split as the model gets them: squares, already decoded where cached.

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

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Sequence[int]) -> list[Image.Image]:
        """Return images by row number."""
        if not rows:
            return []
        if self._pixels is None:
            return read_images(self.rows, rows)
        return [Image.fromarray(image) for image in self._read_squares(rows)]

    def read_blocks(self) -> Iterator[np.ndarray]:
        """Yield every image in turn, as (B, H, W, 3) uint8 with B images of one size."""
        for start in range(0, len(self), _ROWS_AT_A_TIME):
            rows = range(start, min(len(self), start + _ROWS_AT_A_TIME))
            if self._pixels is None:
                yield from (np.asarray(image)[None] for image in self.read(rows))
            else:
                yield self._read_squares(rows)

    def _read_squares(self, rows: Sequence[int]) -> np.ndarray:
        assert self._pixels is not None
        batch = collate_pixels(self._pixels.__getitems__(list(rows)))["pixel_values"]
        return batch.permute(0, 2, 3, 1).contiguous().numpy()


def encode_thumbnail(image: Image.Image, side: int = THUMBNAIL) -> bytes:
    """Return an image as JPEG that fits into a square, and is not enlarged."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
