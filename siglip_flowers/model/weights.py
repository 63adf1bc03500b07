"""Read a checkpoint's weights, all of them or none, and nothing that could run code."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import PIL.Image
import torch
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import find_adapter_config_file
from transformers.utils import logging as transformers_logging

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.text import abbreviate, count, first_line
from siglip_flowers.data.pixels.tensors import PixelNormalizer
from siglip_flowers.model.towers import TextModel, VisionModel

Model = TypeVar("Model", bound=PreTrainedModel)

INDEX_FILE = "model.safetensors.index.json"
# The parts of a checkpoint, of which a model may lack some.
PARTS = ("vision_model", "text_model", "logit_scale", "logit_bias", "classifier")
OLD_BUFFERS = "embeddings.position_ids"
# What transformers raises for JSON of another form than it expects; RecursionError is one too.
MALFORMED = (
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError),
    *(ImportError, StrictDataclassError),
)
UNREADABLE = (OSError, HfHubHTTPError)
# The largest values, far above those of SigLIP 2 giant: what an absurd one asks for is allocated.
SIZE_LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 512),
    **dict.fromkeys(("hidden_size", "projection_size"), 16384),
    **dict.fromkeys(("intermediate_size", "max_position_embeddings"), 65536),
    **dict.fromkeys(("num_patches", "max_num_patches"), 65536),
    **{"num_channels": 64, "patch_size": 1024, "image_size": 4096},
    **{"vocab_size": 4_194_304, "num_labels": 262_144},
}


def load_weights(model_class: type[Model], checkpoint: str, what: str, **options: Any) -> Model:
    """Load a model in float32 from a directory or Hub id, from safetensors only.

    Args:
        model_class: The class to load. Weights of parts that it does not have, such as those of
            the other tower, are skipped; see :func:`find_left_over`.
        checkpoint: A directory or a Hub id.
        what: The name of one weight in messages.
        **options: For ``from_pretrained``.

    Raises:
        InputError: A weight of the model is missing or has another shape, or the checkpoint has
            weights that the model has not.
        RunError: The file cannot be reached or read.
    """
    check_weight_files(checkpoint)
    try:
        with quiet_transformers():
            loaded: Any = model_class.from_pretrained(
                checkpoint,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch.float32,
                **options,
            )
    except (*UNREADABLE, SafetensorError) as error:
        raise RunError(
            f"The {what}s of {checkpoint!r} could not be read ({first_line(error)}). A complete "
            "model.safetensors is required; pickled weights are not loaded."
        ) from error
    except MALFORMED as error:
        raise InputError(
            f"The {what}s of {checkpoint!r} do not fit a model ({first_line(error)}); use a "
            "complete SigLIP checkpoint."
        ) from error
    model, report = loaded
    # Mismatched entries are (name, shape in the file, shape in the model).
    bad = sorted({*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
    if bad:
        raise InputError(
            f"The checkpoint {checkpoint!r} lacks {count(len(bad), what)} of the shape that "
            f"its config.json gives ({abbreviate(bad, 3)}); use a complete SigLIP checkpoint."
        )
    left_over = find_left_over(model, report["unexpected_keys"])
    if left_over:
        raise InputError(
            f"The checkpoint {checkpoint!r} has {count(len(left_over), what)} that the model "
            f"of its config.json lacks ({abbreviate(left_over, 3)}). Restore the config.json that "
            "it was published with."
        )
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the warnings and progress bars of transformers inside the block.

    Among them are thirty lines about weights that are skipped on purpose, and two about default
    token ids of a text configuration that no checkpoint has.
    """
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def find_left_over(model: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """Return the unexpected weights of a checkpoint that are not skipped on purpose.

    Skipped are the parts that the model does not have (the other tower, the two scalars of the
    loss, a classification head, attention pooling in a model that averages) and buffers that old
    files contain.
    """
    own = "text_model" if isinstance(model, TextModel) else "vision_model"
    absent = {part for part in PARTS if not hasattr(model, part)}
    if isinstance(model, TextModel | VisionModel):
        absent.discard(own)
    tower: Any = getattr(model, own, model)
    # Not every version of transformers gives the setting a default.
    if own == "vision_model" and not getattr(tower.config, "vision_use_head", True):
        absent.add("head")
    prefix = "" if own in absent else f"{own}."
    names = {name: name.removeprefix(prefix) for name in unexpected}
    return sorted(
        name
        for name, short in names.items()
        if short.split(".")[0] not in absent and not short.endswith(OLD_BUFFERS)
    )


def check_weight_files(checkpoint: str) -> None:
    """Raise InputError for weights in several places, of which one may not be a safetensors file.

    An adapter would lead transformers to the model that it names.
    """
    if find_adapter_config_file(checkpoint) is not None:
        raise InputError(
            f"{checkpoint!r} holds an adapter (adapter_config.json), not a complete model. Name "
            "the model that it was merged into."
        )
    index = Path(checkpoint) / INDEX_FILE
    if not index.is_file():
        return
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (*UNREADABLE, *MALFORMED) as error:
        raise InputError(f"{index} cannot be read; copy the checkpoint again.") from error
    for name in map(str, names):
        if {"/", "\\", "\0"} & set(name) or not name.endswith(".safetensors"):
            raise InputError(
                f"{index} names {name[:100]!r}, which is not a safetensors file beside it; "
                "copy the checkpoint again."
            )


def check_sizes(file: str, sizes: Any) -> None:
    """Raise InputError unless the sizes in a configuration are possible."""
    for name, limit in SIZE_LIMITS.items():
        value = getattr(sizes, name, 1)
        if not isinstance(value, int) or not 1 <= value <= limit:
            raise InputError(
                f"In the {file}, {name} is {repr(value)[:100]}, but it must be a whole number from "
                f"1 to {limit}."
            )


def check_processor(checkpoint: str, processor: Any) -> None:
    """Raise InputError unless images that the processor prepares can be used."""
    file = f"preprocessor_config.json of {checkpoint!r}"
    check_sizes(file, processor)
    square = True
    if getattr(processor, "max_num_patches", None) is None:
        # Not a dict, but a class of transformers that behaves like one.
        height, width = processor.size["height"], processor.size["width"]
        check_sizes(file, SimpleNamespace(image_size=height))
        square = height == width
    try:
        PIL.Image.Resampling(processor.resample)
        black_and_white = torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2)
        black, white = PixelNormalizer(processor)(black_and_white).unbind(3)
        usable = bool((white.isfinite() & (white > black)).all())
    except MALFORMED:
        usable = False
    if not usable or not square:
        raise InputError(
            f"The {file} has a size that is not square, or a "
            "resample, rescale_factor, image_mean or image_std that does not work. Restore the "
            "file that the checkpoint was published with."
        )


def resize_positions(tower: VisionModel, image_size: int) -> torch.Tensor:
    """Return a tower's position embeddings (N, D), interpolated for square images of this side.

    Source: Dosovitskiy et al. 2021, section 3.2 (fine-tuning at another resolution).
    """
    embeddings: Any = tower.embeddings
    # Only the shape matters: that of an image of no patches, which differs from every own size.
    image = embeddings.position_embedding.weight[None, :0]
    resized: torch.Tensor = embeddings.interpolate_pos_encoding(image, image_size, image_size)[0]
    return resized.detach()
