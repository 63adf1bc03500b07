"""From images to the tensors that the model sees, decoded once and kept on disk.

Images are decoded to uint8 and stay so until they are on the device: a quarter of the bytes of
float32 cross the bus. ``PixelNormalizer`` then gives exactly what the checkpoint's own image
processor would have given.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import PIL
import torch
from PIL import Image

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.config import DataArguments
from siglip_flowers.data.pixels.array_cache import (
    ArrayEntry,
    GrowingArray,
    find_array,
    grow_array,
    is_growing,
    locate_cache,
    open_array,
)
from siglip_flowers.data.pixels.decoding import (
    DECODING_VERSION,
    ImageError,
    check_header,
    decode_rgb,
    map_ahead,
    read_image,
)
from siglip_flowers.data.pixels.patches import PatchBudget, pack_image, unpack_patches
from siglip_flowers.data.rows import (
    describe_unreadable,
    fingerprint_images,
    get_labels,
    list_unreadable,
    select_undecoded,
    visit_images,
)
from siglip_flowers.runtime.devices import count_cores

# Side in pixels of the squares that images are resized to, or the patches they are cut up into.
ImageSize = int | PatchBudget
# Images that tell how long all of them take, and the share of all that they are at most.
SAMPLED_IMAGES, SAMPLED_SHARE = 32, 1 / 32
# Opening, decoding and resizing a JPEG on a slow core.
SECONDS_PER_IMAGE, SECONDS_PER_PIXEL = 3e-4, 3e-8
# What takes longer than this to decode is decoded while training.
LONGEST_SECONDS = 300.0


@dataclass(frozen=True)
class PixelForm:
    """The pixels that a model takes.

    Attributes:
        size: S, the side in pixels that images are resized to, or a budget of patches.
        resample: PIL's resampling filter, from the checkpoint's image processor.
    """

    size: ImageSize
    resample: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image: (3, S, S), or (1 + P, K) of packed patches."""
        size = self.size
        return size.shape if isinstance(size, PatchBudget) else (3, size, size)

    def scale(self, factor: float) -> "PixelForm":
        """Return the form of images whose sides are ``factor`` times as long."""
        size = self.size
        if isinstance(size, PatchBudget):
            larger = PatchBudget(size.patch_size, round(size.max_num_patches * factor**2))
            return PixelForm(larger, self.resample)
        return PixelForm(round(size * factor), self.resample)

    def resize(self, image: Image.Image) -> torch.Tensor:
        """Squash an image to a square, or cut it up into patches: uint8 of this shape."""
        if image.mode != "RGB":
            image = decode_rgb(image)
        if isinstance(self.size, PatchBudget):
            return pack_image(image, self.size, self.resample)
        if image.size != (self.size, self.size):
            sides = (self.size, self.size)
            image = image.resize(sides, resample=Image.Resampling(self.resample))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def read_form(processor: Any) -> PixelForm:
    """Return the form to which an image processor brings images.

    Raises:
        InputError: It does not resize them.
    """
    if not getattr(processor, "do_resize", True):
        raise InputError(
            "The image processor has do_resize false, but the model needs images of one size. Set "
            "it to true in preprocessor_config.json."
        )
    if hasattr(processor, "max_num_patches"):
        budget = PatchBudget(processor.patch_size, processor.max_num_patches)
        return PixelForm(budget, int(processor.resample))
    return PixelForm(processor.size["height"], int(processor.resample))


class PixelBatch(dict[str, Any]):
    """A batch: ``pixel_values`` (B, 3, S, S) uint8, ``labels`` (B,) int64, ``index`` (B,) int64.

    The images of a NaFlex checkpoint are packed, (B, 1 + P, K); see
    :mod:`siglip_flowers.data.pixels.patches`.

    ``index`` is an array, which nothing moves to a device: random numbers are drawn from it in main
    memory.
    """

    def to(self, device: torch.device | str, **kwargs: Any) -> "PixelBatch":
        """Return the batch with pixels and labels on the device; nobody waits for a GPU's copy."""
        names, is_gpu = ("pixel_values", "labels"), torch.device(device).type == "cuda"
        moved = {name: self[name].to(device, non_blocking=is_gpu) for name in names}
        return PixelBatch(self, **moved)


