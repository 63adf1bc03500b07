"""From whatever an image file holds to an upright 8-bit RGB image."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL.Image
import PIL.ImageOps

ORIENTATION_TAG = 0x0112
# Pillow hands these to another program, Ghostscript, which runs what the file says.
PROGRAM_FORMATS = frozenset({"EPS"})

# What Pillow's readers and datasets.Image raise on broken files. PNG raises SyntaxError, several
# other formats struct.error, ValueError or IndexError; OSError covers truncated and unknown files.
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
    PIL.Image.DecompressionBombError,
)


def open_image(file: str | os.PathLike[str] | IO[bytes]) -> PIL.Image.Image:
    """Open an image file of a format that Pillow reads by itself.

    A path must be that of a regular file: a pipe would be waited for, a device has no end.

    Raises:
        One of DECODING_ERRORS: no such file, or no such image.
    """
    if isinstance(file, (str, os.PathLike)):
        path = Path(file)
        if path.exists() and not path.is_file():
            raise ValueError("a folder" if path.is_dir() else "not a regular file")
    PIL.Image.init()
    formats = [name for name in PIL.Image.ID if name not in PROGRAM_FORMATS]
    return PIL.Image.open(file, formats=formats)


def open_value(value: dict[str, Any]) -> PIL.Image.Image:
    """Open an undecoded ``datasets.Image`` value, ``{"bytes": ..., "path": ...}``.

    Raises:
        One of DECODING_ERRORS: as :func:`open_image`.
    """
    content, path = value["bytes"], value["path"]
    if content is None and path is None:
        raise ValueError("no image")
    return open_image(path if content is None else io.BytesIO(content))


def decode_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Turn an image of any mode upright and into RGB, at its own size.

    Transparency is put on white, as ``transformers.image_transforms.convert_to_rgb`` does, so that
    hidden colors under a transparent background never reach the model. Samples of 16 bits keep
    their 8 high bits (Pillow would clip them). An image that datasets.Image has turned already
    carries no orientation any more and is not turned twice.

    Raises:
        One of DECODING_ERRORS: the file is broken.
    """
    if image.getexif().get(ORIENTATION_TAG, 1) != 1:
        image = PIL.ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I"):
        high_bits = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        return PIL.Image.fromarray(high_bits.astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or "A" in image.getbands() or "a" in image.getbands():
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = PIL.Image.alpha_composite(white, image)
    return image.convert("RGB")


def list_image_extensions() -> frozenset[str]:
    """Return the file name extensions, lower case with a dot, that ``open_image`` can read."""
    extensions = PIL.Image.registered_extensions()
    readable = PIL.Image.OPEN.keys() - PROGRAM_FORMATS
    return frozenset(ending for ending, name in extensions.items() if name in readable)
