"""One look at every image before training: unreadable files and images in two splits."""

import hashlib
import logging
import os
import struct
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from datasets import Dataset, DatasetDict, Image
from tqdm import tqdm

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.data.identity import get_image_paths, image_ids
from siglip_flowers.data.names import abbreviate
from siglip_flowers.data.pixels.array_cache import ArrayEntry, open_array
from siglip_flowers.data.pixels.decoding import DECODING_ERRORS, decode_rgb, open_value
from siglip_flowers.data.pixels.fingerprint import fingerprint_images

BATCH_ROWS = 64
DIGEST_BYTES = 16
SILENT_ROWS = 2000

logger = logging.getLogger(__name__)

# An image that stands in two splits: (split, id, split, id).
SharedImage = tuple[str, str, str, str]


@dataclass(frozen=True)
class Finding:
    """What decoding one row gave: a digest of its RGB pixels and size, or why it failed."""

    digest: bytes = b""
    problem: str = ""


def examine_image(value: dict[str, Any] | None) -> Finding:
    """Decode one undecoded ``datasets.Image`` value the way training does and hash its pixels."""
    if value is None:
        return Finding(problem="no image")
    try:
        with open_value(value) as opened:
            image = decode_rgb(opened)
            pixels = image.tobytes()
    except DECODING_ERRORS as error:
        return Finding(problem=_explain_failure(value, error))
    digest = hashlib.blake2b(struct.pack("<II", *image.size), digest_size=DIGEST_BYTES)
    digest.update(pixels)
    return Finding(digest=digest.digest())


def _explain_failure(value: dict[str, Any], error: BaseException) -> str:
    content, path = value["bytes"], value["path"]
    if content == b"" or (
        content is None and path and os.path.isfile(path) and os.path.getsize(path) == 0
    ):
        return "empty file"
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__


def count_workers(image_workers: int | None) -> int:
    """Return the number of decoding threads: the option, or one for each usable core."""
    if image_workers is not None:
        return image_workers
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _examine_batches(undecoded: Dataset, workers: int) -> Iterator[list[Finding]]:
    def examine_batch(start: int) -> list[Finding]:
        return [examine_image(value) for value in undecoded[start : start + BATCH_ROWS]["image"]]

    starts = range(0, len(undecoded), BATCH_ROWS)
    if workers == 1:
        yield from map(examine_batch, starts)
        return
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(examine_batch, starts)
        finally:
            pool.shutdown(cancel_futures=True)


def examine_splits(
    splits: DatasetDict, workers: int, cache_dir: Path | None = None
) -> dict[str, list[Finding]]:
    """Decode every row of every split, with a progress bar on a terminal if there are many.

    With a cache directory, splits in which nothing was wrong are not decoded a second time.
    """
    total = sum(len(dataset) for dataset in splits.values())
    findings: dict[str, list[Finding]] = {}
    silent = True if total < SILENT_ROWS else None  # None: only where there is no terminal
    with tqdm(total=total, desc="Checking images", unit="img", disable=silent) as bar:
        for name, dataset in splits.items():
            findings[name] = _examine_once(dataset, workers, cache_dir, bar)
    return findings


def _examine_once(
    dataset: Dataset, workers: int, cache_dir: Path | None, bar: tqdm
) -> list[Finding]:
    undecoded = dataset.select_columns("image").cast_column("image", Image(decode=False))
    examined: list[Finding] = []

    def examine(digests: np.ndarray | None) -> None:
        for batch in _examine_batches(undecoded, workers):
            examined.extend(batch)
            bar.update(len(batch))
        if digests is not None:
            if any(finding.problem for finding in examined):
                raise _ProblemsFound
            digests[:] = [np.frombuffer(finding.digest, dtype=np.uint8) for finding in examined]

    if cache_dir is None or not len(dataset):
        examine(None)
        return examined
    entry = ArrayEntry(
        kind="digests",
        key={"images": fingerprint_images(dataset), "pillow": PIL.__version__},
        shape=(len(dataset), DIGEST_BYTES),
        dtype="uint8",
    )
    try:
        digests = open_array(cache_dir, entry, examine, quiet=True)
    except _ProblemsFound:
        return examined
    if digests is None:
        examine(None)
        return examined
    if not examined:
        bar.update(len(dataset))
    return [Finding(digest=digest.tobytes()) for digest in digests]