class PixelDataset(torch.utils.data.Dataset[PixelBatch]):
    """Rows of a data set as uint8 pixels, a batch at a time: from the cache, or decoded on access.

    ``index`` of a batch is the row's number, which keys the random numbers of augmentation.

    Args:
        rows: A data set with the columns ``image`` and ``label``.
        form: The form of the pixels.

    Attributes:
        cached: The pixels of all rows (N, ...) uint8, if the cache has them.
        growing: Keeps what is decoded, if that takes long.
        threads: How many decode a batch.
    """

    def __init__(self, rows: datasets.Dataset, form: PixelForm) -> None:
        self.rows = rows.with_format(None)
        self.labels = torch.from_numpy(get_labels(rows))
        self.images = select_undecoded(rows)
        self.form = form
        self.cached: np.memmap | None = None
        self.growing: GrowingArray | None = None
        self.threads = 1

    def __getstate__(self) -> dict[str, Any]:
        # A memory map is pickled as a copy of all pixels.
        file = None if self.cached is None else str(self.cached.filename)
        return {**self.__dict__, "cached": file}

    def __setstate__(self, state: dict[str, Any]) -> None:
        file = state["cached"]
        self.__dict__.update(state, cached=file and np.load(file, mmap_mode="r"))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> PixelBatch:
        # One gather, or one read of the Arrow table, for a whole batch.
        index = np.asarray(indices, dtype=np.int64)
        if self.cached is not None:
            pixels = torch.from_numpy(self.cached[index])
        elif self.growing is None:
            pixels = torch.stack(self._decode_rows(list(indices)))
        else:
            kept, is_missing = self.growing.read(index)
            pixels, missing = torch.from_numpy(kept), np.flatnonzero(is_missing).tolist()
            rows = index[missing].tolist()
            for place, row, values in zip(missing, rows, self._decode_rows(rows), strict=True):
                pixels[place] = values
                self.growing.write(row, values.numpy())
        return PixelBatch(pixel_values=pixels, labels=self.labels[index], index=index)

    def _decode_rows(self, rows: list[int]) -> list[torch.Tensor]:
        def decode(item: tuple[int, dict[str, Any]]) -> torch.Tensor:
            row, value = item
            try:
                return self.decode(value)
            except ImageError as error:
                problems = list_unreadable(self.rows, {row: str(error)})
                raise RunError(describe_unreadable(problems, len(self))) from error

        items = zip(rows, self.images[rows]["image"] if rows else (), strict=True)
        if self.threads == 1:
            return list(map(decode, items))
        return list(map_ahead(decode, items, workers=self.threads, ahead=len(rows)))

    def decode(self, value: dict[str, Any]) -> torch.Tensor:
        """Return the pixels of an undecoded image."""
        with read_image(value) as image:
            return self.form.resize(image)


def open_pixels(rows: datasets.Dataset, form: PixelForm, arguments: DataArguments) -> PixelDataset:
    """Return the rows as uint8 pixels from the cache, which is filled first if needed.

    Without a cache, or if its disk is full, the data set decodes. If filling the cache takes long,
    it decodes as well, and keeps the pixels.

    Args:
        rows: A data set with the columns ``image`` and ``label``.
        form: The form of the pixels.
        arguments: Whether and where pixels are cached, and how many threads decode them.

    Raises:
        RunError: An image cannot be read.
    """
    pixels = PixelDataset(rows, form)
    if not arguments.pixel_cache or not len(rows):
        return pixels
    workers = arguments.image_workers or count_cores()

    def fill(array: np.ndarray) -> None:
        def visit(row: int, value: dict[str, Any]) -> None:
            array[row] = pixels.decode(value).numpy()

        problems = visit_images(rows, visit, workers, "decoding images")
        if problems:
            raise RunError(describe_unreadable(list_unreadable(rows, problems), len(rows)))

    directory, entry = locate_cache(arguments), describe_pixels(rows, form)
    pixels.cached = find_array(directory, entry)
    if pixels.cached is not None:
        return pixels
    if is_growing(directory, entry) or estimate_seconds(rows, workers) > LONGEST_SECONDS:
        pixels.growing = grow_array(directory, entry)
        pixels.cached = find_array(directory, entry)
    else:
        pixels.cached = open_array(directory, entry, fill)
    return pixels


