"""Both towers of a SigLIP, fine-tuned on images and the prompts of their classes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel, Siglip2Model, SiglipConfig, SiglipModel
from transformers.modeling_outputs import ImageClassifierOutput

from siglip_flowers.model.classifier import SiglipClassifier, SiglipClassifierConfig
from siglip_flowers.model.losses import contrastive_sigmoid_loss
from siglip_flowers.model.text_head import (
    Prompts,
    average_prompts,
    check_text_tower,
    load_tokenizer,
    tokenize_classes,
)
from siglip_flowers.model.towers import TextModel, VisionModel, is_naflex, run_vision_tower
from siglip_flowers.model.weights import load_weights, resize_positions


class ContrastiveSiglip(PreTrainedModel):
    """Two towers that train on images with prompts and evaluate as a classifier.

    Built as a ``SiglipModel`` or, for NaFlex, a ``Siglip2Model``; see :func:`load_contrastive`.

    Source: Goyal et al. 2023, "Finetune like you pretrain", with the sigmoid loss of
    pretraining; pairs of the same class are positives.

    In training mode ``forward`` takes images as ``SiglipClassifier`` does, ``labels`` (B,) and
    ``templates`` (B,), the number of the prompt drawn for each image, and returns the loss of this
    rank. In evaluation mode it takes images and returns logits (B, C) for the class embeddings,
    each the average of the prompts of its class.
    """

    vision_model: VisionModel
    text_model: TextModel
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.class_names: list[str] = []
        self._prompt_ids: Sequence[Tensor] = ()
        self._evaluation_embeddings: Tensor | None = None

    def set_prompts(self, class_names: Sequence[str], prompt_ids: Sequence[Tensor]) -> None:
        """Set the C classes and the tokenized prompts (T, L) int64 of each."""
        self.class_names = list(class_names)
        self._prompt_ids = prompt_ids
        counts = torch.tensor([len(rows) for rows in prompt_ids])
        self._prompt_rows = (torch.cat(list(prompt_ids)), counts.cumsum(0) - counts, counts)

    def copy_prompts(self, other: "ContrastiveSiglip") -> None:
        """Copy the classes and prompts of another such model."""
        self.set_prompts(other.class_names, other._prompt_ids)

    @property
    def num_templates(self) -> int:
        """The most prompts that a class has."""
        return max(map(len, self._prompt_ids))

    def train(self, mode: bool = True) -> "ContrastiveSiglip":
        """Switch modes; every evaluation computes its class embeddings again."""
        self._evaluation_embeddings = None
        return super().train(mode)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        labels: Tensor | None = None,
        templates: Tensor | None = None,
        kept_patches: Tensor | None = None,
    ) -> Any:
        """See the class, and ``run_vision_tower`` for ``kept_patches``."""
        images, _ = run_vision_tower(
            self.vision_model, pixel_values, pixel_attention_mask, spatial_shapes, kept_patches
        )
        assert images is not None
        if labels is not None and templates is not None:
            ids, starts, counts = (part.to(labels.device) for part in self._prompt_rows)
            prompts = ids[starts[labels] + templates % counts[labels]]  # (B, L)
            texts = self.text_model(input_ids=prompts).pooler_output
            loss = contrastive_sigmoid_loss(
                images, texts, labels, self.logit_scale, self.logit_bias
            )
            return ImageClassifierOutput(loss=loss)
        if self._evaluation_embeddings is None or self.training:
            self._evaluation_embeddings = self.embed_classes()
        cosine = functional.normalize(images.float(), dim=-1) @ self._evaluation_embeddings.T
        return ImageClassifierOutput(logits=self.logit_scale.exp() * cosine + self.logit_bias)

    @torch.no_grad()
    def embed_classes(self) -> Tensor:
        """Return the class embeddings (C, D): unit means of the prompts' unit embeddings."""
        with torch.autocast(device_type=self.logit_scale.device.type, enabled=False):
            return average_prompts(self.text_model, self._prompt_ids, 256)

    @torch.no_grad()
    def fold(self) -> SiglipClassifier:
        """Return a plain classifier with the same logits: the text tower becomes its head."""
        config = SiglipClassifierConfig(
            vision_config=self.vision_model.config.to_dict(),
            normalize_features=True,
            activation="sigmoid",
            id2label=dict(enumerate(self.class_names)),
            label2id={name: index for index, name in enumerate(self.class_names)},
        )
        folded: Any = SiglipClassifier(config)
        folded.to(self.logit_scale.device)
        folded.vision_model.load_state_dict(self.vision_model.state_dict())
        was_training = self.training
        self.eval()
        folded.classifier.weight.copy_(self.logit_scale.exp() * self.embed_classes())
        folded.classifier.bias.copy_(self.logit_bias.expand(len(self.class_names)))
        self.train(was_training)
        return folded.eval()


class _FixedContrastive(ContrastiveSiglip, SiglipModel):
    pass


class _NaflexContrastive(ContrastiveSiglip, Siglip2Model):
    pass


def load_contrastive(
    checkpoint: str,
    class_names: Sequence[str],
    prompts: Prompts,
    *,
    image_size: int | None = None,
    train_text_tower: bool = True,
) -> ContrastiveSiglip:
    """Load both towers of a checkpoint for contrastive fine-tuning on the prompts of each class.

    Raises:
        InputError: The checkpoint has no text tower or lacks weights, or two classes have the same
            prompts.
        RunError: It cannot be reached or read.
    """
    config = check_text_tower(checkpoint)
    length = config.text_config.max_position_embeddings
    tokenizer = load_tokenizer(checkpoint)
    prompt_ids = tokenize_classes(tokenizer, class_names, prompts, length)
    naflex = is_naflex(config.vision_config)
    model_class: Any = _NaflexContrastive if naflex else _FixedContrastive
    model: ContrastiveSiglip = load_weights(model_class, checkpoint, "weight")
    if not naflex and image_size not in (None, config.vision_config.image_size):
        model = _resize(model, image_size)
    model.set_prompts(class_names, prompt_ids)
    model.text_model.requires_grad_(train_text_tower)
    return model


def _resize(model: ContrastiveSiglip, image_size: int) -> ContrastiveSiglip:
    """Return the model rebuilt for another image size, position embeddings interpolated."""
    config: Any = SiglipConfig.from_dict(model.config.to_dict())
    config.vision_config.image_size = image_size
    config._attn_implementation = model.config._attn_implementation
    resized = _FixedContrastive(config)
    state = model.state_dict()
    name = "vision_model.embeddings.position_embedding.weight"
    state[name] = resize_positions(model.vision_model, image_size)
    resized.load_state_dict(state)
    return resized
