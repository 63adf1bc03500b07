"""The figures of many heads at once, from what each made of each image."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from siglip_flowers.metrics.functions import precision_recall_f1


def judge_logits(logits: Tensor, labels: Tensor, activation: str) -> Tensor:
    """Return of each image and head: predicted class, rank of the true one, nll and loss.

    ``logits`` (B, K, C) float32, ``labels`` (B,). Returns (B, K, 4) float32; the loss is that of
    the activation. Equal logits: the lower class id ranks first.
    """
    true = labels[:, None, None].expand(-1, logits.shape[1], 1)
    own = logits.gather(2, true)
    classes = torch.arange(logits.shape[2], device=logits.device)
    before = (logits > own) | ((logits == own) & (classes < true))
    nll = logits.logsumexp(dim=2) - own[..., 0]
    loss = nll
    if activation == "sigmoid":
        signs = 2.0 * (classes == true) - 1.0
        loss = nn.functional.softplus(-signs * logits).sum(dim=2)
    predicted = logits.argmax(dim=2).float()
    return torch.stack([predicted, before.sum(dim=2).float(), nll, loss], dim=2)


def summarize_head(judged: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, float]:
    """Return the figures of ``compute_metrics`` from what ``judge_logits`` found for one head.

    ``judged`` (N, 4) float32, ``labels`` (N,) int64. The losses of a head that diverged are not
    finite.
    """
    predicted, rank = judged[:, 0].astype(np.int64), judged[:, 1]
    nll, loss = judged[:, 2:].astype(np.float64).mean(axis=0)
    figures = {
        "loss": float(loss),
        "nll": float(nll),
        "accuracy": float(np.mean(predicted == labels)),
        "top5_accuracy": float(np.mean(rank < min(5, num_classes))),
    }
    for average in ("macro", "weighted"):
        scores = precision_recall_f1(labels, predicted, num_classes, average)
        names = (f"precision_{average}", f"recall_{average}", f"f1_{average}")
        figures.update(zip(names, scores, strict=True))
    return figures


def finite_or_none(value: float) -> float | None:
    """Return a number that JSON can hold, or None."""
    return value if math.isfinite(value) else None


def or_nan(value: float | None) -> float:
    """Return a number that tensors can hold."""
    return math.nan if value is None else value
