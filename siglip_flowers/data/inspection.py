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
SILENT_ROWS = 2000

logger = logging.getLogger(__name__)

# An image in two splits: (split, id, split, id).
SharedImage = tuple[str, str, str, str]


@dataclass(frozen=True)
class Finding:
    """Result of decoding one row: a digest of its RGB pixels and size, or why it failed."""

    digest: bytes = b""
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


def _examine_batches(dataset: Dataset, workers: int) -> Iterator[list[Finding]]:
    undecoded = select_undecoded(dataset)

    def examine_batch(start: int) -> list[Finding]:
        return [examine_image(value) for value in undecoded[start : start + BATCH_ROWS]["image"]]

    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(examine_batch, range(0, len(undecoded), BATCH_ROWS))
        finally:
            pool.shutdown(cancel_futures=True)


def examine_splits(
    splits: DatasetDict, workers: int, cache_dir: Path | None = None
) -> dict[str, list[Finding]]:
    """Decode every row of every split, with a progress bar on a terminal if there are many.

    With a cache directory, splits without problems are not decoded a second time.
    """
    total = sum(map(len, splits.values()))
    silent = True if total < SILENT_ROWS else None  # None: silent without a terminal
    with tqdm(total=total, desc="Checking images", unit="img", disable=silent) as bar:
        return {
            name: _examine_split(dataset, workers, cache_dir, bar)
            for name, dataset in splits.items()
        }


class _ProblemsFound(Exception):
    """Some images cannot be read: their split is not remembered as checked."""


def _examine_split(
    dataset: Dataset, workers: int, cache_dir: Path | None, bar: tqdm
) -> list[Finding]:
    examined: list[Finding] = []

    def examine() -> None:
        for batch in _examine_batches(dataset, workers):
            examined.extend(batch)
            bar.update(len(batch))

    def fill(digests: np.ndarray) -> None:
        examine()
        if any(finding.problem for finding in examined):
            raise _ProblemsFound
        digests[:] = [np.frombuffer(finding.digest, dtype=np.uint8) for finding in examined]

    if cache_dir is None or not len(dataset):
        examine()
        return examined
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
    try:
        digests = open_array(cache_dir, entry, fill, quiet=True)
    except _ProblemsFound:
        return examined
    if digests is None:
        examine()
    if examined or digests is None:
        return examined
    bar.update(len(dataset))
    return [Finding(digest=digest.tobytes()) for digest in digests]


def _describe_unreadable(splits: DatasetDict, findings: dict[str, list[Finding]]) -> list[str]:
    lines = []
    for name, rows in findings.items():
        bad = [row for row, finding in enumerate(rows) if finding.problem]
        if bad:
            ids, paths = image_ids(splits[name]), get_image_paths(splits[name])
            lines += [f"{paths[row] or f'{name}/{ids[row]}'} ({rows[row].problem})" for row in bad]
    return lines


def _drop_unreadable(
    splits: DatasetDict, findings: dict[str, list[Finding]]
) -> tuple[DatasetDict, dict[str, list[Finding]], dict[str, list[str]]]:
    """Return splits and findings without unreadable rows, and the dropped ids of each split."""
    kept = DatasetDict()
    skipped: dict[str, list[str]] = {}
    for name, rows in findings.items():
        good = [row for row, finding in enumerate(rows) if not finding.problem]
        complete = len(good) == len(rows)
        ids = [] if complete else image_ids(splits[name])
        skipped[name] = [ids[row] for row, finding in enumerate(rows) if finding.problem]
        kept[name] = splits[name] if complete else splits[name].select(good)
    readable = {name: [row for row in rows if not row.problem] for name, rows in findings.items()}
    return kept, readable, skipped


def find_shared_images(
    splits: DatasetDict, findings: dict[str, list[Finding]]
) -> list[SharedImage]:
    """Return the pairs of images with the same size and pixels that are in two splits."""
    shared: list[SharedImage] = []
    by_digest = {
        name: {finding.digest: row for row, finding in enumerate(rows) if finding.digest}
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
        known_shared: pairs of ids that the published data set itself has in two splits.
        cache_dir: where the results of earlier checks are kept.

    Returns:
        The splits without unreadable rows, the ids dropped from each, and the accepted images
        that are in two splits.

    Raises:
        RunError: unreadable images, unless ``skip_corrupt_images``.
        InputError: shared images, unless known or ``allow_duplicates``.
    """
    findings = examine_splits(splits, workers, cache_dir)
    total = count(sum(map(len, findings.values())), "image")
    unreadable = _describe_unreadable(splits, findings)
    if unreadable and not skip_corrupt_images:
        raise RunError(
            f"{len(unreadable)} of {total} cannot be read: {abbreviate(unreadable)}. Replace them, "
            "or drop them with --skip_corrupt_images."
        )
    if unreadable:
        logger.warning(
            "Dropped %d of %s that cannot be read: %s.",
            len(unreadable),
            total,
            abbreviate(unreadable),
        )
    splits, findings, skipped = _drop_unreadable(splits, findings)
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
        logger.warning(
            "%s in two splits%s: %s.",
            count(len(shared), "image"),
            "" if unknown else ", as in the published data set",
            listing,
        )
    return splits, skipped, shared
