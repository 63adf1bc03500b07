"""Build a classifier from a SigLIP checkpoint, and load its image processor.

Every weight of the vision tower must come from the checkpoint: a missing one, or one of another
shape, is an error, since a random tower trains to a bad model without any sign of it.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2ImageProcessorPil,
    SiglipImageProcessorPil,
)

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.paths import check_model
from siglip_flowers.base.text import first_line
from siglip_flowers.model.classifier import (
    NATIVE_ARCHITECTURES,
    SiglipClassifier,
    SiglipClassifierConfig,
    describe_native,
)
from siglip_flowers.model.towers import (
    VISION_TYPES,
    VisionConfig,
    VisionModel,
    check_pooling_head,
    get_vision_class,
    is_naflex,
    name_kind,
)
from siglip_flowers.model.weights import (
    MALFORMED,
    UNREADABLE,
    check_processor,
    check_sizes,
    load_weights,
    quiet_transformers,
    resize_positions,
)

MODEL_TYPES = (*VISION_TYPES, *VISION_TYPES.values(), SiglipClassifierConfig.model_type)


def load_checkpoint_config(checkpoint: str) -> PreTrainedConfig:
    """Read the configuration of a checkpoint and check that it is a SigLIP.

    Raises:
        InputError: The checkpoint is not a SigLIP, or contradicts itself.
        RunError: It is found neither here nor on the Hub.
    """
    check_model(checkpoint)
    try:
        with quiet_transformers():
            values, _ = PreTrainedConfig.get_config_dict(checkpoint)
            _check_file(f"config.json of {checkpoint!r}", values)
            config = CONFIG_MAPPING[values["model_type"]].from_dict(values, name_or_path=checkpoint)
        # Of names, if any.
        set(config.architectures or ())
    except UNREADABLE as error:
        if Path(checkpoint).is_dir():
            raise InputError(
                f"The config.json in {checkpoint} cannot be read ({first_line(error)}); copy the "
                "checkpoint again."
            ) from error
        raise RunError(
            f"The model {checkpoint!r} is not a local directory and could not be read from the "
            f"Hugging Face Hub ({first_line(error)}). Check the name and the network, or name "
            "a local directory."
        ) from error
    except MALFORMED as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"The checkpoint {checkpoint!r} is not a SigLIP model ({first_line(error)}). Supported "
            f"are {', '.join(MODEL_TYPES)}."
        ) from error
    for tower in (config, vision_config_of(config), getattr(config, "text_config", None)):
        # transformers ignores a text_config in a vision-only configuration, so it may be anything.
        if isinstance(tower, PreTrainedConfig):
            check_sizes(f"config.json of {checkpoint!r}", tower)
    return config


def _check_file(file: str, values: dict[str, Any]) -> None:
    """Check what transformers would read without a word, or for hours."""
    vision = values.get("vision_config")
    kinds = [(values.get("model_type"), MODEL_TYPES)]
    if isinstance(vision, dict):
        towers = tuple(VISION_TYPES.values())
        kinds.append((vision.get("model_type", towers[0]), towers))
    for kind, known in kinds:
        if kind not in known:
            raise ValueError(f"its model_type is {kind!r}")
    for part in (values, vision, values.get("text_config")):
        # It makes a name for each label.
        labels = part.get("num_labels") if isinstance(part, dict) else None
        check_sizes(file, SimpleNamespace(num_labels=labels or 1))


def vision_config_of(config: PreTrainedConfig) -> VisionConfig:
    """Return the vision part of a two-tower, vision-only or classifier configuration."""
    if isinstance(config, VisionConfig):
        return config
    vision_config = config.vision_config
    assert isinstance(vision_config, VisionConfig)
    return vision_config


def check_image_size(
    image_size: int, vision_config: VisionConfig, option: str = "image_size"
) -> None:
    """Raise InputError unless the tower has a fixed size and patches divide the image."""
    if is_naflex(vision_config):
        raise InputError(
            f"--{option} {image_size} is for fixed-resolution checkpoints, and this NaFlex one "
            "keeps the aspect ratio of each image; use --max_num_patches."
        )
    patch_size = vision_config.patch_size
    assert isinstance(patch_size, int)
    # The released patch-14 towers for 384 pixels drop the last six; they were trained like that.
    if image_size % patch_size and image_size != vision_config.image_size:
        below = image_size - image_size % patch_size
        nearest = f"{below} or {below + patch_size}" if below else f"{patch_size}"
        raise InputError(
            f"--{option} is {image_size}, which is not divisible by the checkpoint's patch size "
            f"{patch_size}; use {nearest}."
        )


def load_image_processor(
    checkpoint: str, image_size: int | None = None, max_num_patches: int | None = None
) -> Any:
    """Load the checkpoint's image processor, optionally with another image size.

    It is always the PIL class, so that pixels do not depend on whether torchvision is installed:
    the Auto class does in some versions of transformers.

    Args:
        checkpoint: A directory or a Hub id.
        image_size: Side in pixels, for a fixed-resolution checkpoint.
        max_num_patches: The largest number of patches, for a NaFlex checkpoint.

    Raises:
        InputError: It is that of the other kind of checkpoint, or prepares images that cannot be
            used.
        RunError: It cannot be reached or read.
    """
    try:
        declared, _ = SiglipImageProcessorPil.get_image_processor_dict(checkpoint)
        # Files on the Hub have the names with and without "Fast".
        naflex = str(declared.get("image_processor_type")).startswith("Siglip2ImageProcessor")
        processor_class = Siglip2ImageProcessorPil if naflex else SiglipImageProcessorPil
        processor: Any = processor_class.from_pretrained(checkpoint)
    except (*UNREADABLE, *MALFORMED) as error:
        raise RunError(
            f"The image processor of {checkpoint!r} could not be loaded ({first_line(error)}). "
            "The checkpoint needs a preprocessor_config.json."
        ) from error
    alone = Path(checkpoint).is_dir() and not (Path(checkpoint) / "config.json").is_file()
    config = None if alone else load_checkpoint_config(checkpoint)
    if config is not None and is_naflex(vision_config_of(config)) is not naflex:
        raise InputError(
            f"The preprocessor_config.json of {checkpoint!r} is for a {name_kind(naflex)}, but the "
            f"model is a {name_kind(not naflex)}. Restore the one that it was published with."
        )
    check_processor(checkpoint, processor)
    if config is not None:
        vision: Any = vision_config_of(config)
        patch = vision.patch_size
        own = processor.patch_size if naflex else processor.size["height"] // patch
        if own != (patch if naflex else vision.image_size // patch):
            raise InputError(
                f"The preprocessor_config.json of {checkpoint!r} prepares images of another size "
                "than its config.json says. Restore the one that it was published with."
            )
    if image_size is not None:
        processor.size = {"height": image_size, "width": image_size}
    if max_num_patches is not None:
        processor.max_num_patches = max_num_patches
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
) -> SiglipClassifier:
    """Build a classifier with the vision tower of a checkpoint and a fresh head.

    Args:
        checkpoint: Two-tower SigLIP, vision tower only, or a saved classifier, fixed-resolution or
            NaFlex; a directory or a Hub id. Only safetensors weights are read.
        class_names: The C names, in label order.
        pooling: See :class:`SiglipClassifierConfig`, like the next three.
        head: See above.
        normalize_features: See above.
        activation: See above.
        image_size: Side in pixels; position embeddings are interpolated if it is not the
            checkpoint's own. Not for NaFlex, whose tower interpolates them for every image.
        from_scratch: Use only the architecture and initialize every weight at random.

    Raises:
        InputError: Not a SigLIP checkpoint, missing vision weights, or a size that does not fit.
        RunError: The checkpoint cannot be reached or read.
    """
    vision_config: Any = vision_config_of(load_checkpoint_config(checkpoint))
    if image_size is not None:
        check_image_size(image_size, vision_config)
    tower = None
    if not from_scratch:
        tower = _load_vision_tower(checkpoint, vision_config, use_head=pooling == "map")
        vision_config = tower.config
    target_config = copy.deepcopy(vision_config)
    if image_size is not None:
        target_config.image_size = image_size
    # Otherwise a tower from scratch gets the dtype of a checkpoint in half precision.
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
    with refuse_malformed(checkpoint):
        model = SiglipClassifier(config)
    if tower is not None:
        state = tower.state_dict()
        if image_size is not None and image_size != vision_config.image_size:
            name = "embeddings.position_embedding.weight"
            state[name] = resize_positions(tower, image_size)
        model.vision_model.load_state_dict(state)
    return model


@contextmanager
def refuse_malformed(checkpoint: str) -> Iterator[None]:
    """Raise InputError if the model cannot be built that the checkpoint's config.json describes."""
    try:
        yield
    except MALFORMED as error:
        raise InputError(
            f"The config.json of {checkpoint!r} describes no model ({first_line(error)}); correct "
            "it, or use a complete SigLIP checkpoint."
        ) from error


