"""Check all images before training: unreadable files, and images in two splits."""

import dataclasses
import logging
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import PIL.Image
import xxhash
from datasets import Dataset, DatasetDict

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.files import measure_free_bytes
from siglip_flowers.base.text import abbreviate, count
from siglip_flowers.config import DataArguments
from siglip_flowers.data.pixels.array_cache import (
    SPARE_BYTES,
    ArrayEntry,
    find_array,
    locate_cache,
    open_array,
)
from siglip_flowers.data.pixels.decoding import (
    DECODING_VERSION,
    ImageError,
    check_header,
    read_image,
)
from siglip_flowers.data.pixels.tensors import (
    LONGEST_SECONDS,
    PixelForm,
    describe_pixels,
    estimate_seconds,
)
from siglip_flowers.data.rows import (
    describe_unreadable,
    fingerprint_images,
    image_ids,
    list_unreadable,
    visit_images,
)
from siglip_flowers.data.sources.oxford import KNOWN_SHARED
from siglip_flowers.data.splits import ClassificationData, SharedImage, require_training_images
from siglip_flowers.runtime.devices import count_cores

DIGEST_BYTES = 16

logger = logging.getLogger(__name__)

# By split, the digests of the images (N, 16) uint8, and why others cannot be read, by row.
Digests = dict[str, np.ndarray]
Problems = dict[str, dict[int, str]]


def digest_pixels(image: PIL.Image.Image) -> np.ndarray:
    """Return a digest of the pixels of an RGB image: (16,) uint8."""
    digest = xxhash.xxh3_128(struct.pack("<II", *image.size))
    digest.update(image.tobytes())
    return np.frombuffer(digest.digest(), dtype=np.uint8)


def digest_file(value: dict[str, Any]) -> np.ndarray:
    """Return a digest of the bytes of an undecoded image: (16,) uint8.

    Raises:
        ImageError: It cannot be read, or is not an image; its pixels are not decoded.
    """
    check_header(value)
    content = value["bytes"]
    if content is None:
        content = Path(value["path"]).read_bytes()
    return np.frombuffer(xxhash.xxh3_128_digest(content), dtype=np.uint8)


