"""What a NaFlex SigLIP 2 has of its own: its classes and pooling over patches of a mask."""

import torch
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

VisionConfig = SiglipVisionConfig | Siglip2VisionConfig
VisionModel = SiglipVisionModel | Siglip2VisionModel
TextModel = SiglipTextModel | Siglip2TextModel

# The model_type of the vision tower in each kind of two-tower checkpoint.
VISION_TYPES = {
    SiglipConfig.model_type: SiglipVisionConfig.model_type,
    Siglip2Config.model_type: Siglip2VisionConfig.model_type,
}
VISION_CONFIGS: dict[str, type[VisionConfig]] = {
    SiglipVisionConfig.model_type: SiglipVisionConfig,
    Siglip2VisionConfig.model_type: Siglip2VisionConfig,
}


def is_naflex(vision_config: PreTrainedConfig) -> bool:
    """Return whether a vision tower takes patches of images at their own aspect ratio."""
    return isinstance(vision_config, Siglip2VisionConfig)


def name_kind(naflex: bool) -> str:
    """Name one of the two kinds of vision tower in a message."""
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
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return both poolings of a batch: attention (None in a tower without it) and the mean.

    Args:
        vision_model: The tower.
        pixel_values: (B, 3, H, W); or (B, P, K) patches for NaFlex, which needs the next two.
        pixel_attention_mask: (B, P), 1 for patches of the image and 0 behind them.
        spatial_shapes: (B, 2) int64, patch rows and columns.

    Returns:
        (B, D) each; the mean is over the patches of the image only.

    Raises:
        InputError: Inputs of the other kind of tower.
    """
    naflex = is_naflex(vision_model.config)
    missing = pixel_attention_mask is None or spatial_shapes is None
    if naflex is missing or (missing and pixel_values.ndim != 4):
        raise InputError(
            f"The model is a {name_kind(naflex)}, and its inputs are those of a "
            f"{name_kind(not naflex)}; prepare images with the image processor saved beside it."
        )
    if not naflex:
        outputs = vision_model(pixel_values=pixel_values)
        return outputs.pooler_output, outputs.last_hidden_state.mean(dim=1)
    outputs = vision_model(
        pixel_values=pixel_values,
        pixel_attention_mask=pixel_attention_mask,
        spatial_shapes=spatial_shapes,
    )
    tokens = outputs.last_hidden_state
    assert pixel_attention_mask is not None
    valid = pixel_attention_mask[..., None].to(tokens.dtype)
    return outputs.pooler_output, (tokens * valid).sum(dim=1) / valid.sum(dim=1)


def check_max_num_patches(max_num_patches: int | None, vision_config: PreTrainedConfig) -> None:
    """Raise InputError unless a budget of patches fits the checkpoint."""
    if max_num_patches is not None and not is_naflex(vision_config):
        raise InputError(
            f"--max_num_patches {max_num_patches} is for NaFlex checkpoints, and this one has a "
            "fixed resolution; use --image_size."
        )
