"""What can be classified, and how each kind of source becomes an opened image."""

import os
from typing import TypeAlias

import numpy as np
import PIL.Image

# A path or URL, the bytes of an image file, an opened image, or pixels as an array.
Source: TypeAlias = str | os.PathLike[str] | bytes | PIL.Image.Image | np.ndarray

ARRAY_SHAPES = "uint8 of shape (H, W), (H, W, 3) or (H, W, 4)"


def is_single(images: object) -> bool:
    """Return whether this is one image and not several."""
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return isinstance(images, (str, os.PathLike, bytes, PIL.Image.Image))


def name_source(source: Source) -> str:
    """Return what to call a source in messages: its path or URL, or its kind."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, PIL.Image.Image):
        filename: str = getattr(source, "filename", "") or f"an image of {source.size} pixels"
        return filename
    if isinstance(source, np.ndarray):
        return f"an array of {source.dtype}, shape {source.shape}"
    return f"{len(source)} bytes" if isinstance(source, bytes) else repr(source)


def array_to_image(array: np.ndarray) -> PIL.Image.Image:
    """Turn pixels into an image.

    Raises:
        ValueError: The array is not ``uint8`` of shape (H, W), (H, W, 3) or (H, W, 4).
    """
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not fits or 0 in array.shape:
        raise ValueError(f"an array must be {ARRAY_SHAPES}")
    return PIL.Image.fromarray(array)