def examine_images(
    rows: Dataset,
    *,
    workers: int,
    cache_dir: Path | None = None,
    decode: bool = True,
    form: PixelForm | None = None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Check every image of a split.

    Args:
        rows: The split.
        workers: Threads.
        cache_dir: Where the results are kept, so that images that were good are not read twice.
        decode: Whether images are decoded, or only opened.
        form: The pixels that are kept in the cache when images are decoded.

    Returns:
        Digests (N, 16) uint8, zero for images that cannot be read, and why not, by row.
    """

    def read(
        digests: np.ndarray, rows: Dataset, pixels: np.ndarray | None = None
    ) -> dict[int, str]:
        def visit(row: int, value: dict[str, Any]) -> None:
            if not decode:
                digests[row] = digest_file(value)
                return
            with read_image(value) as image:
                if pixels is not None and form is not None:
                    pixels[row] = form.resize(image).numpy()
                digests[row] = digest_pixels(image)

        return visit_images(rows, visit, workers, "checking images")

    def fill(digests: np.ndarray) -> None:
        def fill_both(pixels: np.ndarray) -> None:
            # The pixels are kept unless an image is unreadable.
            if read(digests, rows, pixels):
                raise ImageError

        if form is not None and cache_dir is not None:
            with suppress(ImageError):
                open_array(cache_dir, describe_pixels(rows, form), fill_both)
        # The pixels may have been there, or there may be no room for them.
        if not digests.any():
            read(digests, rows)

    digests: np.ndarray | None = None
    if cache_dir is not None and len(rows):
        digests = open_array(cache_dir, _describe_digests(rows, decode), fill, quiet=True)
    if digests is None:
        digests = np.zeros((len(rows), DIGEST_BYTES), dtype=np.uint8)
        fill(digests)
    # Reading the others once more tells what is wrong with them.
    failed = np.flatnonzero(~digests.any(axis=1))
    problems = read(np.zeros_like(digests), rows.select(failed))
    return digests, {int(failed[row]): problem for row, problem in problems.items()}


def _describe_digests(rows: Dataset, decode: bool) -> ArrayEntry:
    key: dict[str, Any] = {"images": fingerprint_images(rows), "decoded": decode}
    if decode:
        key |= {"pillow": PIL.__version__, "steps": DECODING_VERSION}
    return ArrayEntry("digests", key, (len(rows), DIGEST_BYTES), "uint8")


def check_images(
    data: ClassificationData, arguments: DataArguments, forms: Mapping[str, PixelForm] | None = None
) -> ClassificationData:
    """Check that every image can be read and none is in two splits; drop those that cannot.

    Images are decoded for it if their pixels are kept, so that none is decoded twice, or if
    unreadable ones are to be dropped. Otherwise, or if that would take long, files are opened and
    compared by their bytes, and a damaged one is found when it is decoded.

    Args:
        data: From :func:`~siglip_flowers.data.sources.load.open_data`.
        arguments: Where the images come from.
        forms: By split, the pixels that will be needed, to be put into the cache.

    Raises:
        InputError: An image in two splits, or a class that has lost its training images.
        RunError: Unreadable images.
    """
    splits, skips = data.splits, arguments.skip_corrupt_images
    cache_dir = locate_cache(arguments) if arguments.pixel_cache else None
    workers = arguments.image_workers or count_cores()
    if forms is None or cache_dir is None or not _has_room(splits, cache_dir, forms):
        forms = {}
    if forms and cache_dir and not skips and _takes_long(splits, cache_dir, forms, workers):
        forms = {}
    digests: Digests = {}
    problems: Problems = {name: {} for name in splits}
    decodes = bool(forms) or skips
    if not decodes and arguments.allow_duplicates:
        checked = "files not checked"
    else:
        checked = "all images decoded" if decodes else "files compared, decoded while training"
        for name, rows in splits.items():
            digests[name], problems[name] = examine_images(
                rows, workers=workers, cache_dir=cache_dir, decode=decodes, form=forms.get(name)
            )
    kept, skipped = _drop_unreadable(splits, problems, skips)
    shared = _find_shared(splits, digests)
    _report_shared(shared, is_oxford=data.source == "oxford", allowed=arguments.allow_duplicates)
    require_training_images(kept["train"], arguments.max_train_samples)
    if empty := [name for name, rows in kept.items() if not len(rows)]:
        raise InputError(f"No image of the {empty[0]} split can be read. Replace its images.")
    shots = f", {arguments.shots} per class" if arguments.shots is not None else ""
    sizes = "/".join(str(len(rows)) for rows in kept.values())
    return dataclasses.replace(
        data,
        splits=kept,
        description=f"{data.description}{shots}, {sizes} images",
        skipped=skipped,
        shared=shared,
        checked=checked,
    )


def _has_room(splits: DatasetDict, directory: Path, forms: Mapping[str, PixelForm]) -> bool:
    """Return whether the pixels of all splits are in the cache or fit on its disk."""
    entries = [describe_pixels(rows, forms[name]) for name, rows in splits.items() if len(rows)]
    needed = sum(entry.nbytes for entry in entries if find_array(directory, entry) is None)
    free = measure_free_bytes(directory)
    if not needed or free >= needed + SPARE_BYTES:
        return True
    logger.warning(
        "The pixels of all images need %.1f GB, and %s has %.1f GB free; images are decoded "
        "in every epoch instead. --cache_dir names another disk.",
        needed / 1e9,
        directory,
        free / 1e9,
    )
    return False


def _takes_long(
    splits: DatasetDict, directory: Path, forms: Mapping[str, PixelForm], workers: int
) -> bool:
    """Return whether decoding what was not decoded before would delay the first step for long."""
    estimates = {name: estimate_seconds(rows, workers) for name, rows in splits.items()}
    # Seldom: what follows looks at every file.
    if sum(estimates.values()) <= LONGEST_SECONDS:
        return False
    pending = [
        name
        for name, rows in splits.items()
        if find_array(directory, _describe_digests(rows, decode=True)) is None
    ]
    seconds = sum(estimates[name] for name in pending)
    # An earlier run may have kept all of them while it trained.
    if seconds > LONGEST_SECONDS and any(
        find_array(directory, describe_pixels(splits[name], forms[name])) is None
        for name in pending
    ):
        logger.warning(
            "Decoding all images takes about %.0f minutes; they are decoded while training, and "
            "kept in %s.",
            seconds / 60,
            directory,
        )
    return seconds > LONGEST_SECONDS


def _drop_unreadable(
    splits: DatasetDict, problems: Problems, skips: bool
) -> tuple[DatasetDict, dict[str, list[str]]]:
    """Return the splits without unreadable rows, and the dropped ids of each split."""
    kept, skipped, named = DatasetDict(splits), {}, []
    for name, rows in splits.items():
        bad = sorted(problems[name])
        ids = image_ids(rows) if bad else []
        skipped[name] = [ids[row] for row in bad]
        if bad:
            named += list_unreadable(rows, problems[name])
            kept[name] = rows.select(np.setdiff1d(np.arange(len(rows)), bad))
    total = sum(map(len, splits.values()))
    if named and not skips:
        raise RunError(describe_unreadable(named, total))
    if named:
        number, images = len(named), count(total, "image")
        logger.warning(
            "Dropped %d of %s, which cannot be read: %s.", number, images, abbreviate(named)
        )
    return kept, skipped


def _find_shared(splits: DatasetDict, digests: Digests) -> list[SharedImage]:
    """Return the pairs of images with the same digest that are in two splits."""
    seen: dict[bytes, tuple[str, int]] = {}
    pairs = []
    for name, found in digests.items():
        for row in np.flatnonzero(found.any(axis=1)).tolist():
            first = seen.setdefault(found[row].tobytes(), (name, row))
            if first[0] != name:
                pairs.append((*first, name, row))
    ids = {name: image_ids(rows) for name, rows in splits.items()} if pairs else {}
    return [(first, ids[first][row], name, ids[name][n]) for first, row, name, n in pairs]


def _report_shared(shared: list[SharedImage], *, is_oxford: bool, allowed: bool) -> None:
    """Warn of images in two splits, or refuse those that the published data set does not have."""
    known = KNOWN_SHARED if is_oxford else frozenset()
    unknown = [pair for pair in shared if frozenset((pair[1], pair[3])) not in known]
    listing = abbreviate([f"{a}/{i} = {b}/{j}" for a, i, b, j in unknown or shared])
    if unknown and not allowed:
        found = "1 image is" if len(unknown) == 1 else f"{len(unknown)} images are"
        raise InputError(
            f"{found} in two splits: {listing}. Remove one of each pair, or accept them with "
            "--allow_duplicates."
        )
    if shared:
        origin = "" if unknown else ", as in the published dataset"
        logger.warning("%s in two splits%s: %s.", count(len(shared), "image"), origin, listing)
