"""Pictures that look alike: perceptual hashes find candidates, the model's features judge them."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image
from scipy.fft import dct

HASH_BITS = 64
_SIDE, _LOW = 32, 8
# Half of the bits of unrelated pictures differ, give or take 4.
LARGEST_DISTANCE = 8
_BLOCK_ROWS = 512


def hash_pictures(pictures: Iterable[Image.Image]) -> np.ndarray:
    """Return the perceptual hash of each picture: (N,) uint64.

    A bit tells whether one of the 64 lowest frequencies of the grey picture, scaled to 32 x 32,
    lies above their median: scaling, compression and small changes of colour turn few of them.

    Source: Zauner 2010, "Implementation and benchmarking of perceptual image hash functions".
    """
    size = (_SIDE, _SIDE)
    grey = [
        np.asarray(picture.convert("L").resize(size, Image.Resampling.LANCZOS))
        for picture in pictures
    ]
    if not grey:
        return np.zeros(0, dtype=np.uint64)
    values = np.stack(grey).astype(np.float64)
    low = dct(dct(values, axis=1), axis=2)[:, :_LOW, :_LOW].reshape(len(values), -1)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


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
