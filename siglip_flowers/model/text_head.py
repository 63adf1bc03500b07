"""Class embeddings from a checkpoint's own text tower: the zero-shot head."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.prompts import build_prompts, canonicalize, load_templates
from siglip_flowers.base.text import abbreviate, compose, first_line
from siglip_flowers.config import EvaluationArguments, ModelArguments
from siglip_flowers.config.saved import read_yaml
from siglip_flowers.model.loading import is_classifier, load_checkpoint_config
from siglip_flowers.model.towers import VISION_TYPES, TextModel, check_pooling_head, get_text_class
from siglip_flowers.model.weights import MALFORMED, UNREADABLE, load_weights

# Texts of each class; a class may have more than another.
Prompts = Sequence[Sequence[str]]

logger = logging.getLogger(__name__)


class ZeroShotHead(NamedTuple):
    """Unit-length class embeddings ``weight`` (C, D), with the calibration, all float32."""

    weight: Tensor
    logit_scale: Tensor
    logit_bias: Tensor


def check_text_tower(checkpoint: str) -> Any:
    """Return the checkpoint's configuration; InputError if it lacks a text tower or its partner."""
    config = load_checkpoint_config(checkpoint)
    if config.model_type not in VISION_TYPES or is_classifier(config):
        raise InputError(
            f"{checkpoint!r} has no text tower (its model_type is {config.model_type!r}); use a "
            "full two-tower SigLIP checkpoint, such as google/siglip2-base-patch16-224."
        )
    check_pooling_head(checkpoint, config.vision_config)
    return config


