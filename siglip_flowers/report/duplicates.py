"""Images that look alike, by a perceptual hash and the model's features, or by these alone."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from siglip_flowers.metrics.functions import IntArray
from siglip_flowers.metrics.neighbors import normalize_rows
from siglip_flowers.report.contents import NearDuplicate
from siglip_flowers.report.images import SplitImages, encode_thumbnail

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
# Shown of each of the two kinds.
SHOWN = 24
BY_HASH, BY_FEATURES = "hash", "features"
_BLOCK_ROWS = 512


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


@dataclass(frozen=True)
class _Pair:
    row: int
    split: str
    other: int
    distance: int
    cosine: float
    found_by: str


def find_duplicates(name: str, splits: Mapping[str, SplitRows]) -> list[NearDuplicate]:
    """Look for the images of the split ``name`` in all splits.

    Pairs that the hash finds come first, the closest ahead; then those that only features find,
    among the rows whose features are known. Nothing is found without the package imagehash.
    """
    if importlib.util.find_spec("imagehash") is None:
        return []
    hashes = {split: hash_images(rows.images) for split, rows in splits.items()}
    found: list[_Pair] = []
    for split, other in splits.items():
        own = split == name
        close = find_close(hashes[name], hashes[split], within=own)[:CANDIDATES]
        by_hash = _compare_features(splits[name], split, other, close)
        found += by_hash
        seen = {(pair.row, pair.other) for pair in by_hash}
        for row, number, cosine in find_alike(splits[name].features, other.features, within=own):
            place = int(other.known[number])
            if (row, place) not in seen:
                distance = int(np.bitwise_count(hashes[name][row] ^ hashes[split][place]))
                found.append(_Pair(row, split, place, distance, cosine, BY_FEATURES))
    by_hash = [pair for pair in found if pair.found_by == BY_HASH]
    by_features = [pair for pair in found if pair.found_by == BY_FEATURES]
    by_hash.sort(key=lambda pair: (pair.distance, -pair.cosine, pair.row))
    by_features.sort(key=lambda pair: (-pair.cosine, pair.row))
    return [
        NearDuplicate(
            row=pair.row,
            other_split=pair.split,
            other_id=splits[pair.split].ids[pair.other],
            other_label=int(splits[pair.split].labels[pair.other]),
            hash_distance=pair.distance,
            cosine=pair.cosine,
            found_by=pair.found_by,
            other_image=encode_thumbnail(splits[pair.split].images.read([pair.other])[0]),
        )
        for pair in (*by_hash[:SHOWN], *by_features[:SHOWN])
    ]


def _compare_features(
    own: SplitRows, split: str, other: SplitRows, close: Sequence[tuple[int, int, int]]
) -> list[_Pair]:
    """Return the pairs with similar hashes whose features are similar as well."""
    if not close:
        return []
    rows = sorted({place for _, place, _ in close})
    features = dict(zip(rows, normalize_rows(other.encode(rows)), strict=True))
    mine = normalize_rows(own.features)
    pairs = [
        _Pair(row, split, place, distance, float(mine[row] @ features[place]), BY_HASH)
        for row, place, distance in close
    ]
    return [pair for pair in pairs if pair.cosine >= SMALLEST_COSINE]


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
    """Return (row, other row, differing bits) of pairs that differ in few bits, closest first.

    hashes: (N,) uint64; others: (M,) uint64; with ``within`` they are the same rows, each pair is
    returned once and none of a row with itself.
    """
    found: list[tuple[int, int, int]] = []
    for start in range(0, len(hashes), _BLOCK_ROWS):
        block = hashes[start : start + _BLOCK_ROWS]
        distances = np.bitwise_count(block[:, None] ^ others[None, :])
        for row, other in np.argwhere(distances <= largest_distance).tolist():
            if not within or start + row < other:
                found.append((start + row, other, int(distances[row, other])))
    return sorted(found, key=lambda pair: (pair[2], pair[0], pair[1]))


def find_alike(
    features: np.ndarray,
    others: np.ndarray,
    smallest_cosine: float = ALIKE_COSINE,
    *,
    within: bool = False,
    most: int = CANDIDATES,
) -> list[tuple[int, int, float]]:
    """Return (row, other row, cosine) of pairs with nearly the same features, most similar first.

    features: (N, D); others: (M, D); ``within`` as in :func:`find_close`. Of more than ``most``
    pairs the most similar are returned.
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
