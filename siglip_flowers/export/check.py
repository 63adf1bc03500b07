"""Compare an exported classifier with the original before anyone is told that it is done."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch

from siglip_flowers.base.errors import RunError
from siglip_flowers.data.pixels.tensors import PixelNormalizer, get_image_size, resize_image
from siglip_flowers.export.inputs import select_inputs
from siglip_flowers.export.program import wrap_logits

TOLERANCE = 1e-4
BATCH_SIZES = (1, 2, 5)

# From inputs, in order, to logits (B, C).
Runner = Callable[..., torch.Tensor]


@torch.no_grad()
def compare_logits(
    model: Any, runner: Runner, names: Sequence[str], inputs: Sequence[torch.Tensor]
) -> float:
    """Return the largest difference of logits, over batches of several sizes.

    Raises:
        RunError: It is more than ``TOLERANCE``, or the shapes differ.
    """
    original = wrap_logits(model, names)
    largest = 0.0
    for size in (*BATCH_SIZES, len(inputs[0])):
        batch = [tensor[:size] for tensor in inputs]
        expected, found = original(*batch), runner(*batch)
        same_shape = expected.shape == found.shape
        difference = float((expected - found).abs().max()) if same_shape else float("inf")
        # Written so that NaN fails.
        if not difference <= TOLERANCE:
            raise RunError(
                f"The exported model's logits differ from the original's by {difference:.3g} in a "
                f"batch of {size}, more than {TOLERANCE:g}; nothing was written. Upgrade torch and "
                "the packages of the extra 'export', and report it if that does not help."
            )
        largest = max(largest, difference)
    return largest


def read_inputs(
    rows: datasets.Dataset, processor: Any, names: Sequence[str], batch_size: int = 32
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the inputs of a split's images, batch by batch, in row order."""
    size, normalizer = get_image_size(processor), PixelNormalizer(processor)
    for start in range(0, len(rows), batch_size):
        images = rows[start : start + batch_size]["image"]
        pixels = torch.stack([resize_image(i, size, processor.resample) for i in images])
        yield select_inputs(normalizer.prepare(pixels), names)


def compare_accuracy(
    exact: Runner,
    rounded: Runner,
    batches: Iterator[tuple[torch.Tensor, ...]],
    labels: np.ndarray,
) -> dict[str, float]:
    """Return both accuracies, what the second loses, and how often the two agree."""
    pairs = [(exact(*batch).argmax(1), rounded(*batch).argmax(1)) for batch in batches]
    first, second = (torch.cat(parts).numpy() for parts in zip(*pairs, strict=True))
    return {
        "n": len(labels),
        "accuracy": float(np.mean(first == labels)),
        "accuracy_int8": float(np.mean(second == labels)),
        "accuracy_loss": float(np.mean(first == labels) - np.mean(second == labels)),
        "agreement": float(np.mean(first == second)),
    }
