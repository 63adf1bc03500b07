"""Read a checkpoint's weights, all of them or none, and nothing that could run code."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import PIL.Image
import torch
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils import find_adapter_config_file
from transformers.utils import logging as transformers_logging

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.model.towers import name_kind

INDEX_FILE = "model.safetensors.index.json"
# What transformers raises for JSON of another form than it expects; RecursionError is one too.
MALFORMED = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    ImportError,
    StrictDataclassError,
)
UNREADABLE = (OSError, HfHubHTTPError)
# SigLIP 2 giant has 1.9 billion parameters; nothing ten times as large is a SigLIP.
MAX_PARAMETERS = 20_000_000_000
MAX_IMAGE_SIDE = 4096
MAX_PATCHES = 65536
SIZE_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("image_size", "patch_size", "num_channels", "num_patches"),
    *("vocab_size", "max_position_embeddings"),
)


def check_sizes(checkpoint: str, config: Any) -> None:
    """Raise InputError unless the sizes in a tower's configuration can be those of a SigLIP."""
    sizes: dict[str, int] = {}
    for name in SIZE_FIELDS:
        value = getattr(config, name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(
                f"The config.json of {checkpoint!r} says {name} is {str(value)[:100]!r}; it must "
                "be a whole number above 0."
            )
        sizes[name] = value
    width, patches = sizes["hidden_size"], sizes["num_patches"]
    problem = ""
    if width % sizes["num_attention_heads"]:
        problem = f"hidden_size {width} is no multiple of its {sizes['num_attention_heads']} heads"
    activation = getattr(config, "hidden_act", None)
    if not isinstance(activation, str) or activation not in ACT2FN:
        problem = f"hidden_act is {str(activation)[:100]!r}, which transformers lacks"
    if problem:
        raise InputError(f"In the config.json of {checkpoint!r}, {problem}.")
    if hasattr(config, "image_size"):
        patches = (sizes["image_size"] // sizes["patch_size"]) ** 2
    parameters = width * (
        sizes["num_hidden_layers"] * (4 * width + 2 * sizes["intermediate_size"])
        + sizes["num_channels"] * sizes["patch_size"] ** 2
        + patches
        + sizes["vocab_size"]
        + sizes["max_position_embeddings"]
    )
    if parameters > MAX_PARAMETERS:
        raise InputError(
            f"The config.json of {checkpoint!r} describes a tower of {parameters:.1e} parameters, "
            f"more than {MAX_PARAMETERS:.0e}; give it the config.json that it was published with."
        )


def check_processor(checkpoint: str, processor: Any) -> None:
    """Raise InputError unless an image processor's values can be used."""
    size = getattr(processor, "size", None)
    if hasattr(processor, "max_num_patches"):
        limits = {"patch_size": MAX_IMAGE_SIDE, "max_num_patches": MAX_PATCHES}
        sides = {name: getattr(processor, name) for name in limits}
    else:
        limits = dict.fromkeys(("height", "width"), MAX_IMAGE_SIDE)
        # Not a dict, but a class of transformers that behaves like one.
        sides = {name: None if size is None else size[name] for name in limits}
    problem = ""
    for name, side in sides.items():
        if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= limits[name]:
            problem = f"{name} is {str(side)[:100]!r}; it must be between 1 and {limits[name]}"
    if not problem and sides.get("height") != sides.get("width"):
        problem = f"height is {sides['height']} and width {sides['width']}; they must be equal"
    for name in ("image_mean", "image_std"):
        values = getattr(processor, name)
        if not (
            isinstance(values, (list, tuple))
            and len(values) == 3
            and all(_is_finite(value) for value in values)
        ):
            problem = f"{name} is {str(values)[:100]!r}; it must be three numbers"
        elif name == "image_std" and min(values) <= 0:
            problem = f"image_std is {values}; its numbers must be above 0"
    if not _is_finite(processor.rescale_factor) or processor.rescale_factor <= 0:
        problem = f"rescale_factor is {processor.rescale_factor!r}; it must be a number above 0"
    if processor.resample not in list(PIL.Image.Resampling):
        problem = f"resample is {processor.resample!r}; it must be one of Pillow's filters, 0 to 5"
    if problem:
        raise InputError(f"In the preprocessor_config.json of {checkpoint!r}, {problem}.")


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_weight_files(checkpoint: str) -> None:
    """Raise InputError for weights of which a part lies elsewhere or is no safetensors file.

    An adapter would lead transformers to the model that it names.
    """
    if find_adapter_config_file(checkpoint) is not None:
        raise InputError(
            f"{checkpoint!r} holds an adapter (adapter_config.json), not a whole model; name the "
            "model that it was merged into."
        )
    index = Path(checkpoint) / INDEX_FILE
    if index.is_file():
        try:
            check_shard_names(str(index), json.loads(index.read_text(encoding="utf-8")))
        except (OSError, RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{index} cannot be read; copy the checkpoint again.") from error


def check_shard_names(index: str, content: Any) -> None:
    """Raise InputError unless an index's files are safetensors files that lie beside it."""
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not isinstance(content.get("metadata", {}), dict):
        raise InputError(f"{index} is not an index of weights; copy the checkpoint again.")
    for name in places.values():
        plain = isinstance(name, str) and not {"/", "\\", "\0"} & set(name)
        if not plain or not name.endswith(".safetensors"):
            raise InputError(
                f"{index} names {str(name)[:100]!r}, which is not a safetensors file beside it; "
                "copy the checkpoint again."
            )


Model = TypeVar("Model", bound=PreTrainedModel)

# What checkpoints hold beside the vision tower, and a model is made of or not.
OTHER_PARTS = ("text_model", "logit_scale", "logit_bias", "classifier")
OLD_BUFFERS = "embeddings.position_ids"


def load_weights(model_class: type[Model], checkpoint: str, what: str, **options: Any) -> Model:
    """Load a model in float32 from a directory or Hub id, from safetensors only.

    Args:
        model_class: The class to load; weights of the checkpoint that it has no place for, such
            as the other tower's, are left out; see :func:`find_left_over`.
        checkpoint: A directory or a Hub id.
        what: Names the weights in messages.
        **options: Passed on to ``from_pretrained``.

    Raises:
        InputError: A weight of the model is missing or of another shape, or the checkpoint has
            more of them than the model.
        RunError: The file cannot be reached or read.
    """
    check_weight_files(checkpoint)
    # What is left over by design would be reported as a warning of thirty lines.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
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
            f"The {what} of {checkpoint!r} could not be read ({first_line(error)}); a whole "
            "model.safetensors is needed, pickled weights are not loaded."
        ) from error
    except MALFORMED as error:
        raise InputError(
            f"The {what} of {checkpoint!r} do not make a model ({first_line(error)}); use a "
            "complete SigLIP checkpoint."
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    model, report = loaded
    # Mismatched entries are (name, shape in the file, shape in the model).
    for name, found, expected in report["mismatched_keys"]:
        if name.endswith("embeddings.patch_embedding.weight") and len(found) != len(expected):
            # A convolution's weight has four axes, that of a linear map of patches two.
            naflex = len(found) == 2
            raise InputError(
                f"The weights of {checkpoint!r} are those of a {name_kind(naflex)}, but its "
                f"config.json describes a {name_kind(not naflex)}; give it the config.json that "
                "it was published with."
            )
    bad = sorted({*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
    if bad:
        raise InputError(
            f"The checkpoint {checkpoint!r} lacks {len(bad)} {what} or has them in another shape "
            f"than its config.json says ({_list_names(bad)}); use a complete SigLIP checkpoint."
        )
    left_over = find_left_over(model, report["unexpected_keys"])
    if left_over:
        raise InputError(
            f"The checkpoint {checkpoint!r} has {len(left_over)} {what} that its config.json has "
            f"no place for ({_list_names(left_over)}); give it the config.json that it was "
            "published with."
        )
    return model


def find_left_over(model: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """Return the weights of a checkpoint that are left over, but not by design.

    By design a model goes without the parts of its checkpoint that it is not made of (the text
    tower, the two scalars of the loss, a head over classes, attention pooling where it averages),
    and without what old files hold besides weights.
    """
    tower: Any = getattr(model, "vision_model", model)
    absent = [part for part in OTHER_PARTS if not hasattr(model, part)]
    # Not every version of transformers gives the setting a default.
    if not getattr(tower.config, "vision_use_head", True):
        absent.append("head")
    names = {name: name.removeprefix("vision_model.") for name in unexpected}
    return sorted(
        name
        for name, short in names.items()
        if short.split(".")[0] not in absent and not short.endswith(OLD_BUFFERS)
    )


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def interpolate_position_embedding(embedding: torch.Tensor, grid: int) -> torch.Tensor:
    """Resample a square grid of position embeddings (N*N, D) to (grid*grid, D), bicubically.

    Source: Dosovitskiy et al. 2021, section 3.2 (fine-tuning at another resolution).
    """
    side = round(embedding.shape[0] ** 0.5)
    assert side * side == embedding.shape[0]
    maps = embedding.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    maps = nn.functional.interpolate(maps, size=(grid, grid), mode="bicubic", align_corners=False)
    return maps.permute(0, 2, 3, 1).reshape(grid * grid, -1).to(embedding.dtype)


def first_line(error: BaseException) -> str:
    """Return what an error says, without the explanations that follow the first line."""
    return str(error).strip().split("\n")[0].rstrip(".")[:300] or type(error).__name__
