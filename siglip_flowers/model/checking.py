"""Refuse checkpoint files that would run code, lead elsewhere, or ask for absurd sizes."""

import json
import math
from pathlib import Path
from typing import Any

import PIL.Image
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from transformers.activations import ACT2FN
from transformers.utils import find_adapter_config_file

from siglip_flowers.base.errors import InputError

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