class _ProblemsFound(Exception):
    """Some images cannot be read: nothing that should be remembered."""


def _describe_unreadable(splits: DatasetDict, findings: dict[str, list[Finding]]) -> list[str]:
    lines = []
    for name, rows in findings.items():
        bad = [row for row, finding in enumerate(rows) if finding.problem]
        if bad:
            ids, paths = image_ids(splits[name]), get_image_paths(splits[name])
            lines += [f"{paths[row] or f'{name}/{ids[row]}'} ({rows[row].problem})" for row in bad]
    return lines


def find_shared_images(
    splits: DatasetDict, findings: dict[str, list[Finding]]
) -> list[SharedImage]:
    """Return the pairs of images with the same size and pixels that stand in two splits."""
    shared: list[SharedImage] = []
    by_digest = {
        name: {finding.digest: row for row, finding in enumerate(rows) if finding.digest}
        for name, rows in findings.items()
    }
    for first, second in combinations(splits, 2):
        common = by_digest[first].keys() & by_digest[second].keys()
        if common:
            first_ids, second_ids = image_ids(splits[first]), image_ids(splits[second])
            shared += sorted(
                (
                    first,
                    first_ids[by_digest[first][key]],
                    second,
                    second_ids[by_digest[second][key]],
                )
                for key in common
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
    """Check that every image decodes and that no image stands in two splits.

    Args:
        known_shared: pairs of ids that the published data set itself has in two splits.
        cache_dir: where it is remembered that images were examined.

    Returns:
        The splits without unreadable rows, the ids dropped from each, and the images that
        stand in two splits (accepted ones).

    Raises:
        RunError: unreadable images, unless ``skip_corrupt_images``.
        InputError: shared images, unless known or ``allow_duplicates``.
    """
    findings = examine_splits(splits, workers, cache_dir)
    skipped: dict[str, list[str]] = {name: [] for name in splits}
    total = sum(map(len, findings.values()))
    unreadable = _describe_unreadable(splits, findings)
    if unreadable and not skip_corrupt_images:
        raise RunError(
            f"{len(unreadable)} of {total} images cannot be read: {abbreviate(unreadable)}; "
            "replace them, or drop them with --skip_corrupt_images."
        )
    if unreadable:
        logger.warning(
            "Dropped %d of %d images that cannot be read: %s.",
            len(unreadable),
            total,
            abbreviate(unreadable),
        )
        kept = DatasetDict()
        for name, rows in findings.items():
            good = np.flatnonzero([not finding.problem for finding in rows])
            if len(good) < len(rows):
                ids = image_ids(splits[name])
                skipped[name] = [ids[row] for row in range(len(rows)) if rows[row].problem]
                findings[name] = [rows[row] for row in good]
                kept[name] = splits[name].select(good)
            else:
                kept[name] = splits[name]
        splits = kept

    shared = find_shared_images(splits, findings)
    unknown = [pair for pair in shared if frozenset((pair[1], pair[3])) not in known_shared]
    listing = [f"{a}/{i} = {b}/{j}" for a, i, b, j in unknown or shared]
    if unknown and not allow_duplicates:
        raise InputError(
            f"{len(unknown)} images stand in two splits: {abbreviate(listing)}; remove one of "
            "each pair, or accept them with --allow_duplicates."
        )
    if shared:
        logger.warning(
            "%d images stand in two splits%s: %s.",
            len(shared),
            "" if unknown else ", as they do in the published data set",
            abbreviate(listing),
        )
    return splits, skipped, shared
