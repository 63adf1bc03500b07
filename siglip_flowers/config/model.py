"""Which encoder is trained, and which parts of it."""

from dataclasses import dataclass, field

from siglip_flowers.config.checks import check_choice, check_positive
from siglip_flowers.errors import InputError

HEAD_INITS = ("random", "text", "probe")


@dataclass
class ModelArguments:
    """Which encoder, and what is put on it."""

    model_name_or_path: str = field(
        default="google/siglip2-base-patch16-224",
        metadata={
            "help": "A SigLIP or fixed-resolution SigLIP 2 checkpoint (two towers or vision only): "
            "a directory or a Hub id. Only safetensors weights are read."
        },
    )
    from_scratch: bool = field(
        default=False,
        metadata={"help": "Take only the architecture from the checkpoint, no weights."},
    )
    pooling: str = field(
        default="map",
        metadata={
            "help": "map: the encoder's pretrained attention-pooling head; mean: the average of "
            "the patch tokens, as SiglipForImageClassification does."
        },
    )
    trainable: str = field(
        default="all",
        metadata={"help": "all, head (the classification head only) or last:N encoder layers."},
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the pictures in pixels; position embeddings are interpolated where "
            "it is not the checkpoint's own."
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager or flash_attention_2; default: the library's."}
    )
    head_init: str = field(
        default="random",
        metadata={
            "help": "random; text: class embeddings from the checkpoint's own text tower (its "
            "zero-shot classifier); probe: a logistic regression on the frozen features."
        },
    )
    prompt_templates: str | None = field(
        default=None,
        metadata={"help": "A file with one prompt a line, {} for the class name; default: ours."},
    )

    def __post_init__(self) -> None:
        check_choice("pooling", self.pooling, ("map", "mean"))
        check_choice("head_init", self.head_init, HEAD_INITS)
        check_positive("image_size", self.image_size)
        parse_trainable(self.trainable)


def parse_trainable(trainable: str) -> int | None:
    """Return N of ``last:N``, or None for ``all`` and ``head``; InputError for anything else."""
    if trainable in ("all", "head"):
        return None
    word, _, number = trainable.partition(":")
    if word != "last" or not number.isdigit() or int(number) < 1:
        raise InputError(f"--trainable is {trainable!r}; use all, head or last:N with N >= 1.")
    return int(number)
