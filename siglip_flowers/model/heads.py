"""Ways to initialize a classifier's head: from the text tower, or by a fit on frozen features."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from siglip_flowers.model.classifier import CosineHead, SiglipClassifier
from siglip_flowers.model.loading import load_classifier
from siglip_flowers.model.probe_solvers import PROBE_STRENGTHS, fit_logistic_heads
from siglip_flowers.model.text_head import ZeroShotHead, zero_shot_head


@torch.no_grad()
def set_calibration(
    model: SiglipClassifier, logit_scale: torch.Tensor, logit_bias: torch.Tensor
) -> None:
    """Set the log-temperature and bias of a cosine head, one element each."""
    head = model.classifier
    assert isinstance(head, CosineHead)
    head.logit_scale.copy_(logit_scale.reshape(()))
    head.logit_bias.copy_(logit_bias.reshape(()))


@torch.no_grad()
def set_text_head(model: SiglipClassifier, text_head: ZeroShotHead) -> None:
    """Make the model the checkpoint's zero-shot classifier.

    The class embeddings (C, D) of the text tower become the weight, with the checkpoint's
    temperature and bias: separate in a cosine head, multiplied in a linear one, whose model must
    normalize its features.
    """
    head = model.classifier
    if isinstance(head, CosineHead):
        head.class_embeddings.copy_(text_head.weight)
        set_calibration(model, text_head.logit_scale, text_head.logit_bias)
        return
    assert isinstance(head, nn.Linear)
    assert model.config.normalize_features
    head.weight.copy_(text_head.logit_scale.exp() * text_head.weight)
    head.bias.copy_(text_head.logit_bias.expand(head.bias.shape))


def load_zero_shot_classifier(
    checkpoint: str,
    class_names: Sequence[str],
    templates: Sequence[str],
) -> SiglipClassifier:
    """Return the classifier that a two-tower checkpoint is without any training.

    Raises as :func:`~siglip_flowers.model.text_head.zero_shot_head` and
    :func:`~siglip_flowers.model.loading.load_classifier`.
    """
    text_head = zero_shot_head(checkpoint, class_names, templates)
    model = load_classifier(checkpoint, class_names, normalize_features=True, activation="sigmoid")
    set_text_head(model, text_head)
    return model.eval()


@torch.no_grad()
def set_probe_head(
    model: SiglipClassifier,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    class_weight: str | None = None,
) -> float:
    """Fit the linear head on frozen features and return the chosen penalty strength.

    L-BFGS logistic regression on standardized features, as the first stage of LP-FT; the L2
    strength is chosen by accuracy on the validation split. Every class needs a training row.

    Args:
        model: A classifier with a linear head on unnormalized features.
        train: Features (N, D) float32 and labels (N,) int64.
        validation: The same for the validation split.
        class_weight: ``balanced`` weighs classes by inverse frequency.

    Source: Kumar et al. 2022, "Fine-tuning can distort pretrained features and underperform
    out-of-distribution".
    """
    head = model.classifier
    assert isinstance(head, nn.Linear)
    class_count = len(head.bias)
    heads = fit_logistic_heads(*train, class_count, PROBE_STRENGTHS, class_weight)
    accuracies = [
        float(np.mean((validation[0] @ weight.T + bias).argmax(axis=1) == validation[1]))
        for weight, bias in heads
    ]
    # The strongest penalty among equals.
    best = int(np.argmax(accuracies))
    head.weight.copy_(torch.from_numpy(heads[best][0]))
    head.bias.copy_(torch.from_numpy(heads[best][1]))
    return PROBE_STRENGTHS[best]
