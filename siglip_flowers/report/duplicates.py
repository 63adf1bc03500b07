"""Images that look alike, to a perceptual hash and the model's features, or to these alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
from PIL import Image
from scipy.fft import dct

from siglip_flowers.data import image_ids
from siglip_flowers.evaluation.predict import SplitResult
from siglip_flowers.metrics.functions import IntArray
from siglip_flowers.metrics.neighbors import normalize_rows
from siglip_flowers.report.contents import NearDuplicate
from siglip_flowers.report.images import SplitImages, encode_thumbnail

HASH_BITS = 64
_SIDE, _LOW = 32, 8
# Half of the bits of unrelated images differ, give or take 4.
LARGEST_DISTANCE = 8
# Of the hash, the closest first: each is encoded, where it lies in another split.
CANDIDATES = 500
# Candidates of the hash whose features differ more than this only look alike to it.
SMALLEST_COSINE = 0.9
# From here on features alone are believed: a mirrored image turns half of the hash. The small
# checkpoint fine-tuned on Flowers102 at 64 pixels gives six in ten mirrored images such features,
# crops of less than nine tenths of the side hardly any, and no two unrelated ones of 510 test
# images.
ALIKE_COSINE = 0.98
# Shown of each of the two kinds.
MOST = 24
BY_HASH, BY_FEATURES = "hash", "features"
_BLOCK_ROWS = 512


@dataclass(frozen=True)
class EncodedRows:
    """Rows (M,) of a split whose features (M, D) are known."""

    rows: IntArray
    features: np.ndarray


@dataclass(frozen=True)
class OtherSplit:
    """A split that the evaluated one is compared with.

    ``features`` encodes some of its rows; ``encoded`` are those that have been encoded before.
    """

    rows: datasets.Dataset
    images: SplitImages
    features: Callable[[Sequence[int]], np.ndarray]
    encoded: EncodedRows | None = None


@dataclass(frozen=True)
class _Pair:
    """A row of the evaluated split and one of a split (perhaps the same)."""

    row: int
    split: str
    other: int
    distance: int
    cosine: float


def find_duplicates(
    result: SplitResult, images: SplitImages, others: Mapping[str, OtherSplit]
) -> list[NearDuplicate]:
    """Look for images of a split in itself and in other splits.

    Those that the hash finds come first, the closest ahead; then those that only features find,
    within the split and among the rows of others that have been encoded.
    """
    hashes = hash_images(images.read_blocks())
    by_hash: list[_Pair] = []
    by_features: list[_Pair] = []

    def judge(
        split: str, other_hashes: np.ndarray, close: list[tuple[int, int, int]],
        encode: Callable[[Sequence[int]], np.ndarray], encoded: EncodedRows | None,
    ) -> None:  # fmt: skip
        wanted = sorted({other for _, other, _ in close})
        place = {row: number for number, row in enumerate(wanted)}
        known = encode(wanted) if wanted else result.features[:0]
        cosines = compare_features(
            result.features, known, [(row, place[other]) for row, other, _ in close]
        )
        kept = [
            _Pair(row, split, other, distance, float(cosine))
            for (row, other, distance), cosine in zip(close, cosines, strict=True)
            if cosine >= SMALLEST_COSINE
        ]
        by_hash.extend(kept)
        if encoded is None:
            return
        seen = {(pair.row, pair.other) for pair in kept}
        for row, number, cosine in find_alike(
            result.features, encoded.features, within=split == result.split
        ):
            other = int(encoded.rows[number])
            if (row, other) not in seen:
                distance = int(np.bitwise_count(hashes[row] ^ other_hashes[other]))
                by_features.append(_Pair(row, split, other, distance, cosine))

    within = [pair for pair in find_close(hashes, hashes) if pair[0] < pair[1]]
    every = EncodedRows(np.arange(len(hashes)), result.features)
    judge(result.split, hashes, within[:CANDIDATES], lambda rows: result.features[rows], every)
    for name, split in others.items():
        other_hashes = hash_images(split.images.read_blocks())
        close = find_close(hashes, other_hashes)[:CANDIDATES]
        judge(name, other_hashes, close, split.features, split.encoded)
    by_hash.sort(key=lambda pair: (pair.distance, -pair.cosine, pair.row))
    by_features.sort(key=lambda pair: (-pair.cosine, pair.row))
    found = [(pair, BY_HASH) for pair in by_hash[:MOST]]
    found += [(pair, BY_FEATURES) for pair in by_features[:MOST]]
    names = {name: image_ids(split.rows) for name, split in others.items()}
    labels = {name: split.rows["label"] for name, split in others.items()}
    read = {result.split: images, **{name: split.images for name, split in others.items()}}
    names[result.split], labels[result.split] = result.ids, result.labels
    return [
        NearDuplicate(
            row=pair.row,
            other_split=pair.split,
            other_id=names[pair.split][pair.other],
            other_label=int(labels[pair.split][pair.other]),
            hash_distance=pair.distance,
            cosine=pair.cosine,
            found_by=found_by,
            other_image=encode_thumbnail(read[pair.split].read([pair.other])[0]),
        )
        for pair, found_by in found
    ]


def hash_images(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Return the perceptual hash of each image: (N,) uint64.

    A bit tells whether one of the 64 lowest frequencies of the gray image, scaled to 32 x 32,
    lies above their median: scaling, compression and small changes of color turn few of them.

    blocks: (B, H, W, 3) uint8 each, N images in all.

    Source: Zauner 2010, "Implementation and benchmarking of perceptual image hash functions".
    """
    gray = [_shrink_to_gray(block) for block in blocks if len(block)]
    if not gray:
        return np.zeros(0, dtype=np.uint64)
    values = np.concatenate(gray).astype(np.float64)
    low = dct(dct(values, axis=1)[:, :_LOW], axis=2)[:, :, :_LOW].reshape(len(values), -1)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


