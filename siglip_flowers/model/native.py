"""A classifier as a plain class of transformers, for use without this package."""

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
# The names of the classes in a config.json.
NATIVE_ARCHITECTURES = {"SiglipForImageClassification", "Siglip2ForImageClassification"}


def explain_not_native(model: SiglipClassifier) -> str | None:
    """Return why a classifier cannot be a plain SiglipForImageClassification, or None.

    The plain class applies a linear head to the average of the patch tokens.
    """
    config = model.config
    if config.pooling != "mean":
        return (
            f"it pools by {config.pooling!r}, the attention head of the checkpoint, while the "
            "plain class averages the patch tokens; train with --pooling mean"
        )
    if config.normalize_features or config.head != "linear":
        return (
            "its head takes normalized features, while that of the plain class takes them as they "
            "are; train with --objective cross_entropy and --head_init random or "
            "probe"
        )
    return None


def describe_native(config: Any) -> SiglipClassifierConfig:
    """Return the configuration of the classifier with the weights of a plain model."""
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

    A NaFlex classifier becomes a ``Siglip2ForImageClassification``.

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
    # It may be a path of this machine.
    vision_config.pop("_name_or_path", None)
    config: Any = config_class(
        vision_config=vision_config,
        # There is no text tower; its default token ids exceed its default vocabulary.
        text_config={"bos_token_id": 0, "eos_token_id": 1},
        id2label=folded.config.id2label,
        label2id=folded.config.label2id,
        problem_type=folded.config.problem_type,
    )
    native_class = Siglip2ForImageClassification if naflex else SiglipForImageClassification
    native: Any = native_class(config)
    native.load_state_dict(folded.state_dict())
    return native.eval()
