"""Which part of the model trains, and how far below its tower's top each parameter lies."""

import re
from dataclasses import dataclass

from torch import nn

from siglip_flowers.base.errors import InputError
from siglip_flowers.config import parse_trainable
from siglip_flowers.model.family import VisionModel

# What stands above the encoder layers: the last norm and the pooling, or the text projection.
TOP_PARTS = ("post_layernorm", "final_layer_norm", "head")
_PLACE = re.compile(
    rf"(?P<tower>vision|text)_model\.(encoder\.layers\.(?P<layer>\d+)\.|"
    rf"(?P<part>embeddings|{'|'.join(TOP_PARTS)})\.)"
)


@dataclass(frozen=True)
class Place:
    """Where a parameter stands.

    Attributes:
        part: ``head`` (the classification head), ``vision``, ``text``, or ``scale`` (temperature
            and bias of the contrastive loss).
        height: How many blocks of the tower stand above: 0 for last norm and pooling, 1 for the
            last encoder layer, L for the first of L, L + 1 for the embeddings. 0 outside a tower.
    """

    part: str
    height: int = 0


def locate_parameters(model: nn.Module) -> dict[str, Place]:
    """Return the place of every parameter of a classifier or a two-tower model, by name.

    Raises:
        ValueError: A parameter that no rule places, which would get an arbitrary learning rate.
    """
    names = [name for name, _ in model.named_parameters()]
    matches = {name: _PLACE.match(name) for name in names}
    layers: dict[str, int] = {}
    for match in matches.values():
        if match and match["layer"]:
            layers[match["tower"]] = max(layers.get(match["tower"], 0), int(match["layer"]) + 1)
    places = {}
    for name, match in matches.items():
        if name.startswith("classifier."):
            places[name] = Place("head")
        elif name in ("logit_scale", "logit_bias"):
            places[name] = Place("scale")
        elif match is None:
            raise ValueError(f"The parameter {name!r} is in no known part of a SigLIP.")
        elif match["layer"]:
            places[name] = Place(match["tower"], layers[match["tower"]] - int(match["layer"]))
        elif match["part"] == "embeddings":
            places[name] = Place(match["tower"], layers[match["tower"]] + 1)
        else:
            places[name] = Place(match["tower"])
    return places


def check_trainable(trainable: str, layers: int) -> int | None:
    """Return N of ``last:N``, else None; InputError if the encoder has fewer than N layers."""
    last = parse_trainable(trainable)
    if last is not None and last > layers:
        raise InputError(
            f"--trainable is {trainable!r} but the encoder has {layers} layers; use "
            f"last:{layers} or all."
        )
    return last


def freeze(encoder: VisionModel, trainable: str) -> None:
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
