"""From whatever a picture file holds to an upright 8-bit RGB picture."""

import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps

ORIENTATION_TAG = 0x0112

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


def decode_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Turn a picture of any mode upright and into RGB, at its own size.

    Transparency is put on white, as ``transformers.image_transforms.convert_to_rgb`` does, so that
    hidden colours under a transparent background never reach the model. Samples of 16 bits keep
    their 8 high bits (Pillow would clip them). A picture that datasets.Image has turned already
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
    """Return the file name extensions, lower case with a dot, that Pillow has a reader for."""
    extensions = PIL.Image.registered_extensions()
    return frozenset(ending for ending, name in extensions.items() if name in PIL.Image.OPEN)
