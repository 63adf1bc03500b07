"""Test-time augmentation: several views of an image, whose probabilities are averaged."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch

from siglip_flowers.base.text import align_columns
from siglip_flowers.evaluation.predict import PassOptions, prepare_engine, run_over
from siglip_flowers.metrics.statistics import paired_bootstrap, wilson_interval
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.robustness.filters import crop_and_resize
from siglip_flowers.robustness.robustness import check_square_images

# Side of a crop, as a share of the image's.
CROP = 0.875
PLAIN = "plain"

# {"name", "accuracy", "low", "high", "gain", "gain_low", "gain_high", "seconds_per_image",
# "cost"}: shares in [0, 1], cost in plain passes.
AugmentedRow = dict[str, Any]
View = Callable[[torch.Tensor], torch.Tensor]


def list_views(kind: str, side: int) -> list[View]:
    """Return what ``flip`` and ``multicrop`` show besides the image itself.

    flip: the mirrored image. multicrop: that, and five crops (the corners and the middle).
    """
    views: list[View] = [lambda pixels: pixels.flip(-1)]
    if kind == "multicrop":
        inner = max(1, round(CROP * side))
        far, middle = side - inner, (side - inner) // 2
        for top, left in ((0, 0), (0, far), (far, 0), (far, far), (middle, middle)):
            views.append(partial(_crop, top=top, left=left, side=inner))
    return views


def _crop(pixels: torch.Tensor, top: int, left: int, side: int) -> torch.Tensor:
    return crop_and_resize(pixels.float(), top, left, side).round().clamp(0, 255).to(torch.uint8)


def measure_augmented(
    model: SiglipClassifier,
    processor: Any,
    rows: datasets.Dataset,
    kind: str,
    options: PassOptions,
) -> list[AugmentedRow]:
    """Classify each image plainly and by the mean probabilities of its views.

    The gain is accuracy with the views minus without, with a paired bootstrap interval over the
    images. Seconds are those of making the views and of the model, on the first process, not of
    decoding. For the other arguments see
    :func:`~siglip_flowers.evaluation.predict.evaluate_split`.

    Args:
        kind: ``flip`` or ``multicrop``.

    Returns:
        The plain row, then that of ``kind``.

    Raises:
        InputError: A NaFlex model.
    """
    check_square_images(processor, "--tta")
    engine = prepare_engine(model, processor, options.dtype, options.compile)
    seconds = {PLAIN: 0.0, kind: 0.0}
    counted = 0

    def classify(pixels: torch.Tensor) -> torch.Tensor:
        return model.to_probabilities(engine.classify(pixels).cpu())

    def judge(batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Return (B, 2) bool: whether the plain and the averaged answers are right."""
        nonlocal counted
        pixels = batch["pixel_values"]
        if not counted:
            # The first pass of all fills caches and compiles.
            classify(pixels)
        start = time.perf_counter()
        plain = classify(pixels)
        between = time.perf_counter()
        total = plain.clone()
        views = list_views(kind, pixels.shape[-1])
        for view in views:
            total += classify(view(pixels))
        # The plain answer is one of those that are averaged.
        seconds[PLAIN] += between - start
        seconds[kind] += time.perf_counter() - start
        counted += len(pixels)
        answers = torch.stack([plain.argmax(dim=1), total.argmax(dim=1)], dim=1)
        return (answers == batch["labels"][:, None]).numpy()

    correct = run_over(judge, processor, rows, options, "test-time augmentation")
    return [
        _measure_row(name, correct[:, column], correct[:, 0], seconds, counted)
        for column, name in enumerate((PLAIN, kind))
    ]


def _measure_row(
    name: str, correct: np.ndarray, plain: np.ndarray, seconds: Mapping[str, float], counted: int
) -> AugmentedRow:
    right, n = int(correct.sum()), len(correct)
    low, high = wilson_interval(right, n)
    gain = paired_bootstrap(correct[None], plain[None])
    return {
        "name": name,
        "accuracy": right / n,
        "low": low,
        "high": high,
        "gain": gain.difference,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "seconds_per_image": seconds[name] / max(1, counted),
        "cost": seconds[name] / seconds[PLAIN] if seconds[PLAIN] else 1.0,
    }


def format_augmented(rows: Sequence[AugmentedRow]) -> str:
    """Return a table: accuracy with its interval, gain in points, and cost."""
    lines = [
        ["mean probabilities", "accuracy", "95 %", "gain, points", "95 %", "ms an image", "cost"]
    ]
    for row in rows:
        ends = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        gain = [f"{100 * row['gain']:+.2f}"]
        gain.append(f"{100 * row['gain_low']:+.2f} to {100 * row['gain_high']:+.2f}")
        lines.append(
            [
                row["name"],
                f"{100 * row['accuracy']:.2f} %",
                ends,
                *(("", "") if row["name"] == PLAIN else gain),
                f"{1000 * row['seconds_per_image']:.2f}",
                f"{row['cost']:.1f}x",
            ]
        )
    return align_columns(lines)
