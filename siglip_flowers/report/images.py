"""The images of a split: to show, and those that look alike."""

import importlib.util
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from PIL import Image

from siglip_flowers.config import DataArguments
from siglip_flowers.data.pixels.patches import PatchBudget
from siglip_flowers.data.pixels.tensors import (
    collate_pixels,
    get_image_size,
    open_pixels,
)
from siglip_flowers.data.rows import read_images
from siglip_flowers.metrics.classification import IntArray
from siglip_flowers.metrics.neighbors import find_neighbors, normalize_rows
from siglip_flowers.report.contents import NearDuplicate

THUMBNAIL = 72
_QUALITY = 80
_BLOCK_ROWS = 256
# Of the 64 bits of two unrelated images half differ, give or take 4.
LARGEST_DISTANCE = 8
# Pairs that the hash finds; each image of another split has to be encoded.
CANDIDATES = 500
# Pairs with similar hashes and features that differ more are not alike.
SMALLEST_COSINE = 0.9
# From here on features alone suffice: a mirrored image changes half of the hash. The small
# checkpoint fine-tuned on Flowers102 at 64 pixels gives six in ten mirrored images such features,
# crops of less than nine tenths of the side hardly any, and no two unrelated ones of 510 test
# images.
ALIKE_COSINE = 0.98
# Looked at for each image.
_NEAREST = 5
# Shown of each of the two kinds.
SHOWN = 24
BY_HASH, BY_FEATURES = "hash", "features"


class SplitImages:
    """Reads images of a split as the model gets them: squares, already decoded if cached.

    A NaFlex model's images, which are cached as patches, are decoded again.

    Args:
        rows: The split.
        processor: The model's image processor.
        data_arguments: Where the pixel cache is.
    """

    def __init__(
        self, rows: datasets.Dataset, processor: Any, data_arguments: DataArguments
    ) -> None:
        self.rows = rows
        size = get_image_size(processor)
        self._pixels = (
            None
            if isinstance(size, PatchBudget)
            else open_pixels(rows, size, processor.resample, data_arguments)
        )

    def read(self, rows: Sequence[int]) -> list[Image.Image]:
        """Return images by row number."""
        if not rows:
            return []
        if self._pixels is None:
            return read_images(self.rows, rows)
        batch = collate_pixels(self._pixels.__getitems__(list(rows)))["pixel_values"]
        return [Image.fromarray(image) for image in batch.permute(0, 2, 3, 1).contiguous().numpy()]

    def __iter__(self) -> Iterator[Image.Image]:
        for start in range(0, len(self.rows), _BLOCK_ROWS):
            yield from self.read(range(start, min(len(self.rows), start + _BLOCK_ROWS)))


def encode_thumbnail(image: Image.Image) -> bytes:
    """Return an image as JPEG that fits into a square and is not enlarged."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


@dataclass(frozen=True)
class SplitRows:
    """One split to look for near-duplicates in.

    Attributes:
        images: Its N images.
        ids: Their ids.
        labels: Their classes (N,).
        encode: Returns the features of some rows.
        known: Rows (M,) whose features are known: all of the evaluated split, a sample of others.
        features: Their features (M, D).
    """

    images: SplitImages
    ids: Sequence[str]
    labels: IntArray
    encode: Callable[[Sequence[int]], np.ndarray]
    known: IntArray
    features: np.ndarray


def find_duplicates(name: str, splits: Mapping[str, SplitRows]) -> list[NearDuplicate]:
    """Look for the images of the split ``name`` in all splits.

    Pairs that the hash finds come first, the closest ahead; then those that only features find,
    among the rows whose features are known. Nothing is found without the package imagehash.
    """
    if importlib.util.find_spec("imagehash") is None:
        return []
    hashes = {split: hash_images(rows.images) for split, rows in splits.items()}
    own, found = splits[name], []
    for split, other in splits.items():
        within = split == name
        close = find_close(hashes[name], hashes[split], within=within)[:CANDIDATES]
        by_hash = _compare_features(own, other, [(row, place) for _, row, place in close])
        alike = {**find_alike(own, other, within=within), **by_hash}
        for (row, place), cosine in alike.items():
            distance = int(np.bitwise_count(hashes[name][row] ^ hashes[split][place]))
            kind = BY_HASH if (row, place) in by_hash else BY_FEATURES
            found.append((kind, distance, cosine, row, split, place))
    found.sort(key=lambda pair: (pair[1] if pair[0] == BY_HASH else 0, -pair[2], pair[3]))
    hashed = [pair for pair in found if pair[0] == BY_HASH][:SHOWN]
    others = [pair for pair in found if pair[0] == BY_FEATURES][:SHOWN]
    return [
        NearDuplicate(
            row=row,
            other_split=split,
            other_id=splits[split].ids[place],
            other_label=int(splits[split].labels[place]),
            hash_distance=distance,
            cosine=cosine,
            found_by=kind,
            other_image=encode_thumbnail(splits[split].images.read([place])[0]),
        )
        for kind, distance, cosine, row, split, place in (*hashed, *others)
    ]


def _compare_features(
    own: SplitRows, other: SplitRows, close: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """Return the pairs with similar hashes whose features are similar as well, and the cosines."""
    if not close:
        return {}
    places = sorted({place for _, place in close})
    features = dict(zip(places, normalize_rows(other.encode(places)), strict=True))
    mine = normalize_rows(own.features)
    cosines = {(row, place): float(mine[row] @ features[place]) for row, place in close}
    return {pair: cosine for pair, cosine in cosines.items() if cosine >= SMALLEST_COSINE}


def hash_images(images: SplitImages) -> np.ndarray:
    """Return the 64-bit perceptual hash of each image: (N,) uint64.

    Source: Zauner 2010, "Implementation and benchmarking of perceptual image hash functions".
    """
    # Of the extra "report".
    import imagehash

    return np.array([int(str(imagehash.phash(image)), 16) for image in images], dtype=np.uint64)


def find_close(
    hashes: np.ndarray,
    others: np.ndarray,
    largest_distance: int = LARGEST_DISTANCE,
    *,
    within: bool = False,
) -> list[tuple[int, int, int]]:
    """Return (differing bits, row, other row) of pairs that differ in few bits, closest first.

    hashes: (N,) uint64; others: (M,) uint64; with ``within`` they are the same rows, each pair is
    returned once and none of a row with itself.
    """
    found: list[tuple[int, int, int]] = []
    for start in range(0, len(hashes), _BLOCK_ROWS):
        block = hashes[start : start + _BLOCK_ROWS]
        distances = np.bitwise_count(block[:, None] ^ others[None, :])
        for row, other in np.argwhere(distances <= largest_distance).tolist():
            if not within or start + row < other:
                found.append((int(distances[row, other]), start + row, other))
    return sorted(found)


def find_alike(
    own: SplitRows, other: SplitRows, *, within: bool = False
) -> dict[tuple[int, int], float]:
    """Return pairs (row, other row) with nearly the same features, and their cosines.

    Only the nearest rows of each image are looked at; ``within`` as in :func:`find_close`.
    """
    queries = None if within else own.features
    nearest = find_neighbors(other.features, queries, _NEAREST)
    found = {}
    for row, rank in np.argwhere(nearest.cosines >= ALIKE_COSINE).tolist():
        place = int(other.known[nearest.rows[row, rank]])
        pair = (min(row, place), max(row, place)) if within else (row, place)
        found[pair] = float(nearest.cosines[row, rank])
    return found
