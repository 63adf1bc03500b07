"""Check all images before training: unreadable files, and images in two splits."""

import logging
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL
import PIL.Image
import xxhash
from datasets import Dataset, DatasetDict
from tqdm import tqdm

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.files import measure_free_bytes
from siglip_flowers.base.text import abbreviate, count
from siglip_flowers.data.pixels.array_cache import (
    SPARE_BYTES,
    ArrayEntry,
    find_array,
    open_array,
)
from siglip_flowers.data.pixels.decoding import (
    DECODING_VERSION,
    ImageError,
    check_header,
    read_image,
)
from siglip_flowers.data.pixels.tensors import (
    PixelForm,
    describe_pixels,
    describe_unreadable,
    resize_image,
)
from siglip_flowers.data.rows import (
    fingerprint_images,
    get_image_paths,
    image_ids,
    select_undecoded,
)

BATCH_ROWS = 64
DIGEST_BYTES = 16
# With fewer images there is no progress bar.
SILENT_ROWS = 1000

logger = logging.getLogger(__name__)

# An image in two splits: (split, id, split, id).
SharedImage = tuple[str, str, str, str]


@dataclass(frozen=True)
class Finding:
    """Result of checking one row: a digest of its pixels or bytes, or why it failed."""

    digest: bytes = bytes(DIGEST_BYTES)
    problem: str = ""


# Checks one undecoded ``datasets.Image`` value, given its row.
Examine: TypeAlias = Callable[[int, dict[str, Any] | None], Finding]


@dataclass(frozen=True)
class Inspection:
    """What :func:`inspect_images` found.

    Attributes:
        splits: The splits without unreadable rows.
        skipped: The ids dropped from each.
        shared: The accepted images that are in two splits.
        checked: What was checked, for people.
    """

    splits: DatasetDict
    skipped: dict[str, list[str]]
    shared: list[SharedImage]
    checked: str


def examine_image(
    value: dict[str, Any] | None, keep: Callable[[PIL.Image.Image], None] = lambda image: None
) -> Finding:
    """Decode one undecoded ``datasets.Image`` value as training does and hash its pixels.

    Args:
        value: The image.
        keep: Gets the decoded image.
    """
    if value is None:
        return Finding(problem="no image")
    try:
        with read_image(value) as image:
            digest = xxhash.xxh3_128(struct.pack("<II", *image.size))
            digest.update(image.tobytes())
            keep(image)
    except ImageError as error:
        return Finding(problem=str(error))
    return Finding(digest=digest.digest())


def examine_file(value: dict[str, Any] | None) -> Finding:
    """Open one value without decoding it, which finds what is no image, and hash its bytes."""
    if value is None:
        return Finding(problem="no image")
    try:
        check_header(value)
        content = value["bytes"]
        if content is None:
            content = Path(value["path"]).read_bytes()
    except ImageError as error:
        return Finding(problem=str(error))
    except OSError as error:
        return Finding(problem=error.strerror or str(error))
    return Finding(digest=xxhash.xxh3_128_digest(content))


def _examine_rows(dataset: Dataset, workers: int, examine: Examine) -> Iterator[Finding]:
    undecoded = select_undecoded(dataset)

    def examine_batch(start: int) -> list[Finding]:
        values = undecoded[start : start + BATCH_ROWS]["image"]
        return [examine(start + number, value) for number, value in enumerate(values)]

    with ThreadPoolExecutor(workers) as pool:
        try:
            for batch in pool.map(examine_batch, range(0, len(undecoded), BATCH_ROWS)):
                yield from batch
        finally:
            pool.shutdown(cancel_futures=True)


class _UnreadableError(Exception):
    """Pixels of images that cannot be read are not kept."""


