"""Encode every image once: the pooled features of a frozen encoder, cached on disk."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from accelerate.utils import gather_object
from torch import nn
from torch import uint8 as torch_uint8

from siglip_flowers.config import DataArguments
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.data.pixels.array_cache import ArrayEntry, find_array, locate_cache, open_array
from siglip_flowers.data.pixels.tensors import PixelNormalizer, describe_pixels, read_form
from siglip_flowers.data.rows import get_labels
from siglip_flowers.data.splits import ClassificationData
from siglip_flowers.evaluation.predict import PassOptions, prepare_engine, run_over
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.heads import choose_fit, fit_and_validate, set_head

# Fields of a vision tower's configuration that change what its weights compute.
TOWER_FIELDS = ("hidden_act", "layer_norm_eps", "num_attention_heads", "patch_size", "image_size")


def list_poolings(model: SiglipClassifier) -> tuple[str, ...]:
    """Return the poolings that one pass of the model's tower gives."""
    return ("map", "mean") if model.vision_model.use_head else ("mean",)


def digest_weights(module: nn.Module) -> str:
    """Return a digest of a module's parameters and buffers: names, shapes, dtypes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        values = tensor.detach().cpu().contiguous().view(-1).view(torch_uint8)
        digest.update(memoryview(values.numpy()))
    return digest.hexdigest()


def load_features(
    model: SiglipClassifier,
    processor: Any,
    rows: datasets.Dataset,
    options: PassOptions,
    description: str = "encoding images",
) -> dict[str, np.ndarray]:
    """Return the pooled, unnormalized features of every row by pooling: (N, D) float32 each.

    They come from the cache if it has them; otherwise the processes of the launch share the
    encoding, and the features are kept for the next time if the disk has room.

    Args:
        model: The encoder; only its vision tower is used.
        processor: Its image processor.
        rows: A data set with the columns ``image`` and ``label``.
        options: How the pass runs; its data options name the cache.
        description: Of the progress bar.
    """
    poolings = list_poolings(model)
    engine = prepare_engine(model, processor, options.dtype)
    config = model.config.vision_config
    pixels, normalizer = describe_pixels(rows, read_form(processor)), PixelNormalizer(processor)
    key = {
        "weights": digest_weights(model.vision_model),
        "tower": {name: getattr(config, name, None) for name in TOWER_FIELDS},
        "attention": engine.model.config.vision_config._attn_implementation,
        "dtype": str(engine.dtype), "device": engine.device.type, **pixels.key,
        "size": list(pixels.shape[1:]), "mean": list(normalizer.mean),
        "std": list(normalizer.std), "rescale_factor": normalizer.rescale_factor,
    }  # fmt: skip
    shape = (len(rows), len(poolings), config.hidden_size)
    entry = ArrayEntry(kind="features", key=key, shape=shape, dtype="float32")
    directory = locate_cache(options.data_arguments)
    array: np.ndarray | None = find_array(directory, entry)
    # All processes encode or none does: they share the images.
    if not all(gather_object([array is not None])):
        encoded = run_over(
            lambda batch: engine.extract_poolings(batch["pixel_values"]).cpu().numpy(),
            processor,
            rows,
            options,
            description,
        )
        stored = open_array(directory, entry, lambda array: np.copyto(array, encoded))
        array = encoded if stored is None else stored
    assert array is not None
    return {
        pooling: np.ascontiguousarray(array[:, number]) for number, pooling in enumerate(poolings)
    }


@dataclass(frozen=True)
class FittedHead:
    """A model whose head was fitted on features, and what the metrics file says about the fit."""

    model: SiglipClassifier
    facts: dict[str, Any]


# Fits the head of a model; see :func:`fit_head` for the arguments.
FitHead = Callable[
    [SiglipClassifier, Any, ClassificationData, DataArguments, SiglipTrainingArguments], FittedHead
]


def load_split_features(
    model: SiglipClassifier,
    processor: Any,
    data: ClassificationData,
    split: str,
    data_arguments: DataArguments,
    training: SiglipTrainingArguments,
) -> dict[str, np.ndarray]:
    """Return :func:`load_features` of a split, encoded in the precision of training."""
    batch_size = training.per_device_eval_batch_size
    options = PassOptions(batch_size, data_arguments, training.precision)
    return load_features(model, processor, data.splits[split], options, f"encoding {split}")


def fit_head(
    model: SiglipClassifier,
    processor: Any,
    data: ClassificationData,
    data_arguments: DataArguments,
    training: SiglipTrainingArguments,
) -> FittedHead:
    """Fit the model's linear head on the training split, with the penalty that validation favors.

    Multinomial logistic regression on frozen features, as the first stage of LP-FT.

    Source: Kumar et al. 2022, "Fine-tuning can distort pretrained features and underperform
    out-of-distribution".
    """

    def load(split: str) -> tuple[np.ndarray, np.ndarray]:
        features = load_split_features(model, processor, data, split, data_arguments, training)
        return features[model.config.pooling], get_labels(data.splits[split])

    train, validation, classes = load("train"), load("validation"), len(data.class_names)
    balanced = training.class_balance == "weights"
    fit = choose_fit(
        fit_and_validate(train, validation, classes, balanced=balanced, device=model.device)
    )
    set_head(model, fit.head)
    facts = {"penalty": fit.penalty, "validation_accuracy": fit.validation_accuracy}
    return FittedHead(model, {"head_fit": facts})
