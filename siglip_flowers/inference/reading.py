"""From paths and images to batches of uint8 pixels, decoded by threads ahead of the model."""

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
import torch

from siglip_flowers.base.paths import is_url
from siglip_flowers.data.pixels.decoding import ImageError, map_ahead, read_image
from siglip_flowers.data.pixels.tensors import PixelForm
from siglip_flowers.inference.finding import fetch_image

# A path or URL, the bytes of an image file, a PIL image, or pixels as an array.
Source: TypeAlias = str | os.PathLike[str] | bytes | PIL.Image.Image | np.ndarray


def is_single(images: object) -> bool:
    """Return whether this is one image, as opposed to several."""
    if isinstance(images, np.ndarray):
        # A column of a table of paths is an array, too.
        return images.ndim < 4 and images.dtype.kind not in "OU"
    return isinstance(images, (str, os.PathLike, bytes, PIL.Image.Image))


def name_source(source: Source) -> str:
    """Return the name of a source in messages: its path or URL, or its kind."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return str(getattr(source, "filename", "") or type(source).__name__)


def array_to_image(array: np.ndarray) -> PIL.Image.Image:
    """Turn pixels into an image.

    Raises:
        ValueError: The array is not ``uint8`` of shape (H, W), (H, W, 3) or (H, W, 4).
    """
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not fits or 0 in array.shape:
        raise ValueError("an array must be uint8 of shape (H, W), (H, W, 3) or (H, W, 4)")
    return PIL.Image.fromarray(array)


@dataclass(frozen=True)
class ImageBatch:
    """N consecutive sources, B of which could be read.

    Attributes:
        sources: The N sources.
        problems: Why each of them could not be read; "" if it could.
        pixels: (B, 3, S, S) or (B, 1 + P, K) uint8, the images that could be read, in order; (0,)
            if none could.
    """

    sources: list[Source]
    problems: list[str]
    pixels: torch.Tensor


@dataclass(frozen=True)
class ImageReader:
    """Reads sources as batches of pixels.

    Attributes:
        form: The form of the pixels.
        num_workers: Decoding threads.
        allow_urls: Whether strings that are http or https URLs are fetched.
    """

    form: PixelForm
    num_workers: int
    allow_urls: bool = False

    def read_batches(self, sources: Iterable[Source], batch_size: int) -> Iterator[ImageBatch]:
        """Yield batches of the sources in order, decoded ahead of the consumer."""
        # Two complete batches wait for the model while the threads decode the next images.
        ahead = self.num_workers + 2 * batch_size
        read = map_ahead(self._read, sources, workers=self.num_workers, ahead=ahead)
        while batch := list(itertools.islice(read, batch_size)):
            pixels = [one for _, _, one in batch if one is not None]
            yield ImageBatch(
                sources=[source for source, _, _ in batch],
                problems=[problem for _, problem, _ in batch],
                pixels=torch.stack(pixels) if pixels else torch.empty(0, dtype=torch.uint8),
            )

    def _read(self, source: Source) -> tuple[Source, str, torch.Tensor | None]:
        """Return the source with its problem, or with its pixels."""
        file: Any = source
        try:
            if isinstance(source, np.ndarray):
                file = array_to_image(source)
            elif is_url(source):
                if not self.allow_urls:
                    raise ValueError("a URL, which is fetched only with allow_urls")
                file = fetch_image(str(source))
            with read_image(file) as image:
                return source, "", self.form.resize(image)
        except (ImageError, OSError, ValueError) as error:
            return source, " ".join(str(error).split()), None