def load_text_tower(checkpoint: str) -> tuple[TextModel, PreTrainedTokenizerBase]:
    """Load the text half of a SigLIP or SigLIP 2 checkpoint in float32, and its tokenizer.

    ``checkpoint`` is a local directory or a Hub id; only safetensors are read.

    Raises InputError, before any weight is read, for a checkpoint without a text tower; also for
    missing or misshapen text weights and a missing tokenizer. Raises RunError for what cannot be
    fetched or is damaged.
    """
    config = check_text_tower(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    text_class: Any = get_text_class(config)
    model = load_weights(text_class, checkpoint, "text weight", config=config.text_config)
    return model.eval(), tokenizer


class _Calibration(PreTrainedModel):
    """The two weights of a checkpoint that belong to neither tower."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.logit_bias = nn.Parameter(torch.zeros(1))
        self.post_init()


def load_calibration(checkpoint: str) -> tuple[Tensor, Tensor] | None:
    """Return the checkpoint's ``logit_scale`` (a logarithm) and ``logit_bias``, float32 (1,) each.

    None for a checkpoint of a vision tower alone or a classifier, which has neither.
    """
    config = load_checkpoint_config(checkpoint)
    if config.model_type not in VISION_TYPES or is_classifier(config):
        return None
    scalars = load_weights(_Calibration, checkpoint, "weight", config=config)
    return scalars.logit_scale.data, scalars.logit_bias.data


def load_tokenizer(checkpoint: str) -> PreTrainedTokenizerBase:
    """Load the checkpoint's own tokenizer; InputError if that is not possible."""
    try:
        # By default, transformers may ask whether to run the code of a checkpoint.
        return AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except (*UNREADABLE, *MALFORMED) as error:
        raise InputError(
            f"The tokenizer of {checkpoint!r} cannot be loaded ({first_line(error)}). Add its "
            "tokenizer files to the checkpoint and install sentencepiece."
        ) from error


def read_prompts(
    class_names: Sequence[str], options: ModelArguments | EvaluationArguments
) -> Prompts:
    """Return the prompts of each class.

    Args:
        class_names: C names.
        options: ``class_prompts`` is a YAML file with one text or several for a class, under its
            name. Other classes get the templates of the file ``prompt_templates``, or those of
            :func:`load_templates`.

    Raises:
        InputError: A file cannot be read or used, or names an unknown class.
    """
    class_prompts = options.class_prompts
    # YAML reads names such as 7 as numbers.
    read = {} if class_prompts is None else read_yaml(Path(class_prompts))
    # Names as macOS spells them are met, too.
    composed = [compose(name) for name in class_names]
    texts = {compose(str(name)): given for name, given in read.items()}
    names = [name for name in composed if name not in texts]
    prompts: dict[str, Sequence[str]] = {}
    if names:
        built = build_prompts(names, load_templates(options.prompt_templates, class_names))
        prompts = dict(zip(names, built, strict=True))
    for name, given in texts.items():
        found = given if isinstance(given, list) else [given]
        if name not in composed:
            raise InputError(
                f"{class_prompts} has {name!r}, which is not a class of the data. Choose one of "
                f"{abbreviate(class_names)}."
            )
        if not found or not all(isinstance(text, str) and canonicalize(text) for text in found):
            raise InputError(
                f"The prompts of {name!r} in {class_prompts} are {given!r}. Write a text, or a "
                "list of texts."
            )
        prompts[name] = found
    return [prompts[name] for name in composed]


def zero_shot_head(checkpoint: str, class_names: Sequence[str], prompts: Prompts) -> ZeroShotHead:
    """Build the classifier that ``checkpoint`` is without training, on the CPU.

    The main process encodes the prompts of each class on its device and sends the result to the
    others; all processes have to make the call.

    Raises as ``load_text_tower`` and ``tokenize_classes``.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    outcome: list[ZeroShotHead | InputError | RunError | None] = [None]
    if state.is_main_process:
        try:
            model, tokenizer = load_text_tower(checkpoint)
            length = model.config.max_position_embeddings
            ids = tokenize_classes(tokenizer, class_names, prompts, length)
            calibration = load_calibration(checkpoint)
            assert calibration is not None
            weight = average_prompts(model.to(state.device), ids)
            outcome = [ZeroShotHead(weight.cpu(), *calibration)]
        except (InputError, RunError) as error:
            outcome = [error]
    broadcast_object_list(outcome)
    head = outcome[0]
    if isinstance(head, ZeroShotHead):
        return head
    assert head is not None
    raise head


@torch.no_grad()
def average_prompts(text_model: TextModel, ids: Sequence[Tensor], batch_size: int = 64) -> Tensor:
    """Average the unit embeddings of the prompts (T, L) of each class; unit rows (C, D) float32.

    Source: Radford et al. 2021 (CLIP), section 3.1.4, prompt ensembling in embedding space.
    """
    parts = torch.cat(list(ids)).to(text_model.device).split(batch_size)
    texts = torch.cat([text_model(input_ids=part).pooler_output.float() for part in parts])
    by_class = F.normalize(texts, dim=-1).split([len(rows) for rows in ids])
    return F.normalize(torch.stack([rows.mean(dim=0) for rows in by_class]), dim=-1)


def tokenize_classes(
    tokenizer: PreTrainedTokenizerBase, class_names: Sequence[str], prompts: Prompts, length: int
) -> list[Tensor]:
    """Tokenize the prompts of each class: (T, length) int64, T of them.

    Raises InputError for two classes with the same tokens.
    """
    flat = [prompt for of_class in prompts for prompt in of_class]
    ids = tokenize_prompts(tokenizer, flat, length).split([len(texts) for texts in prompts])
    classes: dict[bytes, list[str]] = {}
    for name, tokens in zip(class_names, ids, strict=True):
        classes.setdefault(tokens.numpy().tobytes(), []).append(repr(name))
    same = [names for names in classes.values() if len(names) > 1]
    if same:
        raise InputError(
            f"The classes {abbreviate(same[0])} have the same prompts for the tokenizer of the "
            "checkpoint. Rename them, describe them with --class_prompts, or use a checkpoint "
            "whose tokenizer knows the words."
        )
    return list(ids)


def check_prompts(checkpoint: str, class_names: Sequence[str], prompts: Prompts) -> None:
    """Check what the checkpoint's tokenizer makes of the prompts, without reading weights.

    Warns of the share of tokens that are unknown or exceed the length, unless there are none.

    Raises InputError as ``check_text_tower``, ``load_tokenizer`` and ``tokenize_classes``.
    """
    length = check_text_tower(checkpoint).text_config.max_position_embeddings
    tokenizer = load_tokenizer(checkpoint)
    tokenize_classes(tokenizer, class_names, prompts, length)
    flat = [canonicalize(prompt) for of_class in prompts for prompt in of_class]
    tokens = tokenizer(flat, verbose=False)["input_ids"]
    total = sum(map(len, tokens))
    unknown = sum(row.count(tokenizer.unk_token_id) for row in tokens)
    cut = sum(max(0, len(row) - length) for row in tokens)
    if unknown or cut:
        logger.warning(
            "Of the tokens in the class prompts, %.1f%% are unknown to the tokenizer and %.1f%% "
            "exceed the length of %d; the text head may be inaccurate.",
            100 * unknown / total,
            100 * cut / total,
            length,
        )


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int
) -> Tensor:
    """Tokenize N prompts in canonical form, each padded on the right or cut: (N, length) int64.

    Every text has the full length, since SigLIP pools the last position and was trained without a
    padding mask.
    """
    tokens = tokenizer(
        [canonicalize(prompt) for prompt in prompts],
        padding="max_length",
        padding_side="right",  # the default of Siglip2Tokenizer is another
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )
    return tokens["input_ids"]
