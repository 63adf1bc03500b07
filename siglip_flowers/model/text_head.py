"""Class embeddings from a checkpoint's own text tower: the zero-shot head."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.prompts import build_prompts, canonicalize, load_templates
from siglip_flowers.model.loading import load_checkpoint_config
from siglip_flowers.model.towers import VISION_TYPES, TextModel, get_text_class
from siglip_flowers.model.weights import (
    INDEX_FILE,
    MALFORMED,
    OLD_BUFFERS,
    UNREADABLE,
    check_shard_names,
    first_line,
)

_WEIGHTS = "model.safetensors"
_TEXT_PREFIX = "text_model."
_REMEDY = "use a full two-tower SigLIP checkpoint, such as google/siglip2-base-patch16-224"


class TextTower(NamedTuple):
    """A text tower in evaluation mode with its tokenizer and the checkpoint's calibration.

    ``logit_scale`` (a logarithm) and ``logit_bias`` are float32 of shape (1,), as saved.
    """

    model: TextModel
    tokenizer: PreTrainedTokenizerBase
    logit_scale: Tensor
    logit_bias: Tensor


class ZeroShotHead(NamedTuple):
    """Unit-length class embeddings ``weight`` (C, D), with the calibration, all float32."""

    weight: Tensor
    logit_scale: Tensor
    logit_bias: Tensor


def check_text_tower(checkpoint: str) -> Any:
    """Return the checkpoint's configuration; InputError if it has no text tower."""
    config = load_checkpoint_config(checkpoint)
    if config.model_type not in VISION_TYPES:
        raise InputError(
            f"{checkpoint} has no text tower (its config.json says {config.model_type!r}): "
            f"{_REMEDY}"
        )
    return config


