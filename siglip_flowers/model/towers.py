"""The towers of a SigLIP or SigLIP 2: their classes, pooling, and which of their layers train."""

import re
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    PreTrainedConfig,
    Siglip2Config,
    Siglip2TextModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.model import parse_trainable
from siglip_flowers.model.modeling_siglip_classifier import pool_patches

VisionConfig = SiglipVisionConfig | Siglip2VisionConfig
VisionModel = SiglipVisionModel | Siglip2VisionModel
TextModel = SiglipTextModel | Siglip2TextModel

# The model_type of the vision tower in each kind of two-tower checkpoint.
VISION_TYPES = {
    SiglipConfig.model_type: SiglipVisionConfig.model_type,
    Siglip2Config.model_type: Siglip2VisionConfig.model_type,
}


def is_naflex(vision_config: PreTrainedConfig) -> bool:
    """Return whether a vision tower takes patches of images at their own aspect ratio."""
    return isinstance(vision_config, Siglip2VisionConfig)


def name_kind(naflex: bool) -> str:
    """Return the name of a kind of vision tower in messages."""
    return "NaFlex SigLIP 2" if naflex else "fixed-resolution SigLIP"


def get_vision_class(vision_config: PreTrainedConfig) -> type[VisionModel]:
    """Return the class of the vision tower that a configuration describes."""
    return Siglip2VisionModel if is_naflex(vision_config) else SiglipVisionModel


def get_text_class(config: PreTrainedConfig) -> type[TextModel]:
    """Return the class of the text tower of a two-tower configuration."""
    return Siglip2TextModel if config.model_type == "siglip2" else SiglipTextModel


def run_vision_tower(
    vision_model: VisionModel,
    pixel_values: torch.Tensor,
    pixel_attention_mask: torch.Tensor | None = None,
    spatial_shapes: torch.Tensor | None = None,
    kept_patches: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return both poolings of a batch: attention (None in a tower without it) and the mean.

    Args:
        vision_model: The tower.
        pixel_values: (B, 3, H, W), in training of any size that patches divide; or (B, P, K)
            patches for NaFlex, which needs the next two.
        pixel_attention_mask: (B, P), 1 for patches of the image and 0 for padding.
        spatial_shapes: (B, 2) int64, patch rows and columns.
        kept_patches: (B, K) int64, the patches of each image that the layers see; None: all of
            them. For a fixed resolution only. Source: Li et al. 2023, "Scaling language-image
            pre-training via masking".

    Returns:
        (B, D) each; the mean is over the patches of the image, without padding.

    Raises:
        InputError: Inputs of the other kind of tower.
    """
    naflex = is_naflex(vision_model.config)
    missing = pixel_attention_mask is None or spatial_shapes is None
    if naflex is missing or (missing and pixel_values.ndim != 4):
        raise InputError(
            f"The model is a {name_kind(naflex)}, but the inputs are for a "
            f"{name_kind(not naflex)}. Prepare images with the image processor that was published "
            "with the model."
        )
    own_size = naflex or pixel_values.shape[-1] == vision_model.config.image_size
    resized = vision_model.training and not own_size
    if resized or kept_patches is not None:
        tokens = vision_model.embeddings(pixel_values, interpolate_pos_encoding=resized)
        if kept_patches is not None:
            tokens = tokens[torch.arange(len(tokens), device=tokens.device)[:, None], kept_patches]
        tokens = vision_model.encoder(inputs_embeds=tokens).last_hidden_state
        tokens = vision_model.post_layernorm(tokens)
        return vision_model.head(tokens) if vision_model.use_head else None, tokens.mean(dim=1)
    return pool_patches(vision_model, pixel_values, pixel_attention_mask, spatial_shapes)


def check_max_num_patches(max_num_patches: int | None, vision_config: PreTrainedConfig) -> None:
    """Raise InputError if a budget of patches is given for a fixed-resolution checkpoint."""
    if max_num_patches is not None and not is_naflex(vision_config):
        raise InputError(
            f"--max_num_patches {max_num_patches} is for NaFlex checkpoints, and this one has a "
            "fixed resolution; use --image_size."
        )


# The parts above the encoder layers: the last norm and the pooling, or the text projection.
TOP_PARTS = ("post_layernorm", "final_layer_norm", "head")
_PLACE = re.compile(
    rf"(?P<tower>vision|text)_model\.(encoder\.layers\.(?P<layer>\d+)\.|"
    rf"(?P<part>embeddings|{'|'.join(TOP_PARTS)})\.)"
)


@dataclass(frozen=True)
class Place:
    """The position of a parameter in the model.

    Attributes:
        part: ``head`` (the classification head), ``vision``, ``text``, or ``scale`` (temperature
            and bias of the contrastive loss).
        height: The number of blocks above it in its tower: 0 for last norm and pooling, 1 for the
            last encoder layer, L for the first of L, L + 1 for the embeddings; 0 outside a tower.
    """

    part: str
    height: int = 0


def locate_parameters(model: nn.Module) -> dict[str, Place]:
    """Return the place of every parameter of a classifier or a two-tower model, by name.

    Raises:
        ValueError: No rule matches a parameter, which would get an arbitrary learning rate.
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
            raise ValueError(f"The parameter {name!r} does not belong to a known part of a SigLIP.")
        elif match["layer"]:
            places[name] = Place(match["tower"], layers[match["tower"]] - int(match["layer"]))
        elif match["part"] == "embeddings":
            places[name] = Place(match["tower"], layers[match["tower"]] + 1)
        else:
            places[name] = Place(match["tower"])
    return places


def check_pooling_head(checkpoint: str, config: VisionConfig) -> None:
    """Raise InputError if the checkpoint of a configuration has no attention pooling."""
    # Not every version of transformers has a default for the setting, and released files lack it.
    if not getattr(config, "vision_use_head", True):
        raise InputError(
            f"The checkpoint {checkpoint!r} has no attention-pooling head (vision_use_head is "
            "false), which --pooling map requires; use --pooling mean."
        )


def check_trainable(trainable: str, layers: int) -> int | None:
    """Return N of ``last:N``, otherwise None; InputError if the encoder has fewer layers."""
    last = parse_trainable(trainable)
    if last is not None and last > layers:
        raise InputError(
            f"--trainable is {trainable!r} but the encoder has {layers} layers; use "
            f"last:{layers} or all."
        )
    return last


def freeze(encoder: VisionModel, trainable: str) -> None:
    """Choose the parameters of the vision tower that train; the classification head always does.

    ``all``: every one; ``head``: none; ``last:N``: the attention pooling, the last layer norm and
    the last N encoder layers.

    Raises:
        InputError: Another value, or more layers than the encoder has.
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
