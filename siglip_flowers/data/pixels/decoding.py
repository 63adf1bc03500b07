"""From an image file of any kind to upright 8-bit RGB; every reader of images comes here.

The steps, in this order:

1. Pillow opens the file, with the formats that it reads without another program. Of an animation
   the first frame counts.
2. The size in the header is checked, and the memory for the pixels is reserved.
3. The pixels are decoded.
4. The orientation in the EXIF data is applied. EXIF data that cannot be read are ignored.
5. Samples of more than 8 bits are scaled to 8. A gray image of 9 to 32 bits keeps its high bits:
   as many as the file says it has, or as the brightest sample needs (8, 10, 12, 16, 24 or 32).
   Floating-point samples range from 0 to 1, to 255 or, if one is brighter, to the brightest one.
6. Transparency is put on white, as ``transformers.image_transforms.convert_to_rgb`` does, so that
   hidden colors under a transparent background never reach the model.
7. Any other mode (palette, gray, CMYK, ...) is converted to RGB as Pillow does it.
"""

import importlib.util
import io
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
import PIL.Image

# A path, the bytes of a file, a file, an opened image or an undecoded ``datasets.Image`` value.
ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | io.BytesIO | PIL.Image.Image | dict[str, Any]
)

# Part of the key of everything that is cached: raise it when the steps change.
DECODING_VERSION = 2
# Pillow passes these to another program, Ghostscript, which runs code in the file.
PROGRAM_FORMATS = frozenset({"EPS"})
# Photographs of phones, which Pillow reads with the package pillow-heif.
HEIC_EXTENSIONS = frozenset({".heic", ".heif"})
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
# Bytes of decoded pixels at a time, in all threads of a process: 268 megapixels of RGB, or 134 of
# another mode, whose conversion takes a second copy.
MAX_PIXEL_BYTES = 2**30
# Rows that are put on white at a time, which keeps the copies of a large image small.
STRIP_ROWS = 512
ORIENTATION_TAG, BITS_PER_SAMPLE_TAG = 0x0112, 0x0102
# What undoes each orientation of EXIF 2.32.
TRANSPOSITIONS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
SAMPLE_BITS = (8, 10, 12, 16, 24, 32)

Item = TypeVar("Item")
Result = TypeVar("Result")


class ImageError(ValueError):
    """An image that cannot be read; the message says why in a few words."""


class _MemoryBudget:
    """Bytes that all threads share; a thread that asks for more than is left waits."""

    def __init__(self) -> None:
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._used + count <= MAX_PIXEL_BYTES or not self._used)
            self._used += count
        try:
            yield
        finally:
            with self._changed:
                self._used -= count
                self._changed.notify_all()


_budget = _MemoryBudget()
# The same opened image may be in a list twice, and loading one is not thread-safe.
_loading = threading.Lock()


@contextmanager
def read_image(
    source: ImageSource, *, draft: int = 0, max_pixels: int | None = None
) -> Iterator[PIL.Image.Image]:
    """Yield an image as upright 8-bit RGB, at its own size.

    Memory for its pixels is reserved as long as the block runs, and freed at its end if they were
    read here: resize or copy the image in there.

    Args:
        source: See ``ImageSource``. A path must be that of a regular file: a pipe would be waited
            for, and a device has no end.
        draft: A JPEG may be decoded at a smaller size, but not below this side; 0 does not.
        max_pixels: The largest image to accept.

    Raises:
        ImageError: The image cannot be read, whatever its decoder raised.
    """
    with ExitStack() as stack:
        try:
            image = source if isinstance(source, PIL.Image.Image) else _open(source)
            if image is not source:
                stack.enter_context(image)
            size = _check_size(image, max_pixels)
            if draft:
                image.draft("RGB", (draft, draft))
            stack.enter_context(_budget.reserve(size))
            if image is source:
                with _loading:
                    image.load()
                    _read_orientation(image)
            rgb = _convert(image)
            # Pixels are freed before their reservation is, or two large images would overlap.
            if image is not source:
                stack.callback(image.close)
                stack.callback(rgb.close)
        except MemoryError:
            raise
        except Exception as error:
            raise ImageError(_explain(error)) from error
        yield rgb


def decode_rgb(source: ImageSource) -> PIL.Image.Image:
    """Return an image of any mode as upright 8-bit RGB, at its own size.

    Raises:
        ImageError: It cannot be read.
    """
    with read_image(source) as rgb:
        return rgb.copy()


def check_header(source: ImageSource | None) -> int:
    """Return the number of pixels without decoding them.

    Raises:
        ImageError: This is not an image, or is too large.
    """
    try:
        with _open(source) as image:
            _check_size(image, None)
            return image.width * image.height
    except Exception as error:
        raise ImageError(_explain(error)) from error


