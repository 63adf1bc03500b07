"""The configuration of :class:`~siglip_flowers.model.classifier.SiglipClassifier`."""

import copy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, SiglipVisionConfig

from siglip_flowers.model.family import VISION_CONFIGS, VisionConfig

POOLINGS = ("map", "mean")
HEADS = ("linear", "cosine")
# What the pipeline of transformers reads to choose between softmax and sigmoid.
PROBLEM_TYPES = {
    "softmax": "single_label_classification",
    "sigmoid": "multi_label_classification",
}


class SiglipClassifierConfig(PreTrainedConfig):
    """A SigLIP vision tower, a way to pool its patch tokens, and a head.

    Args:
        vision_config: Configuration of the vision tower; its ``model_type`` decides between a
            fixed-resolution tower and a NaFlex one.
        pooling: ``map`` uses the tower's pretrained attention-pooling head, ``mean`` averages the
            patch tokens as ``SiglipForImageClassification`` does (the tower then has no head).
        head: ``linear``; or ``cosine``, the head of the sigmoid loss while it is being trained:
            class embeddings, log-temperature and bias. Saved models are folded to ``linear``.
        normalize_features: Divide the pooled features by their L2 norm before the linear head.
        activation: ``softmax`` or ``sigmoid``: what turns logits into probabilities.
    """

    model_type = "siglip_classifier"
    sub_configs = {"vision_config": AutoConfig}  # noqa: RUF012 - transformers' own contract

    def __init__(
        self,
        vision_config: VisionConfig | dict[str, Any] | None = None,
        pooling: str = "map",
        head: str = "linear",
        normalize_features: bool = False,
        activation: str = "softmax",
        **kwargs: Any,
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}; choose one of {', '.join(POOLINGS)}.")
        if head not in HEADS:
            raise ValueError(f"head is {head!r}; choose one of {', '.join(HEADS)}.")
        if activation not in PROBLEM_TYPES:
            raise ValueError(
                f"activation is {activation!r}; choose one of {', '.join(PROBLEM_TYPES)}."
            )
        if vision_config is None:
            vision_config = SiglipVisionConfig()
        elif isinstance(vision_config, dict):
            kind = vision_config.get("model_type", SiglipVisionConfig.model_type)
            if kind not in VISION_CONFIGS:
                raise ValueError(
                    f"vision_config has model_type {kind!r}; it must be one of "
                    f"{', '.join(VISION_CONFIGS)}."
                )
            vision_config = VISION_CONFIGS[kind](**vision_config)
        else:
            # The next lines change it, and it may be the configuration of a tower in use.
            vision_config = copy.deepcopy(vision_config)
        # An attention-pooling head that takes no part in the loss breaks DDP with gradient
        # checkpointing, so the tower is built without it where it is not used.
        vision_config.vision_use_head = pooling == "map"
        self.vision_config: VisionConfig = vision_config
        self.pooling = pooling
        self.head = head
        self.normalize_features = normalize_features
        self.activation = activation
        kwargs["problem_type"] = PROBLEM_TYPES[activation]
        super().__init__(**kwargs)
