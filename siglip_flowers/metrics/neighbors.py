"""The nearest training images by cosine."""

import numpy as np
import torch
from torch.nn import functional

NEIGHBORS = 20
TEMPERATURE = 0.07
BLOCK_ROWS = 256


def vote_neighbors(
    features: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    num_classes: int,
    *,
    neighbors: int = NEIGHBORS,
    temperature: float = TEMPERATURE,
    device: torch.device | None = None,
) -> np.ndarray:
    """Let the most similar training rows vote on the class of each query.

    Similarity is the cosine s; a neighbor's vote weighs exp(s / temperature).

    Args:
        features: Training rows (N, D) float32.
        labels: Their classes (N,) int64.
        queries: (M, D) float32.
        num_classes: C.
        neighbors: Number of rows that vote, or all there are.
        temperature: See above.
        device: Where to compute.

    Returns:
        Shares of the vote (M, C) float32.

    Source: Wu et al. 2018, "Unsupervised feature learning via non-parametric instance
    discrimination", section 3.4, with the constants of Caron et al. 2021 (DINO).
    """
    known = functional.normalize(torch.from_numpy(np.array(features)).to(device), dim=1)
    classes = torch.from_numpy(labels).to(device)
    parts = []
    for block in torch.from_numpy(np.array(queries)).split(BLOCK_ROWS):
        cosines = functional.normalize(block.to(device), dim=1) @ known.T
        nearest = cosines.topk(min(neighbors, len(known)), dim=1)
        # Softmax leaves the votes' ratios as they are, and cannot overflow.
        votes = (nearest.values / temperature).softmax(dim=1)
        shares = votes.new_zeros(len(block), num_classes)
        parts.append(shares.scatter_add_(1, classes[nearest.indices], votes).cpu())
    return torch.cat(parts).numpy()
