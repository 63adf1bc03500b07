"""Ways to initialize a classifier's head: from the text tower, or by a fit on frozen features."""

from collections.abc import Sequence

import torch
from torch import nn

from siglip_flowers.model.classifier import CosineHead, SiglipClassifier
from siglip_flowers.model.loading import load_classifier
from siglip_flowers.model.logistic import (
    HeadFit,
    LabeledFeatures,
    LinearHead,
    choose_fit,
    fit_and_validate,
)
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
def set_head(model: SiglipClassifier, head: LinearHead) -> None:
    """Give the model's linear head this weight and bias."""
    assert isinstance(model.classifier, nn.Linear)
    parameters = (model.classifier.weight, model.classifier.bias)
    for parameter, values in zip(parameters, head, strict=True):
        parameter.copy_(torch.from_numpy(values))


def set_probe_head(
    model: SiglipClassifier,
    train: LabeledFeatures,
    validation: LabeledFeatures,
    *,
    balanced: bool = False,
) -> HeadFit:
    """Fit the linear head on frozen features, with the penalty that validation favors.

    Multinomial logistic regression, as the first stage of LP-FT; see
    :func:`~siglip_flowers.model.logistic.fit_logistic_heads`.

    Args:
        model: A classifier with a linear head on unnormalized features.
        train: Every class needs a row.
        validation: Chooses the penalty by accuracy.
        balanced: Weight classes by inverse frequency.

    Source: Kumar et al. 2022, "Fine-tuning can distort pretrained features and underperform
    out-of-distribution".
    """
    class_count = len(model.class_names)
    fits = fit_and_validate(train, validation, class_count, balanced=balanced, device=model.device)
    chosen = choose_fit(fits)
    set_head(model, chosen.head)
    return chosen
