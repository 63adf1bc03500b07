"""The classifier: SigLIP vision tower, pooling, head; and its configuration.

A classifier that averages patch tokens can also be a plain class of transformers, for use without
this package.
"""

import copy
import math
from typing import Any

import torch
from torch import nn
from transformers import (
    Siglip2Config,
    Siglip2ForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
)
from transformers.modeling_outputs import ImageClassifierOutput

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.model import HEADS, POOLINGS
from siglip_flowers.model import modeling_siglip_classifier as modeling
from siglip_flowers.model.losses import class_logits, cross_entropy_loss, sigmoid_loss
from siglip_flowers.model.towers import VisionConfig, VisionModel, is_naflex, run_vision_tower

# By these the pipeline of transformers chooses between softmax and sigmoid.
PROBLEM_TYPES = {"softmax": "single_label_classification", "sigmoid": "multi_label_classification"}
NativeModel = SiglipForImageClassification | Siglip2ForImageClassification
# The names of the classes in a config.json.
NATIVE_ARCHITECTURES = {"SiglipForImageClassification", "Siglip2ForImageClassification"}


class SiglipClassifierConfig(modeling.SiglipClassifierConfig):
    """A SigLIP vision tower, a way to pool its patch tokens, and a head.

    Args:
        vision_config: Configuration of the vision tower; its ``model_type`` decides between a
            fixed-resolution tower and a NaFlex one.
        pooling: ``map`` uses the tower's pretrained attention-pooling head, ``mean`` averages the
            patch tokens as ``SiglipForImageClassification`` does (the tower then has no head).
        head: ``linear``; or ``cosine`` during training: class embeddings, log-temperature and,
            under a sigmoid, a bias. Saved models are folded to ``linear``.
        normalize_features: Divide the pooled features by their L2 norm before the linear head.
        activation: Maps logits to probabilities: ``softmax`` or ``sigmoid``.
    """

    def __init__(
        self,
        vision_config: VisionConfig | dict[str, Any] | None = None,
        pooling: str = "map",
        head: str = "linear",
        normalize_features: bool = False,
        activation: str = "softmax",
        **kwargs: Any,
    ) -> None:
        for name, value, choices in (
            ("pooling", pooling, POOLINGS),
            ("head", head, HEADS),
            ("activation", activation, tuple(PROBLEM_TYPES)),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")
        kwargs |= {"head": head, "activation": activation}
        kwargs["problem_type"] = PROBLEM_TYPES[activation]
        # It is changed, and may be the configuration of a tower in use.
        super().__init__(copy.deepcopy(vision_config), pooling, normalize_features, **kwargs)


# The initial value of the SigLIP paper (section 3.2), for checkpoints without their own.
INITIAL_LOG_TEMPERATURE = math.log(10.0)


def initial_sigmoid_bias(num_labels: int) -> float:
    """Return -log(C - 1): with it every class of C starts at the probability 1 / C.

    The paper's -10 is of batches with thousands of texts for each image; see its section 3.2 on
    why a start far from the share of positives makes training correct for it first.
    """
    return -math.log(max(num_labels - 1, 1))


class CosineHead(nn.Module):
    """Cosine to class embeddings with a temperature and, for the sigmoid loss, a bias.

    A softmax does not depend on a bias that all classes share, so it has none there.

    Source: Zhai et al. 2023, "Sigmoid loss for language image pre-training", algorithm 1, with
    class embeddings instead of text embeddings.
    """

    def __init__(self, hidden_size: int, num_labels: int, *, has_bias: bool) -> None:
        super().__init__()
        self.class_embeddings = nn.Parameter(torch.empty(num_labels, hidden_size))
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOG_TEMPERATURE))
        bias = torch.tensor(initial_sigmoid_bias(num_labels))
        self.logit_bias = nn.Parameter(bias) if has_bias else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map pooled features (B, D) to logits (B, C)."""
        return class_logits(features, self.class_embeddings, self.logit_scale, self.logit_bias)


class SiglipClassifier(modeling.SiglipClassifier):
    """Image classifier on the vision tower of a SigLIP or SigLIP 2, fixed-resolution or NaFlex.

    ``forward`` takes the outputs of the checkpoint's image processor and optional ``labels`` (B,),
    int64. For a fixed resolution these are ``pixel_values`` (B, 3, H, W), float; for NaFlex
    ``pixel_values`` (B, P, K), patches, with ``pixel_attention_mask`` (B, P) and
    ``spatial_shapes`` (B, 2). It returns logits (B, C); with labels also the loss of the model's
    activation: softmax cross-entropy, or the pairwise sigmoid loss.
    """

    config_class = SiglipClassifierConfig  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = [  # noqa: RUF012 - a contract of transformers
        "SiglipEncoderLayer",
        "SiglipMultiheadAttentionPoolingHead",
        "Siglip2EncoderLayer",
        "Siglip2MultiheadAttentionPoolingHead",
    ]
    vision_model: VisionModel
    classifier: CosineHead | nn.Linear

    def build_head(self, config: Any) -> nn.Module:
        """Return a cosine head if the configuration says so, else a linear one."""
        if config.head == "linear":
            return super().build_head(config)
        hidden_size, has_bias = config.vision_config.hidden_size, config.activation == "sigmoid"
        return CosineHead(hidden_size, len(config.id2label), has_bias=has_bias)

    @property
    def class_names(self) -> list[str]:
        """The C class names, in label order."""
        id2label: Any = self.config.id2label
        return [id2label[index] for index in range(len(id2label))]

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize the head; the vision tower initializes itself."""
        bias = initial_sigmoid_bias(len(self.class_names))
        if isinstance(module, CosineHead):
            nn.init.normal_(module.class_embeddings, std=module.class_embeddings.shape[1] ** -0.5)
            nn.init.constant_(module.logit_scale, INITIAL_LOG_TEMPERATURE)
            if module.logit_bias is not None:
                nn.init.constant_(module.logit_bias, bias)
        elif module is self.classifier and isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.constant_(module.bias, bias if self.config.activation == "sigmoid" else 0.0)

    def extract_features(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        kept_patches: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the pooled features (B, D) for the head, before any normalization."""
        attended, mean = run_vision_tower(
            self.vision_model, pixel_values, pixel_attention_mask, spatial_shapes, kept_patches
        )
        if self.config.pooling == "mean":
            return mean
        assert attended is not None
        return attended

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        kept_patches: torch.Tensor | None = None,
    ) -> ImageClassifierOutput:
        """Classify a batch; see the class, and ``run_vision_tower`` for ``kept_patches``."""
        features = self.extract_features(
            pixel_values, pixel_attention_mask, spatial_shapes, kept_patches
        )
        logits = self.classify_features(features)
        loss = None
        if labels is not None:
            loss_function = (
                sigmoid_loss if self.config.activation == "sigmoid" else cross_entropy_loss
            )
            loss = loss_function(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def to_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Turn logits (B, C) into probabilities: softmax rows, or independent sigmoids."""
        logits = logits.float()
        return logits.sigmoid() if self.config.activation == "sigmoid" else logits.softmax(dim=-1)

    @torch.no_grad()
    def fold(self) -> "SiglipClassifier":
        """Return a plain classifier with the same logits: a cosine head becomes linear.

        Its weight is the normalized class embeddings times the temperature; its bias is that of
        the cosine head. A model with a linear head is returned as it is.
        """
        head: Any = self.classifier
        if not isinstance(head, CosineHead):
            return self
        config = SiglipClassifierConfig.from_dict(self.config.to_dict())
        config.head = "linear"
        config.normalize_features = True
        folded: Any = SiglipClassifier(config)
        folded.to(head.class_embeddings.device, head.class_embeddings.dtype)
        folded.vision_model.load_state_dict(self.vision_model.state_dict())
        embeddings = nn.functional.normalize(head.class_embeddings, dim=-1)
        folded.classifier.weight.copy_(head.logit_scale.exp() * embeddings)
        bias = torch.zeros(()) if head.logit_bias is None else head.logit_bias
        folded.classifier.bias.copy_(bias.expand(embeddings.shape[0]))
        return folded.train(self.training)


def is_plain(model: SiglipClassifier) -> bool:
    """Return whether a classifier can be a plain ``SiglipForImageClassification``.

    That class applies a linear head to the average of the patch tokens.
    """
    config = model.config
    return config.pooling == "mean" and config.head == "linear" and not config.normalize_features


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
    """Return a plain ``SiglipForImageClassification`` with the same logits.

    A NaFlex classifier becomes a ``Siglip2ForImageClassification``.

    Raises:
        InputError: The model cannot be one; see :func:`is_plain`.
    """
    if not is_plain(model):
        raise InputError(
            "The model cannot be a plain SiglipForImageClassification, which has a linear head on "
            "the average of the patch tokens. Train with --pooling mean and --head linear."
        )
    folded = model.fold()
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