@dataclass(frozen=True)
class ImageCheck:
    """How images are checked.

    Attributes:
        workers: Threads.
        cache_dir: Where the results are kept, so that images that were good are not read twice.
        decode: Whether they are decoded, or only opened.
        forms: By split, the pixels that are kept in the cache when an image is decoded.
    """

    workers: int
    cache_dir: Path | None = None
    decode: bool = True
    forms: Mapping[str, PixelForm] | None = None

    def examine(self, dataset: Dataset, split: str) -> list[Finding]:
        """Check every row, with a progress bar on a terminal if there are many."""
        digests: np.ndarray | None = None

        def fill(digests: np.ndarray) -> None:
            form = (self.forms or {}).get(split)
            if self.decode and form is not None and self.cache_dir is not None:
                entry = describe_pixels(dataset, form)
                with suppress(_UnreadableError):
                    open_array(self.cache_dir, entry, lambda pixels: fill_both(digests, pixels))
            # The pixels may have been there, or there may be no room for them.
            if not digests.any():
                self._fill(dataset, digests, self._examine_one)

        def fill_both(digests: np.ndarray, pixels: np.ndarray) -> None:
            assert self.forms is not None
            form = self.forms[split]

            def examine_row(row: int, value: dict[str, Any] | None) -> Finding:
                def keep(image: PIL.Image.Image) -> None:
                    pixels[row] = resize_image(image, form.size, form.resample).numpy()

                return examine_image(value, keep)

            self._fill(dataset, digests, examine_row)
            if not digests.any(axis=1).all():
                raise _UnreadableError

        if self.cache_dir is not None and len(dataset):
            shape = (len(dataset), DIGEST_BYTES)
            entry = ArrayEntry("digests", self._describe(dataset), shape, "uint8")
            digests = open_array(self.cache_dir, entry, fill, quiet=True)
        if digests is None:
            digests = np.zeros((len(dataset), DIGEST_BYTES), dtype=np.uint8)
            fill(digests)
        findings = [Finding(digest=digest.tobytes()) for digest in digests]
        # An unreadable image has no digest; reading it once more tells what is wrong with it.
        failed = [row for row, finding in enumerate(findings) if finding == Finding()]
        again = _examine_rows(dataset.select(failed), self.workers, self._examine_one)
        for row, finding in zip(failed, again, strict=True):
            findings[row] = finding
        return findings

    def _examine_one(self, _row: int, value: dict[str, Any] | None) -> Finding:
        return examine_image(value) if self.decode else examine_file(value)

    def _fill(self, dataset: Dataset, digests: np.ndarray, examine: Examine) -> None:
        silent = True if len(dataset) < SILENT_ROWS else None  # None: silent without a terminal
        examined = _examine_rows(dataset, self.workers, examine)
        bar = tqdm(examined, "Checking images", len(dataset), unit="img", disable=silent)
        for row, finding in enumerate(bar):
            digests[row] = np.frombuffer(finding.digest, dtype=np.uint8)

    def _describe(self, dataset: Dataset) -> dict[str, Any]:
        key: dict[str, Any] = {"images": fingerprint_images(dataset), "decoded": self.decode}
        if self.decode:
            key |= {"pillow": PIL.__version__, "steps": DECODING_VERSION}
        return key


def _drop_unreadable(
    splits: DatasetDict, findings: dict[str, list[Finding]], skip: bool
) -> tuple[DatasetDict, dict[str, list[str]]]:
    """Return the splits without unreadable rows, and the dropped ids of each split."""
    kept, skipped, problems = DatasetDict(), {}, []
    for name, dataset in splits.items():
        bad = [row for row, finding in enumerate(findings[name]) if finding.problem]
        ids, paths = (image_ids(dataset), get_image_paths(dataset)) if bad else ([], [])
        skipped[name] = [ids[row] for row in bad]
        problems += [
            f"{paths[row] or f'{name}/{ids[row]}'} ({findings[name][row].problem})" for row in bad
        ]
        good = np.setdiff1d(np.arange(len(dataset)), bad)
        kept[name] = dataset.select(good) if bad else dataset
    total = sum(map(len, splits.values()))
    if problems and not skip:
        raise RunError(describe_unreadable(problems, total))
    if problems:
        logger.warning(
            "Dropped %d of %s that cannot be read: %s.",
            len(problems),
            count(total, "image"),
            abbreviate(problems),
        )
    return kept, skipped