def set_attention(model: PreTrainedModel, attention: str) -> None:
    """Set the attention implementation of a model: ``sdpa``, ``eager``, ...

    Raises:
        InputError: transformers does not know it, or it is not installed.
    """
    try:
        model.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"--attn_implementation {attention} cannot be used "
            f"({first_line(error).partition('. ')[0]}); choose sdpa or eager."
        ) from error


def _load_vision_tower(checkpoint: str, config: VisionConfig, *, use_head: bool) -> VisionModel:
    if use_head:
        check_pooling_head(checkpoint, config)
    config = copy.deepcopy(config)
    config.vision_use_head = use_head
    vision_class: Any = get_vision_class(config)
    tower: VisionModel = load_weights(vision_class, checkpoint, "vision weight", config=config)
    return tower


def is_classifier(config: PreTrainedConfig) -> bool:
    """Return whether a configuration is that of a trained classifier, plain or of this package."""
    plain = NATIVE_ARCHITECTURES & set(config.architectures or ())
    return bool(plain) or isinstance(config, SiglipClassifierConfig)


def load_saved_classifier(directory: str) -> SiglipClassifier:
    """Load a classifier that was saved by a run or pushed to the Hub.

    Raises:
        InputError: The checkpoint is another kind of model, or incomplete.
        RunError: It cannot be reached or read.
    """
    config = load_checkpoint_config(directory)
    if NATIVE_ARCHITECTURES & set(config.architectures or ()):
        # An exported model has the same weights under the same names.
        config = describe_native(config)
    if not isinstance(config, SiglipClassifierConfig):
        raise InputError(
            f"{directory!r} is a {config.model_type!r} checkpoint, not a trained classifier. "
            "Train one from it with siglip-flowers train --model_name_or_path."
        )
    return load_weights(SiglipClassifier, directory, "weight", config=config).eval()