def estimate_seconds(rows: datasets.Dataset, workers: int) -> float:
    """Return about how long threads decode all images; 0 for few images.

    By the headers of a sample, so that all processes of a run come to the same result.
    """
    if len(rows) * SAMPLED_SHARE < SAMPLED_IMAGES:
        return 0.0
    sample = np.linspace(0, len(rows) - 1, SAMPLED_IMAGES, dtype=int).tolist()
    seconds = 0.0
    for value in select_undecoded(rows)[sample]["image"]:
        with suppress(ImageError):
            seconds += SECONDS_PER_IMAGE + SECONDS_PER_PIXEL * check_header(value)
    return seconds / SAMPLED_IMAGES * len(rows) / workers


def describe_pixels(rows: datasets.Dataset, form: PixelForm) -> ArrayEntry:
    """Return the entry of the cache that holds the pixels of all rows."""
    return ArrayEntry(
        kind="pixels",
        key={
            "images": fingerprint_images(rows),
            "resample": form.resample,
            # Another Pillow may decode or resample to other values, and so may another version
            # of the steps in decoding.py.
            "pillow": PIL.__version__,
            "steps": DECODING_VERSION,
        },
        # Two patch sizes differ in it, and so do two budgets.
        shape=(len(rows), *form.shape),
        dtype="uint8",
    )


def collate_pixels(batch: Any) -> PixelBatch:
    """Return a batch as it is: ``__getitems__`` read it as one."""
    assert isinstance(batch, PixelBatch)
    return batch


class PixelNormalizer:
    """Turns uint8 pixels into what an image processor's rescaling and normalization give.

    Args:
        processor: An image processor with ``rescale_factor``, ``image_mean`` and ``image_std``;
            ``do_rescale`` and ``do_normalize`` may turn either step off.
    """

    def __init__(self, processor: Any) -> None:
        rescales = getattr(processor, "do_rescale", True)
        normalizes = getattr(processor, "do_normalize", True)
        self.rescale_factor = float(processor.rescale_factor) if rescales else 1.0
        self.mean = tuple(processor.image_mean) if normalizes else (0.0,) * 3
        self.std = tuple(processor.image_std) if normalizes else (1.0,) * 3

    def prepare(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map pixels, uint8 or float on the 0..255 scale, to the arguments that the model takes.

        (B, 3, H, W) become ``pixel_values``; packed images (B, 1 + P, K) ``pixel_values``
        (B, P, K), ``pixel_attention_mask`` (B, P) and ``spatial_shapes`` (B, 2).
        """
        if pixels.ndim == 4:
            return {"pixel_values": self(pixels)}
        patches = unpack_patches(pixels)
        colors = patches.values.reshape(len(pixels), -1, 3)
        values = self._normalize(colors, 2).reshape(patches.values.shape)
        # The image processor pads what is normalized already.
        values = values.masked_fill(patches.mask[..., None] == 0, 0)
        return {
            "pixel_values": values,
            "pixel_attention_mask": patches.mask,
            "spatial_shapes": patches.spatial_shapes,
        }

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, H, W) uint8, or float on the 0..255 scale, to normalized float32."""
        return self._normalize(pixels, 1)

    def _normalize(self, pixels: torch.Tensor, axis: int) -> torch.Tensor:
        """Normalize pixels whose colors lie along an axis."""
        shape = [-1 if number == axis else 1 for number in range(pixels.ndim)]
        # The processor rescales in float64 and rounds to float32 before it normalizes; to be
        # equal to the last bit, so does this (except on MPS, which has no float64).
        mean = torch.tensor(self.mean, device=pixels.device).view(shape)
        std = torch.tensor(self.std, device=pixels.device).view(shape)
        if pixels.dtype == torch.uint8 and pixels.device.type != "mps":
            scaled = (pixels.double() * self.rescale_factor).float()
        else:
            scaled = pixels * self.rescale_factor
        # In place: at 384 pixels, temporaries of this size cost more than the arithmetic.
        return scaled.sub_(mean).div_(std)