def find_shared_images(
    splits: DatasetDict, findings: dict[str, list[Finding]]
) -> list[SharedImage]:
    """Return the pairs of images with the same digest that are in two splits."""
    shared: list[SharedImage] = []
    by_digest = {
        name: {finding.digest: row for row, finding in enumerate(rows) if not finding.problem}
        for name, rows in findings.items()
    }
    for first, second in combinations(splits, 2):
        rows, others = by_digest[first], by_digest[second]
        common = rows.keys() & others.keys()
        if common:
            ids, other_ids = image_ids(splits[first]), image_ids(splits[second])
            shared += sorted(
                (first, ids[rows[key]], second, other_ids[others[key]]) for key in common
            )
    return shared


def inspect_images(
    splits: DatasetDict,
    *,
    workers: int,
    skip_corrupt_images: bool,
    allow_duplicates: bool,
    known_shared: Collection[frozenset[str]] = (),
    cache_dir: Path | None = None,
    forms: Mapping[str, PixelForm] | None = None,
) -> Inspection:
    """Check that no image is in two splits and that every image can be read.

    Images are decoded for it if their pixels are kept, so that none is decoded twice, or if
    unreadable ones are to be skipped. Otherwise files are opened and compared by their bytes, and
    a damaged one is found when it is decoded.

    Args:
        known_shared: Pairs of ids that the published data set itself has in two splits.
        cache_dir: Where results and pixels are kept; None keeps none.
        forms: By split, the pixels that training will ask for.

    Raises:
        RunError: Unreadable images, unless ``skip_corrupt_images``.
        InputError: Shared images, unless known or ``allow_duplicates``.
    """
    keeps = forms is not None and cache_dir is not None and _has_room(splits, cache_dir, forms)
    if allow_duplicates and not keeps and not skip_corrupt_images:
        return Inspection(splits, {name: [] for name in splits}, [], "files not checked")
    check = ImageCheck(workers, cache_dir, keeps or skip_corrupt_images, forms if keeps else None)
    findings = {name: check.examine(dataset, name) for name, dataset in splits.items()}
    kept, skipped = _drop_unreadable(splits, findings, skip_corrupt_images)
    shared = find_shared_images(splits, findings)
    unknown = [pair for pair in shared if frozenset((pair[1], pair[3])) not in known_shared]
    listing = abbreviate([f"{a}/{i} = {b}/{j}" for a, i, b, j in unknown or shared])
    if unknown and not allow_duplicates:
        found = "1 image is" if len(unknown) == 1 else f"{len(unknown)} images are"
        raise InputError(
            f"{found} in two splits: {listing}. Remove one of each pair, or accept them with "
            "--allow_duplicates."
        )
    if shared:
        known = "" if unknown else ", as in the published data set"
        logger.warning("%s in two splits%s: %s.", count(len(shared), "image"), known, listing)
    checked = "all images decoded" if check.decode else "files compared, decoded while training"
    return Inspection(kept, skipped, shared, checked)


def _has_room(splits: DatasetDict, directory: Path, forms: Mapping[str, PixelForm]) -> bool:
    """Return whether the pixels of all splits are in the cache or fit on its disk."""
    entries = [describe_pixels(rows, forms[name]) for name, rows in splits.items() if len(rows)]
    needed = sum(entry.nbytes for entry in entries if find_array(directory, entry) is None)
    free = measure_free_bytes(directory)
    if needed and free < needed + SPARE_BYTES:
        logger.warning(
            "The pixels of all images need %.1f GB, and %s has %.1f GB free; images are decoded "
            "in every epoch instead. --cache_dir names another disk.",
            needed / 1e9,
            directory,
            free / 1e9,
        )
        return False
    return True
