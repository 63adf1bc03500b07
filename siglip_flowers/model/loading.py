"""Build a classifier from a SigLIP checkpoint, and load its image processor.

Every weight of the vision tower must come from the checkpoint: one that is missing or of another
shape is an error, since a silently random tower trains to a silently bad model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from siglip_flowers.errors import InputError, RunError
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.configuration import SiglipClassifierConfig
from siglip_flowers.model.weights import first_line, interpolate_position_embedding, load_weights


def load_checkpoint_config(checkpoint: str) -> PreTrainedConfig:
    """Read the configuration of a checkpoint and check that it is a fixed-resolution SigLIP.

    Raises:
        InputError: The checkpoint is no SigLIP, or a NaFlex one.
        RunError: It can be found neither here nor on the Hub.
    """
    path = Path(checkpoint)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"The model directory {checkpoint} holds no config.json; name a directory written by "
            "save_pretrained or a model on the Hub."
        )
    if not path.is_dir() and (path.is_absolute() or checkpoint.startswith(".")):
        raise InputError(f"The model directory {checkpoint} does not exist; check the path.")
    try:
        config = AutoConfig.from_pretrained(checkpoint)
    except (OSError, HfHubHTTPError) as error:
        if path.is_dir():
            raise InputError(
                f"The config.json in {checkpoint} cannot be read ({first_line(error)}); copy the "
                "checkpoint again."
            ) from error
        raise RunError(
            f"The model {checkpoint!r} is not a local directory and could not be read from the "
            f"Hugging Face Hub ({first_line(error)}); check the name and the network, or give "
            "--model_name_or_path a local directory."
        ) from error
    except (ValueError, KeyError) as error:
        raise InputError(
            f"The checkpoint {checkpoint!r} is not a SigLIP model ({first_line(error)}); use a "
            "SigLIP or fixed-resolution SigLIP 2 checkpoint."
        ) from error
    if config.model_type in ("siglip2", "siglip2_vision_model"):
        raise InputError(
            f"The checkpoint {checkpoint!r} is a NaFlex SigLIP 2 (model_type "
            f"{config.model_type!r}), which needs other inputs than pictures of one size; use a "
            "fixed-resolution one such as google/siglip2-base-patch16-224."
        )
    if config.model_type not in ("siglip", "siglip_vision_model", "siglip_classifier"):
        raise InputError(
            f"The checkpoint {checkpoint!r} is not a SigLIP model: its model_type is "
            f"{config.model_type!r}, expected 'siglip', 'siglip_vision_model' or "
            "'siglip_classifier'."
        )
    return config


def vision_config_of(config: PreTrainedConfig) -> SiglipVisionConfig:
    """Return the vision part of a two-tower, vision-only or classifier configuration."""
    if isinstance(config, SiglipVisionConfig):
        return config
    vision_config = config.vision_config
    assert isinstance(vision_config, SiglipVisionConfig)
    return vision_config


def check_image_size(image_size: int, vision_config: SiglipVisionConfig) -> None:
    """Raise InputError unless whole patches cover the picture."""
    patch_size = vision_config.patch_size
    assert isinstance(patch_size, int)
    if image_size % patch_size:
        below = image_size - image_size % patch_size
        nearest = f"{below} or {below + patch_size}" if below else f"{patch_size}"
        raise InputError(
            f"--image_size is {image_size}, which is not a multiple of the checkpoint's patch size "
            f"{patch_size}; use {nearest}."
        )


def load_image_processor(checkpoint: str, image_size: int | None = None) -> Any:
    """Load the checkpoint's image processor, set to another picture size if asked.

    The PIL class is named, so that pixels do not depend on whether torchvision is installed: the
    Auto class asks for it in some versions of transformers.
    """
    try:
        processor = SiglipImageProcessorPil.from_pretrained(checkpoint)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise RunError(
            f"The image processor of {checkpoint!r} could not be loaded ({first_line(error)}); "
            "the checkpoint needs a preprocessor_config.json."
        ) from error
    if image_size is not None:
        processor.size = {"height": image_size, "width": image_size}
    return processor


def load_classifier(
    checkpoint: str,
    class_names: Sequence[str],
    *,
    pooling: str = "map",
    head: str = "linear",
    normalize_features: bool = False,
    activation: str = "softmax",
    image_size: int | None = None,
    from_scratch: bool = False,
    attn_implementation: str | None = None,
) -> SiglipClassifier:
    """Build a classifier with the vision tower of a checkpoint and a fresh head.

    Args:
        checkpoint: Two-tower SigLIP, vision tower only, or a saved classifier; a directory or a
            Hub id. Only safetensors weights are read.
        class_names: The C names, in label order.
        pooling: See :class:`SiglipClassifierConfig`, like the next three.
        head: See above.
        normalize_features: See above.
        activation: See above.
        image_size: Side in pixels; position embeddings are interpolated where it is not the
            checkpoint's own.
        from_scratch: Take the architecture only and initialise every weight at random.
        attn_implementation: ``sdpa``, ``eager``, ...; transformers chooses when left out.

    Raises:
        InputError: No SigLIP checkpoint, missing vision weights, a size that does not fit, or
            fewer than two classes.
        RunError: The checkpoint cannot be reached or read.
    """
    if len(class_names) < 2:
        raise InputError(
            f"There is nothing to tell apart: the classes are {', '.join(class_names) or 'none'}; "
            "give at least two."
        )
    vision_config = vision_config_of(load_checkpoint_config(checkpoint))
    own_size, patch_size = vision_config.image_size, vision_config.patch_size
    assert isinstance(own_size, int)
    assert isinstance(patch_size, int)
    if image_size is not None:
        check_image_size(image_size, vision_config)
    tower = None
    if not from_scratch:
        tower = _load_vision_tower(checkpoint, use_head=pooling == "map")
        vision_config = tower.config
    target_config = SiglipVisionConfig.from_dict(vision_config.to_dict())
    target_config.image_size = image_size or own_size
    # A checkpoint saved in half precision would have a tower from scratch built in it.
    target_config.dtype = torch.float32
    config = SiglipClassifierConfig(
        vision_config=target_config,
        pooling=pooling,
        head=head,
        normalize_features=normalize_features,
        activation=activation,
        id2label=dict(enumerate(class_names)),
        label2id={name: index for index, name in enumerate(class_names)},
    )
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    model = SiglipClassifier(config)
    if tower is not None:
        state = tower.state_dict()
        if target_config.image_size != own_size:
            name = "embeddings.position_embedding.weight"
            state[name] = interpolate_position_embedding(
                state[name], target_config.image_size // patch_size
            )
        model.vision_model.load_state_dict(state)
    return model


def _load_vision_tower(checkpoint: str, *, use_head: bool) -> SiglipVisionModel:
    config = load_checkpoint_config(checkpoint)
    vision_config = vision_config_of(config)
    if use_head and not vision_config.vision_use_head:
        raise InputError(
            f"The checkpoint {checkpoint!r} has no attention-pooling head (vision_use_head is "
            "false), which --pooling map needs; use --pooling mean."
        )
    vision_config = SiglipVisionConfig.from_dict(vision_config.to_dict())
    vision_config.vision_use_head = use_head
    return load_weights(SiglipVisionModel, checkpoint, "vision weights", config=vision_config)


def load_saved_classifier(directory: str) -> SiglipClassifier:
    """Load a classifier that was saved by a run or pushed to the Hub.

    Raises:
        InputError: The checkpoint is another kind of model, or incomplete.
        RunError: It cannot be reached or read.
    """
    config = load_checkpoint_config(directory)
    if not isinstance(config, SiglipClassifierConfig):
        raise InputError(
            f"{directory!r} is a {config.model_type!r} checkpoint, not a trained classifier; "
            "train one on it with train.py --model_name_or_path."
        )
    return load_weights(SiglipClassifier, directory, "weights").eval()
