"""Decode every image once: the pixels of a split, kept on disk and memory-mapped."""

from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import PIL
from tqdm.auto import tqdm

from siglip_flowers.base.errors import RunError
from siglip_flowers.config import DataArguments
from siglip_flowers.data.inspection import count_workers
from siglip_flowers.data.pixels.array_cache import ArrayEntry, locate_cache, open_array
from siglip_flowers.data.pixels.fingerprint import fingerprint_images
from siglip_flowers.data.pixels.tensors import (
    CachedPixels,
    ImageSize,
    PixelDataset,
    get_pixel_shape,
)

BATCH_ROWS = 32


def open_pixels(
    rows: datasets.Dataset, size: ImageSize, resample: int, arguments: DataArguments
) -> CachedPixels | PixelDataset:
    """Return the rows as uint8 pixels, from the cache, which is filled first if need be.

    Args:
        rows: A data set with the columns ``image`` and ``label``.
        size: Side in pixels that images are resized to, or a budget of patches.
        resample: PIL's resampling filter, from the checkpoint's image processor.
        arguments: Whether pixels are cached and where, and by how many threads they are decoded.

    Returns:
        The cached pixels; or, without a cache or where its disk is full, a data set that decodes.

    Raises:
        RunError: An image of the cache to be built can no longer be read.
    """
    decoding = PixelDataset(rows, size, resample)
    if not arguments.pixel_cache or not len(rows):
        return decoding
    entry = ArrayEntry(
        kind="pixels",
        # Another Pillow may decode or resample to other values.
        key={
            "images": fingerprint_images(rows),
            "resample": int(resample),
            "pillow": PIL.__version__,
        },
        # Two patch sizes differ in it, and so do two budgets.
        shape=(len(rows), *get_pixel_shape(size)),
        dtype="uint8",
    )

    def build(array: np.ndarray) -> None:
        _decode_into(array, decoding, count_workers(arguments.image_workers))

    pixels = open_array(locate_cache(arguments), entry, build)
    return decoding if pixels is None else CachedPixels(pixels, decoding.labels)


def _decode_into(array: np.ndarray, images: PixelDataset, workers: int) -> None:
    """Fill (N, ...) uint8 in parallel; Pillow lets other threads run while it decodes."""

    def decode_batch(start: int) -> int:
        numbers = range(start, min(start + BATCH_ROWS, len(images)))
        try:
            items = images.__getitems__(numbers)
        except OSError as error:
            if error.filename is None:
                raise
            raise RunError(
                f"{error.filename} cannot be read any more ({error.strerror}); make it readable "
                "or leave it out, and repeat the command."
            ) from error
        for number, item in zip(numbers, items, strict=True):
            array[number] = item["pixel_values"].numpy()
        return len(numbers)

    starts = range(0, len(images), BATCH_ROWS)
    with (
        # None: only where there is a terminal.
        tqdm(total=len(images), desc="decoding images", unit="img", disable=None) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        try:
            for count in pool.map(decode_batch, starts):
                bar.update(count)
        finally:
            pool.shutdown(cancel_futures=True)
