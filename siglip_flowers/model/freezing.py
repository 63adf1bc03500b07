"""Which part of the vision tower trains."""

from transformers import SiglipVisionModel

from siglip_flowers.config import parse_trainable
from siglip_flowers.errors import InputError


def check_trainable(trainable: str, layers: int) -> int | None:
    """Return N of ``last:N``, else None; InputError if the encoder has fewer than N layers."""
    last = parse_trainable(trainable)
    if last is not None and last > layers:
        raise InputError(
            f"--trainable is {trainable!r} but the encoder has {layers} layers; use "
            f"last:{layers} or all."
        )
    return last


def freeze(encoder: SiglipVisionModel, trainable: str) -> None:
    """Set which parameters of the vision tower train; the classification head always does.

    ``all``: every one; ``head``: none; ``last:N``: the attention pooling, the last layer norm and
    the last N encoder layers.

    Raises:
        InputError: Another word, or more layers than the encoder has.
    """
    layers = encoder.encoder.layers
    last = check_trainable(trainable, len(layers))
    encoder.requires_grad_(trainable == "all")
    if last is not None:
        encoder.post_layernorm.requires_grad_(True)
        if encoder.use_head:
            encoder.head.requires_grad_(True)
        for layer in layers[len(layers) - last :]:
            layer.requires_grad_(True)