def _shrink_to_gray(block: np.ndarray) -> np.ndarray:
    """Return (B, 32, 32) uint8 as Pillow turns each image of (B, H, W, 3) gray and small.

    All images of the block at once, one above the other and then side by side: scaling one side
    at a time, as Pillow does it within an image too, mixes none with its neighbor.
    """
    count, height, width, _ = block.shape
    column = Image.fromarray(block.reshape(count * height, width, 3)).convert("L")
    narrow = np.asarray(_resize(column, _SIDE, count * height)).reshape(count, height, _SIDE)
    row = Image.fromarray(narrow.transpose(1, 0, 2).reshape(height, count * _SIDE))
    small = np.asarray(_resize(row, count * _SIDE, _SIDE)).reshape(_SIDE, count, _SIDE)
    return small.transpose(1, 0, 2)


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.LANCZOS)


def find_close(
    hashes: np.ndarray, others: np.ndarray, largest_distance: int = LARGEST_DISTANCE
) -> list[tuple[int, int, int]]:
    """Return (row, other row, differing bits) of all pairs that differ in few bits, closest first.

    hashes: (N,) uint64; others: (M,) uint64.
    """
    found: list[tuple[int, int, int]] = []
    for start in range(0, len(hashes), _BLOCK_ROWS):
        block = hashes[start : start + _BLOCK_ROWS]
        distances = np.bitwise_count(block[:, None] ^ others[None, :])
        for row, other in np.argwhere(distances <= largest_distance):
            found.append((start + int(row), int(other), int(distances[row, other])))
    return sorted(found, key=lambda pair: (pair[2], pair[0], pair[1]))


def find_alike(
    features: np.ndarray,
    others: np.ndarray,
    smallest_cosine: float = ALIKE_COSINE,
    *,
    within: bool = False,
    most: int = CANDIDATES,
) -> list[tuple[int, int, float]]:
    """Return (row, other row, cosine) of pairs with nearly the same features, the most alike first.

    features: (N, D); others: (M, D); with ``within`` they are the same rows, each pair is given
    once and none of a row with itself. Of more than ``most`` pairs, the most alike are returned.
    """
    left, right = normalize_rows(features), normalize_rows(others)
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(left), _BLOCK_ROWS):
        cosines = left[start : start + _BLOCK_ROWS] @ right.T
        if within:
            cosines[np.tril_indices(len(cosines), start, len(right))] = -1
        rows, columns = np.nonzero(cosines >= smallest_cosine)
        values = cosines[rows, columns]
        best = np.argsort(-values, kind="stable")[:most]
        found += [(start + int(rows[i]), int(columns[i]), float(values[i])) for i in best]
        found = sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))[:most]
    return found


def compare_features(
    features: np.ndarray, others: np.ndarray, pairs: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Return the cosine of each pair of rows of (N, D) and (M, D): (P,) float64."""
    if not pairs:
        return np.zeros(0)
    one, other = (np.asarray(rows) for rows in zip(*pairs, strict=True))
    left, right = features[one].astype(np.float64), others[other].astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
