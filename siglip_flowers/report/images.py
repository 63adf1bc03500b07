"""The images of a split: to show, and those that look alike."""

import importlib.util
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageOps

from siglip_flowers.config import DataArguments
from siglip_flowers.data.pixels.patches import PatchBudget
from siglip_flowers.data.pixels.tensors import open_pixels, read_form
from siglip_flowers.data.rows import get_labels, image_ids, read_images

THUMBNAIL = 72
_QUALITY = 80
_BLOCK_ROWS = 256
# Of the 64 bits of two unrelated images half differ, give or take 4.
LARGEST_DISTANCE = 6
DUPLICATES = 24


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
        self.ids, self.labels = image_ids(rows), get_labels(rows)
        form = read_form(processor)
        packed = isinstance(form.size, PatchBudget)
        self._pixels = None if packed else open_pixels(rows, form, data_arguments)

    def read(self, rows: Sequence[int]) -> list[Image.Image]:
        """Return images by row number."""
        if not rows:
            return []
        if self._pixels is None:
            return read_images(self.rows, rows)
        batch = self._pixels.__getitems__(list(rows))["pixel_values"]
        return [Image.fromarray(image) for image in batch.permute(0, 2, 3, 1).contiguous().numpy()]

    def __iter__(self) -> Iterator[Image.Image]:
        for start in range(0, len(self.rows), _BLOCK_ROWS):
            yield from self.read(range(start, min(len(self.rows), start + _BLOCK_ROWS)))


def encode_thumbnail(image: Image.Image) -> bytes:
    """Return an image as JPEG that fits into a square and is not enlarged."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def find_duplicates(own: str, splits: Mapping[str, SplitImages]) -> list[tuple[int, int, str, int]]:
    """Look for the images of the split ``own``, and for their mirror images, in all splits.

    Returns:
        (differing bits, row, other split, other row) of the closest pairs, the closest first.
        Nothing is found without the package imagehash.
    """
    if importlib.util.find_spec("imagehash") is None:
        return []
    # Each image is read once.
    both = hash_images(each for image in splits[own] for each in (image, ImageOps.mirror(image)))
    hashes = {name: hash_images(images) for name, images in splits.items() if name != own}
    hashes[own], mirrored = both[::2], both[1::2]
    found: list[tuple[int, int, str, int]] = []
    for name, others in hashes.items():
        for row, asked in enumerate(zip(hashes[own], mirrored, strict=True)):
            distances = np.min([np.bitwise_count(each ^ others) for each in asked], axis=0)
            for place in np.flatnonzero(distances <= LARGEST_DISTANCE).tolist():
                # Each pair of a split once, and no image with itself.
                if name != own or row < place:
                    found.append((int(distances[place]), row, name, place))
            # Of frames of a video, most pairs are alike: no more are kept than are shown.
            found = sorted(found)[:DUPLICATES]
    return found


def hash_images(images: Iterable[Image.Image]) -> np.ndarray:
    """Return the 64-bit perceptual hash of each image: (N,) uint64.

    Source: Zauner 2010, "Implementation and benchmarking of perceptual image hash functions".
    """
    # Of the extra "report".
    import imagehash

    return np.array([int(str(imagehash.phash(image)), 16) for image in images], dtype=np.uint64)