def load_text_tower(checkpoint: str) -> TextTower:
    """Load the text half of a SigLIP or SigLIP 2 checkpoint, in float32.

    ``checkpoint`` is a local directory or a Hub id; only safetensors are read, and of these only
    the text weights.

    Raises InputError, before any weight is read, for a checkpoint without a text tower; also for
    missing or misshapen text weights and a missing tokenizer. Raises RunError for what cannot be
    fetched or is damaged.
    """
    config = check_text_tower(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    weights = _read_text_weights(checkpoint)
    # Given from memory, the vision weights are neither loaded nor reported as left over.
    text_class: Any = get_text_class(config)
    loaded: Any = text_class.from_pretrained(
        None,
        config=config.text_config,
        state_dict={k: v for k, v in weights.items() if k.startswith(_TEXT_PREFIX)},
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        dtype=torch.float32,
    )
    model, report = loaded
    # Mismatched entries are (name, shape in the file, shape in the model).
    bad = sorted({*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
    if bad:
        raise InputError(
            f"{checkpoint} lacks {len(bad)} weights of its text tower, or has them in another "
            f"shape than its config.json says, {bad[0]} among them: {_REMEDY}"
        )
    # Older files hold a buffer besides.
    more = sorted(key for key in report["unexpected_keys"] if not key.endswith(OLD_BUFFERS))
    if more:
        raise InputError(
            f"{checkpoint} has {len(more)} weights of its text tower that its config.json has no "
            f"place for, {more[0]} among them: {_REMEDY}"
        )
    return TextTower(model.eval(), tokenizer, weights["logit_scale"], weights["logit_bias"])


def encode_prompts(
    text_model: TextModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    batch_size: int = 64,
) -> Tensor:
    """Encode ``prompts`` in canonical form; returns (N, D), not normalized.

    Every text is padded on the right, or cut, to the tower's full length, since SigLIP pools the
    last position and was trained without a padding mask. Gradients flow unless the caller switches
    them off.
    """
    ids = tokenize_prompts(tokenizer, prompts, text_model.config.max_position_embeddings)
    parts = ids.to(text_model.device).split(batch_size)
    return torch.cat([text_model(input_ids=part).pooler_output for part in parts])


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int
) -> Tensor:
    """Tokenise N prompts in canonical form, each padded on the right or cut: (N, length) int64."""
    tokens = tokenizer(
        [canonicalize(prompt) for prompt in prompts],
        padding="max_length",
        padding_side="right",  # the default of Siglip2Tokenizer is another
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )
    return tokens["input_ids"]


def class_embeddings(
    text_model: TextModel,
    tokenizer: PreTrainedTokenizerBase,
    class_names: Sequence[str],
    templates: Sequence[str],
    batch_size: int = 64,
) -> Tensor:
    """Average each class's normalized prompt embeddings and normalize again; returns (C, D).

    Gradients flow unless the caller switches them off. Raises InputError as ``build_prompts``.
    Source: Radford et al. 2021 (CLIP), section 3.1.4, prompt ensembling in embedding space.
    """
    prompts = build_prompts(class_names, templates)
    flat = [prompt for of_class in prompts for prompt in of_class]
    features = F.normalize(encode_prompts(text_model, tokenizer, flat, batch_size), dim=-1)
    by_class = features.reshape(len(prompts), len(templates), -1)  # (C, T, D)
    return F.normalize(by_class.mean(dim=1), dim=-1)


def zero_shot_head(
    checkpoint: str, class_names: Sequence[str], templates: Sequence[str] | None = None
) -> ZeroShotHead:
    """Build the classifier that ``checkpoint`` already knows, without training.

    ``templates`` defaults to the packaged ones. Raises as ``build_prompts`` and
    ``load_text_tower``.
    """
    templates = load_templates() if templates is None else templates
    build_prompts(class_names, templates)  # a bad name is told before the weights are fetched
    tower = load_text_tower(checkpoint)
    with torch.no_grad():
        weight = class_embeddings(tower.model, tower.tokenizer, class_names, templates)
    return ZeroShotHead(weight, tower.logit_scale, tower.logit_bias)


def load_calibration(checkpoint: str) -> tuple[Tensor, Tensor] | None:
    """Return the checkpoint's ``logit_scale`` (a logarithm) and ``logit_bias``, float32 (1,) each.

    None for a checkpoint of a vision tower alone, which has neither.
    """
    if load_checkpoint_config(checkpoint).model_type not in VISION_TYPES:
        return None
    found: dict[str, Tensor] = {}
    for path in _find_weight_files(checkpoint):
        with safe_open(path, framework="pt") as file:
            for name in {"logit_scale", "logit_bias"} & set(file.keys()):
                found[name] = file.get_tensor(name).float()
    return (found["logit_scale"], found["logit_bias"]) if len(found) == 2 else None


def load_tokenizer(checkpoint: str) -> PreTrainedTokenizerBase:
    """Load the checkpoint's own tokenizer; InputError if it has none that works."""
    try:
        # Left out, the question whether to run a checkpoint's code would wait for an answer.
        return AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except (*UNREADABLE, *MALFORMED) as error:
        raise InputError(
            f"the tokenizer of {checkpoint} cannot be loaded ({first_line(error)}): put its "
            "tokenizer files beside the weights and install sentencepiece"
        ) from error


def _read_text_weights(checkpoint: str) -> dict[str, Tensor]:
    """Read the text tower's tensors, ``logit_scale`` and ``logit_bias`` in float32."""
    weights: dict[str, Tensor] = {}
    for path in _find_weight_files(checkpoint):
        try:
            with safe_open(path, framework="pt") as file:
                for name in filter(_is_wanted, file.keys()):
                    weights[name] = file.get_tensor(name).float()
        except SafetensorError as error:
            raise RunError(
                f"the weights {path} are damaged ({error}): fetch the checkpoint again"
            ) from error
    for name in ("logit_scale", "logit_bias"):
        if name not in weights:
            raise InputError(f"the weights of {checkpoint} hold no {name}: {_REMEDY}")
    if not any(name.startswith(_TEXT_PREFIX) for name in weights):
        raise InputError(f"the weights of {checkpoint} hold no text tower: {_REMEDY}")
    return weights


def _find_weight_files(checkpoint: str) -> list[str]:
    """Locate (or fetch) the safetensors files with text weights, whether in one or in shards."""
    try:
        return [_fetch(checkpoint, _WEIGHTS)]
    except OSError as error:
        try:
            index = _fetch(checkpoint, INDEX_FILE)
        except OSError:
            raise _describe_unreadable(checkpoint, _WEIGHTS) from error
    try:
        content = json.loads(Path(index).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _describe_unreadable(checkpoint, INDEX_FILE) from error
    check_shard_names(index, content)
    places = content["weight_map"]
    shards = sorted({shard for name, shard in places.items() if _is_wanted(name)})
    try:
        return [_fetch(checkpoint, shard) for shard in shards]
    except OSError as error:
        raise _describe_unreadable(checkpoint, " or ".join(shards)) from error


def _fetch(checkpoint: str, name: str) -> str:
    path = cached_file(checkpoint, name)
    assert path is not None  # it raises OSError instead
    return path


def _is_wanted(name: str) -> bool:
    return name.startswith(_TEXT_PREFIX) or name in ("logit_scale", "logit_bias")


def _describe_unreadable(checkpoint: str, name: str) -> InputError | RunError:
    """A local directory is the user's to mend; a Hub id may be right and the network down."""
    if Path(checkpoint).is_dir():
        return InputError(f"{checkpoint} has no readable {name}: {_REMEDY}")
    return RunError(
        f"{name} of {checkpoint} cannot be fetched from the Hub: check the name and the connection"
    )
