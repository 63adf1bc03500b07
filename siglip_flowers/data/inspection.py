"""Check all images before training: unreadable files, and images in two splits."""

import hashlib
import logging
import struct
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from datasets import Dataset, DatasetDict
from tqdm import tqdm

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.text import abbreviate, count
from siglip_flowers.data.pixels.array_cache import ArrayEntry, open_array
from siglip_flowers.data.pixels.decoding import DECODING_VERSION, ImageError, read_image
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
    """Result of decoding one row: a digest of its RGB pixels and size, or why it failed."""

    digest: bytes = bytes(DIGEST_BYTES)
    problem: str = ""


def examine_image(value: dict[str, Any] | None) -> Finding:
    """Decode one undecoded ``datasets.Image`` value as training does and hash its pixels."""
    if value is None:
        return Finding(problem="no image")
    try:
        with read_image(value) as image:
            digest = hashlib.blake2b(struct.pack("<II", *image.size), digest_size=DIGEST_BYTES)
            digest.update(image.tobytes())
    except ImageError as error:
        return Finding(problem=str(error))
    return Finding(digest=digest.digest())


def _examine_rows(dataset: Dataset, workers: int) -> Iterator[Finding]:
    undecoded = select_undecoded(dataset)

    def examine_batch(start: int) -> list[Finding]:
        return [examine_image(value) for value in undecoded[start : start + BATCH_ROWS]["image"]]

    with ThreadPoolExecutor(workers) as pool:
        try:
            for batch in pool.map(examine_batch, range(0, len(undecoded), BATCH_ROWS)):
                yield from batch
        finally:
            pool.shutdown(cancel_futures=True)


def examine_splits(
    splits: DatasetDict, workers: int, cache_dir: Path | None = None
) -> dict[str, list[Finding]]:
    """Decode every row of every split, with progress bars on a terminal if there are many.

    With a cache directory, the images that were readable are not decoded a second time.
    """
    return {name: _examine_split(dataset, workers, cache_dir) for name, dataset in splits.items()}


def _examine_split(dataset: Dataset, workers: int, cache_dir: Path | None) -> list[Finding]:
    def fill(digests: np.ndarray) -> None:
        silent = True if len(dataset) < SILENT_ROWS else None  # None: silent without a terminal
        examined = _examine_rows(dataset, workers)
        bar = tqdm(examined, "Checking images", len(dataset), unit="img", disable=silent)
        for row, finding in enumerate(bar):
            digests[row] = np.frombuffer(finding.digest, dtype=np.uint8)

    digests: np.ndarray | None = None
    if cache_dir is not None and len(dataset):
        entry = ArrayEntry(
            kind="digests",
            key={
                "images": fingerprint_images(dataset),
                "pillow": PIL.__version__,
                "steps": DECODING_VERSION,
            },
            shape=(len(dataset), DIGEST_BYTES),
            dtype="uint8",
        )
        digests = open_array(cache_dir, entry, fill, quiet=True)
    if digests is None:
        digests = np.zeros((len(dataset), DIGEST_BYTES), dtype=np.uint8)
        fill(digests)
    findings = [Finding(digest=digest.tobytes()) for digest in digests]
    # An unreadable image has no digest; decoding it once more tells what is wrong with it.
    failed = [row for row, finding in enumerate(findings) if finding == Finding()]
    for row, finding in zip(failed, _examine_rows(dataset.select(failed), workers), strict=True):
        findings[row] = finding
    return findings


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
    total = count(sum(map(len, splits.values())), "image")
    if problems and not skip:
        raise RunError(
            f"{len(problems)} of {total} cannot be read: {abbreviate(problems)}. Replace them, or "
            "drop them with --skip_corrupt_images."
        )
    if problems:
        logger.warning(
            "Dropped %d of %s that cannot be read: %s.", len(problems), total, abbreviate(problems)
        )
    return kept, skipped


def find_shared_images(
    splits: DatasetDict, findings: dict[str, list[Finding]]
) -> list[SharedImage]:
    """Return the pairs of images with the same size and pixels that are in two splits."""
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
) -> tuple[DatasetDict, dict[str, list[str]], list[SharedImage]]:
    """Check that every image decodes and that no image is in two splits.

    Args:
        known_shared: Pairs of ids that the published data set itself has in two splits.
        cache_dir: Where the results of earlier checks are kept.

    Returns:
        The splits without unreadable rows, the ids dropped from each, and the accepted images
        that are in two splits.

    Raises:
        RunError: Unreadable images, unless ``skip_corrupt_images``.
        InputError: Shared images, unless known or ``allow_duplicates``.
    """
    findings = examine_splits(splits, workers, cache_dir)
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
    return kept, skipped, shared
