"""A SigLIP vision tower with a linear classification head, for use with ``trust_remote_code=True``.

This file is published with the weights and requires torch and transformers only. It runs trained
classifiers; the package siglip_flowers, which trains them, builds on the same classes.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.modeling_outputs import ImageClassifierOutput


class SiglipClassifierConfig(PreTrainedConfig):
    """A vision tower, and how its patch tokens are pooled for the head.

    Args:
        vision_config: The tower: ``siglip_vision_model`` or ``siglip2_vision_model`` (NaFlex).
        pooling: ``map``, the tower's attention-pooling head, or ``mean`` of the patch tokens.
        normalize_features: Whether the features are divided by their length.
        kwargs: Everything else in a configuration, such as class names.
    """

    model_type = "siglip_classifier"
    sub_configs = {"vision_config": AutoConfig}  # noqa: RUF012 - a contract of transformers

    def __init__(
        self,
        vision_config: Any = None,
        pooling: str = "map",
        normalize_features: bool = False,
        **kwargs: Any,
    ) -> None:
        given = vision_config or {}
        if isinstance(given, dict):
            naflex = given.get("model_type") == Siglip2VisionConfig.model_type
            given = (Siglip2VisionConfig if naflex else SiglipVisionConfig)(**given)
        # An attention-pooling head without gradients breaks DDP with gradient checkpointing, so the
        # tower is built without it if it is not used.
        given.vision_use_head = pooling == "map"
        self.vision_config = given
        self.pooling = pooling
        self.normalize_features = normalize_features
        super().__init__(**kwargs)


class SiglipClassifier(PreTrainedModel):
    """Classify images prepared by the image processor of this repository.

    ``forward`` takes ``pixel_values`` (B, 3, H, W); for NaFlex (B, P, K) patches with
    ``pixel_attention_mask`` (B, P) and ``spatial_shapes`` (B, 2). It returns logits (B, C).
    """

    config_class = SiglipClassifierConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012 - likewise
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: SiglipClassifierConfig) -> None:
        super().__init__(config)
        naflex = isinstance(config.vision_config, Siglip2VisionConfig)
        tower: Any = Siglip2VisionModel if naflex else SiglipVisionModel
        self.vision_model = tower._from_config(config.vision_config)
        self.classifier = self.build_head(config)
        self.post_init()

    def build_head(self, config: SiglipClassifierConfig) -> nn.Module:
        """Return the head that maps features (B, D) to logits (B, C)."""
        if getattr(config, "head", "linear") != "linear" or config.pooling not in ("map", "mean"):
            raise ValueError("This file runs saved classifiers, whose head is linear.")
        labels: Any = config.id2label
        return nn.Linear(config.vision_config.hidden_size, len(labels))

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embedding, which gradient checkpointing hooks into."""
        return self.vision_model.embeddings.patch_embedding

    def classify_features(self, features: torch.Tensor) -> torch.Tensor:
        """Map pooled features (B, D) to logits (B, C)."""
        if self.config.normalize_features:
            features = nn.functional.normalize(features, dim=-1)
        logits: torch.Tensor = self.classifier(features)
        return logits

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
    ) -> ImageClassifierOutput:
        """Classify a batch; see the class for shapes."""
        attended, mean = pool_patches(
            self.vision_model, pixel_values, pixel_attention_mask, spatial_shapes
        )
        features: Any = attended if self.config.pooling == "map" else mean
        return ImageClassifierOutput(logits=self.classify_features(features))


def pool_patches(
    vision_model: Any,
    pixel_values: torch.Tensor,
    pixel_attention_mask: torch.Tensor | None = None,
    spatial_shapes: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return both poolings of a batch, (B, D): attention, if the tower has it, and the mean."""
    inputs = {"pixel_values": pixel_values}
    if pixel_attention_mask is None or spatial_shapes is None:
        outputs = vision_model(**inputs)
        return outputs.pooler_output, outputs.last_hidden_state.mean(dim=1)
    inputs |= {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
    outputs = vision_model(**inputs)
    # Patches after the image's last one are padding.
    weight = pixel_attention_mask[..., None].to(outputs.last_hidden_state.dtype)
    mean = (outputs.last_hidden_state * weight).sum(dim=1) / weight.sum(dim=1)
    return outputs.pooler_output, mean
