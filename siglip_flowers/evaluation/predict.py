"""Run a classifier over a split, sharded over the processes of the launch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from siglip_flowers.config import DataArguments
from siglip_flowers.data.pixels.decoding import map_ahead
from siglip_flowers.data.pixels.tensors import open_pixels, read_form
from siglip_flowers.data.rows import get_labels, image_ids
from siglip_flowers.inference.engine import InferenceEngine
from siglip_flowers.metrics.classification import compute_metrics, per_class_rows
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.runtime.devices import count_cores

# Each holds a batch of its own.
MAX_THREADS = 8


@dataclass(frozen=True)
class PassOptions:
    """How a classifier runs over a split.

    Attributes:
        batch_size: Images per batch and process.
        data_arguments: Whether and where decoded pixels are cached.
        dtype: ``float32``, ``auto``, ``bfloat16`` or ``float16``; see
            :func:`~siglip_flowers.runtime.devices.resolve_dtype`.
    """

    batch_size: int
    data_arguments: DataArguments
    dtype: str = "float32"


@dataclass(frozen=True)
class SplitResult:
    """The predictions for one split of N images and C classes, and its metrics.

    Attributes:
        split: Name of the split.
        ids: The N image ids, in row order.
        labels: (N,) int64.
        features: (N, D) float32: pooled, as the head gets them, before any normalization.
        logits: (N, C) float32.
        probabilities: (N, C) float32, by the model's activation.
        metrics: Headline figures; see :func:`compute_metrics`.
        per_class: Precision, recall, F1 and support, one row per class.
    """

    split: str
    ids: list[str]
    labels: np.ndarray
    features: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    metrics: dict[str, float]
    per_class: list[dict[str, Any]]

    @property
    def predicted(self) -> np.ndarray:
        """The predicted classes: (N,) int64."""
        return self.logits.argmax(axis=1)


def evaluate_split(
    model: SiglipClassifier,
    processor: Any,
    rows: datasets.Dataset,
    split: str,
    options: PassOptions,
) -> SplitResult:
    """Classify every image of a split and compute its metrics.

    With several processes each classifies its share; every process gets the whole result, each
    image counted once.

    Args:
        model: The classifier.
        processor: Its image processor.
        rows: The split.
        split: Its name.
        options: How the pass runs.
    """
    engine = prepare_engine(model, processor, options.dtype)
    outputs = run_over(
        lambda batch: engine.classify_with_features(batch["pixel_values"]).cpu().numpy(),
        processor,
        rows,
        options,
        f"evaluating {split}",
    )
    width = outputs.shape[1] - len(model.class_names)
    features, logits = np.ascontiguousarray(outputs[:, :width]), outputs[:, width:].copy()
    labels = get_labels(rows)
    return SplitResult(
        split=split,
        ids=image_ids(rows),
        labels=labels,
        features=features,
        logits=logits,
        probabilities=model.to_probabilities(torch.from_numpy(logits)).numpy(),
        metrics=compute_metrics(logits, labels, model.config.activation),
        per_class=per_class_rows(labels, logits.argmax(axis=1), model.class_names),
    )


def prepare_engine(
    model: SiglipClassifier, processor: Any, dtype: str = "float32"
) -> InferenceEngine:
    """Return the classifier ready to run on the device of this process."""
    # Set before the first use: by default it takes the processes of a CPU launch for unrelated.
    state = PartialState(cpu=not torch.accelerator.is_available())
    return InferenceEngine(model, processor, device=state.device, dtype=dtype)


def run_over(
    function: Callable[[Mapping[str, torch.Tensor]], np.ndarray],
    processor: Any,
    rows: datasets.Dataset,
    options: PassOptions,
    description: str,
) -> np.ndarray:
    """Apply a function to every image, each process to its share of the rows.

    Args:
        function: Maps a batch of ``pixel_values``, ``labels`` and ``index``, the row numbers, to
            an array with one row per image.
        processor: The model's image processor.
        rows: The split.
        options: How the pass runs.
        description: The label of the progress bar.

    Returns:
        The arrays of all processes, concatenated in row order.
    """
    state = PartialState()
    shares = np.array_split(np.arange(len(rows)), state.num_processes)
    share = shares[state.process_index].tolist()
    pixels = open_pixels(rows, read_form(processor), options.data_arguments)
    # Beside the model.
    threads = min(MAX_THREADS, max(1, count_cores() // state.num_processes))
    step = options.batch_size
    starts = range(0, len(share), step)
    # Decoded by threads ahead of the model.
    batches = tqdm(
        map_ahead(
            lambda start: pixels.__getitems__(share[start : start + step]),
            starts,
            workers=threads,
            ahead=threads + 1,
        ),
        total=len(starts),
        desc=description,
        unit="batch",
        leave=False,
        disable=not state.is_main_process or None,
    )
    parts = [function(batch) for batch in batches]
    # Shares differ by a row at most, and a process may have none.
    return np.concatenate(gather_object(parts))
