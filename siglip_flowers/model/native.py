"""A classifier as a plain class of transformers, for where this package is not installed."""

from typing import Any

import torch
from transformers import (
    Siglip2Config,
    Siglip2ForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
)

from siglip_flowers.base.errors import InputError
from siglip_flowers.model.adapters import fold_model
from siglip_flowers.model.classifier import PROBLEM_TYPES, SiglipClassifier, SiglipClassifierConfig
from siglip_flowers.model.towers import is_naflex

NativeModel = SiglipForImageClassification | Siglip2ForImageClassification
# As a config.json names the class that it belongs to.
NATIVE_ARCHITECTURES = {"SiglipForImageClassification", "Siglip2ForImageClassification"}


def explain_not_native(model: SiglipClassifier) -> str | None:
    """Return why a classifier cannot be a plain SiglipForImageClassification, or None.

    The plain class averages the patch tokens and puts a linear head on the average as it is.
    """
    config = model.config
    if config.pooling != "mean":
        return (
            f"it pools by {config.pooling!r}, the attention head of the checkpoint, and the plain "
            "class averages the patch tokens; train with --pooling mean"
        )
    if config.normalize_features or config.head != "linear":
        return (
            "its head reads features divided by their length, and that of the plain class reads "
            "them as they are; train with --objective cross_entropy and --head_init random or "
            "probe"
        )
    return None


def describe_native(config: Any) -> SiglipClassifierConfig:
    """Return the configuration of the classifier that a plain model's weights belong to."""
    sigmoid = config.problem_type == PROBLEM_TYPES["sigmoid"]
    return SiglipClassifierConfig(
        vision_config=config.vision_config,
        pooling="mean",
        activation="sigmoid" if sigmoid else "softmax",
        id2label=config.id2label,
        label2id=config.label2id,
    )


@torch.no_grad()
def to_native(model: SiglipClassifier) -> NativeModel:
    """Return a plain ``SiglipForImageClassification`` with the same logits, adapters merged.

    Of a NaFlex classifier it is a ``Siglip2ForImageClassification``.

    Raises:
        InputError: The model cannot be one; see :func:`explain_not_native`.
    """
    reason = explain_not_native(model)
    if reason is not None:
        raise InputError(f"The model cannot be a plain SiglipForImageClassification: {reason}.")
    folded = fold_model(model)
    naflex = is_naflex(folded.config.vision_config)
    config_class = Siglip2Config if naflex else SiglipConfig
    vision_config = folded.config.vision_config.to_dict()
    # Where the tower was read from may be a path of this machine.
    vision_config.pop("_name_or_path", None)
    config: Any = config_class(
        vision_config=vision_config,
        # There is no text tower, and its defaults name tokens that its vocabulary lacks.
        text_config={"bos_token_id": 0, "eos_token_id": 1},
        id2label=folded.config.id2label,
        label2id=folded.config.label2id,
        problem_type=folded.config.problem_type,
    )
    native_class = Siglip2ForImageClassification if naflex else SiglipForImageClassification
    native: Any = native_class(config)
    native.load_state_dict(folded.state_dict())
    return native.eval()
