"""Run a classifier over a split, sharded over the processes of the launch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from siglip_flowers.data import image_ids
from siglip_flowers.data.pixels import PixelDataset, PixelNormalizer, collate_pixels
from siglip_flowers.metrics.functions import per_class_rows
from siglip_flowers.metrics.modules import compute_metrics
from siglip_flowers.model.classifier import SiglipClassifier


@dataclass(frozen=True)
class SplitResult:
    """What a classifier made of one split of N pictures and C classes.

    Attributes:
        split: Name of the split.
        ids: The N picture ids, in row order.
        labels: (N,) int64.
        logits: (N, C) float32.
        probabilities: (N, C) float32, by the model's activation.
        metrics: Headline figures; see :func:`~siglip_flowers.metrics.modules.compute_metrics`.
        per_class: One row of precision, recall, F1 and support a class.
    """

    split: str
    ids: list[str]
    labels: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    metrics: dict[str, float]
    per_class: list[dict[str, Any]]


def evaluate_split(
    model: SiglipClassifier,
    processor: Any,
    rows: datasets.Dataset,
    split: str,
    *,
    batch_size: int,
    num_workers: int = 0,
) -> SplitResult:
    """Classify every picture of a split in float32 and measure how well.

    With several processes each classifies its share; every process gets the whole result, each
    picture counted once.
    """
    logits = predict_logits(
        model, processor, rows, batch_size=batch_size, num_workers=num_workers, description=split
    )
    labels = np.asarray(rows["label"], dtype=np.int64)
    return SplitResult(
        split=split,
        ids=image_ids(rows),
        labels=labels,
        logits=logits,
        probabilities=model.to_probabilities(torch.from_numpy(logits)).numpy(),
        metrics=compute_metrics(logits, labels, model.config.activation),
        per_class=per_class_rows(labels, logits.argmax(axis=1), model.class_names),
    )


def predict_logits(
    model: SiglipClassifier,
    processor: Any,
    rows: datasets.Dataset,
    *,
    batch_size: int,
    num_workers: int = 0,
    description: str = "",
) -> np.ndarray:
    """Return the logits of every row, in row order: (N, C) float32."""
    return _run_over(
        model,
        lambda pixels: model(pixel_values=pixels).logits,
        processor,
        rows,
        batch_size=batch_size,
        num_workers=num_workers,
        description=f"evaluating {description}",
    )


def extract_features(
    model: SiglipClassifier,
    processor: Any,
    rows: datasets.Dataset,
    *,
    batch_size: int,
    num_workers: int = 0,
) -> np.ndarray:
    """Return the pooled, unnormalised features of every row, in row order: (N, D) float32."""
    return _run_over(
        model,
        model.extract_features,
        processor,
        rows,
        batch_size=batch_size,
        num_workers=num_workers,
        description="extracting features",
    )


@torch.inference_mode()
def _run_over(
    model: Any,
    function: Callable[[torch.Tensor], torch.Tensor],
    processor: Any,
    rows: datasets.Dataset,
    *,
    batch_size: int,
    num_workers: int,
    description: str,
) -> np.ndarray:
    """Apply a function of the model to every picture, each process to its share of the rows."""
    # Said before the first use: left to itself, it takes processes of a CPU launch for unrelated.
    state = PartialState(cpu=not torch.accelerator.is_available())
    shares = np.array_split(np.arange(len(rows)), state.num_processes)
    share = shares[state.process_index].tolist()
    pixels = PixelDataset(rows.select(share), processor.size["height"], processor.resample)
    loader = DataLoader(
        pixels, batch_size=batch_size, num_workers=num_workers, collate_fn=collate_pixels
    )
    normalizer = PixelNormalizer(processor)
    model.to(state.device).eval()
    parts: list[np.ndarray] = []
    for batch in tqdm(
        loader,
        desc=description,
        unit="batch",
        leave=False,
        disable=not state.is_main_process or None,
    ):
        values = function(normalizer(batch["pixel_values"].to(state.device)))
        parts.append(values.float().cpu().numpy())
    # Shares differ by a row at most, and a process may have none.
    return np.concatenate(gather_object(parts))
