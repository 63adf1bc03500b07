"""Read a checkpoint's weights, all of them or none."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.model.checking import MALFORMED, UNREADABLE, check_weight_files
from siglip_flowers.model.family import name_kind

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
