"""The nearest rows of features by cosine similarity."""

import numpy as np
import scipy.special
import torch

NEIGHBORS = 20
TEMPERATURE = 0.07
_BLOCK_ROWS = 256
# Far below the difference of two sums of votes, far above their rounding errors.
TIE = 1e-9


def normalize_rows(features: np.ndarray) -> np.ndarray:
    """Return the rows of (N, D) scaled to length 1, in the same dtype."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    scaled: np.ndarray = features / np.maximum(lengths, 1e-12)
    return scaled


def find_neighbors(
    features: np.ndarray, queries: np.ndarray, count: int, device: torch.device | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows that are most similar to each query.

    Args:
        features: The rows to search (N, D) float32.
        queries: (M, D) float32.
        count: K; all rows if there are fewer.
        device: Where to compute.

    Returns:
        The numbers of the K nearest rows, the nearest first, (M, K) int64, and their cosines (M, K)
        float32.
    """
    known = torch.from_numpy(normalize_rows(features)).to(device)
    asked = torch.from_numpy(normalize_rows(queries)).to(device)
    count = min(count, len(known))
    rows, cosines = [], []
    for start in range(0, len(asked), _BLOCK_ROWS):
        nearest = (asked[start : start + _BLOCK_ROWS] @ known.T).topk(count, dim=1)
        rows.append(nearest.indices.cpu())
        cosines.append(nearest.values.cpu())
    return torch.cat(rows).numpy(), torch.cat(cosines).numpy()


def vote_neighbors(
    features: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    num_classes: int,
    *,
    neighbors: int = NEIGHBORS,
    device: torch.device | None = None,
) -> np.ndarray:
    """Let the most similar training rows vote on the class of each query.

    The vote of a neighbor with cosine s weighs exp(s / ``TEMPERATURE``). Of equal sums of votes
    that of the nearest neighbor becomes higher.

    Args:
        features: Training rows (N, D) float32.
        labels: Their classes (N,) int64.
        queries: (M, D) float32.
        num_classes: C.
        neighbors: The number of rows that vote, or all there are.
        device: Where to compute.

    Returns:
        Shares of the vote, but for ties: (M, C) float64.

    Source: Wu et al. 2018, "Unsupervised feature learning via non-parametric instance
    discrimination", section 3.4, with the constants of Caron et al. 2021 (DINO).
    """
    rows, cosines = find_neighbors(features, queries, neighbors, device)
    # A softmax keeps the ratios of the votes and cannot overflow.
    votes = scipy.special.softmax(cosines.astype(np.float64) / TEMPERATURE, axis=1)
    ranks = 0.5 ** np.arange(1, votes.shape[1] + 1)
    total = np.zeros((len(votes), num_classes))
    np.add.at(total, (np.arange(len(votes))[:, None], labels[rows]), votes + TIE * ranks)
    return total