def _open(source: Any) -> PIL.Image.Image:
    if isinstance(source, dict):
        source = source["bytes"] if source["bytes"] is not None else source["path"]
    if source is None:
        raise ImageError("no image")
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    if not isinstance(source, io.BytesIO) and not stat.S_ISREG(os.stat(source).st_mode):
        raise ImageError("not a regular file")
    _load_formats()
    formats = [name for name in PIL.Image.ID if name not in PROGRAM_FORMATS]
    try:
        return PIL.Image.open(source, formats=formats)
    except PIL.UnidentifiedImageError as error:
        with nullcontext(source) if isinstance(source, io.BytesIO) else open(source, "rb") as file:
            file.seek(4)
            start = file.read(8)
        if start[:4] == b"ftyp" and start[4:] in HEIC_BRANDS:
            raise ImageError("HEIC requires pip install pillow-heif") from error
        raise


def _check_size(image: PIL.Image.Image, max_pixels: int | None) -> int:
    """Return the bytes that decoding takes."""
    pixels = image.width * image.height
    size = pixels * (4 if image.mode == "RGB" else 8)
    if size > MAX_PIXEL_BYTES or pixels > (max_pixels or pixels):
        highest = min(MAX_PIXEL_BYTES * pixels // size, max_pixels or pixels)
        raise ImageError(
            f"it has {pixels / 1e6:.0f} megapixels, more than the limit of {highest / 1e6:.0f}"
        )
    return size


def _explain(error: Exception) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, PIL.Image.DecompressionBombError):
        return f"it has more than {2 * (PIL.Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} megapixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _read_orientation(image: PIL.Image.Image) -> int:
    try:
        orientation: int = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata; the pixels are good
        return 1
    return orientation


def _convert(image: PIL.Image.Image) -> PIL.Image.Image:
    # Before the orientation is read: a TIFF is turned by loading it.
    image.load()
    transposition = TRANSPOSITIONS.get(_read_orientation(image))
    deep = image.mode == "F" or image.mode.startswith("I")
    if deep:
        image = _scale_to_8_bits(image)
    if transposition is not None:
        image = image.transpose(transposition)
    bands = image.getbands()
    if "transparency" in image.info or "A" in bands or "a" in bands:
        image = _put_on_white(image)
    elif image.mode != "RGB":
        image = image.convert("RGB")
    if transposition is not None:
        image.info.clear()  # or it would be turned once more
    return image


def _scale_to_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Scale gray samples of more than 8 bits (modes I, I;16 and F) to L, or LA with a tRNS."""
    samples = np.asarray(image)
    if image.mode == "F":
        samples = np.nan_to_num(samples, posinf=0, neginf=0)
        highest = float(samples.max())
        white = 1.0 if highest <= 1 else max(highest, 255.0)
        gray = np.clip(samples * (255 / white) + 0.5, 0, 255).astype(np.uint8)
    else:
        bits = _count_bits(image, int(samples.max()))
        gray = np.clip(samples >> (bits - 8), 0, 255).astype(np.uint8)
    scaled = PIL.Image.fromarray(gray)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = PIL.Image.fromarray(np.where(samples == transparent, 0, 255).astype(np.uint8))
        scaled = PIL.Image.merge("LA", (scaled, alpha))
    return scaled


def _count_bits(image: PIL.Image.Image, highest: int) -> int:
    said = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE_TAG, (16,))[0]
    # Samples of 12 bits are often stored in 16, which would make them nearly black.
    return said if 8 < said < 16 else next(bits for bits in SAMPLE_BITS if highest < 2**bits)


def _put_on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    rgb = PIL.Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP_ROWS):
        box = (0, top, image.width, min(top + STRIP_ROWS, image.height))
        strip = image.crop(box).convert("RGBA")
        white = PIL.Image.new("RGBA", strip.size, (255, 255, 255, 255))
        rgb.paste(PIL.Image.alpha_composite(white, strip).convert("RGB"), box)
    return rgb


@cache
def _load_formats() -> None:
    """Let Pillow load its formats, and HEIC if the package for it is installed."""
    PIL.Image.init()
    if importlib.util.find_spec("pillow_heif") is not None:
        importlib.import_module("pillow_heif").register_heif_opener()


@cache
def list_image_extensions() -> frozenset[str]:
    """Return the file name extensions, lower case with a dot, of the formats that are read."""
    _load_formats()
    extensions = PIL.Image.registered_extensions()
    readable = PIL.Image.OPEN.keys() - PROGRAM_FORMATS
    return frozenset(ending for ending, name in extensions.items() if name in readable)


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    ahead: int,
    stopped: threading.Event | None = None,
) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of the items, computed in threads.

    At most ``ahead`` results are pending or ready beyond the one being consumed, so a long input
    takes no more memory than a short one. Only the consumer's thread draws items. The end waits for
    what runs; a function that takes long can look at ``stopped``, which is set before.
    """
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        if stopped is not None:
            stopped.set()
        pool.shutdown(cancel_futures=True)
