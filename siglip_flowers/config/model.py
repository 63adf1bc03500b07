"""Which encoder is trained, and which parts of it."""

from dataclasses import dataclass

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.paths import enter_run
from siglip_flowers.config.fields import Options, between, common, option, positive

POOLINGS = ("map", "mean")
HEADS = ("linear", "cosine")
HEAD_INITS = ("random", "text", "probe")
# Of the encoder layers, and fc1 and fc2 also of the pooling head; attention is that of the head.
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "attention")


@dataclass
class ModelArguments(Options):
    """Model: which encoder, and which parts of it are trained."""

    model_name_or_path: str = common(
        "google/siglip2-base-patch16-224",
        "A SigLIP or SigLIP 2 checkpoint, or a finished run: a Hub id or a directory. "
        "Fixed-resolution or NaFlex, two towers or vision only; only safetensors weights are read. "
        "A trained classifier keeps the head of each class that the data have too.",
        path=True,
    )
    from_scratch: bool = option(False, "Use only the architecture of the checkpoint, no weights.")
    pooling: str = common(
        "map", "Pooling: map (pretrained attention) or mean (of the patch tokens).", POOLINGS
    )
    trainable: str = common("all", "What trains of the image encoder: all, last:N or head (none).")
    image_size: int | None = common(
        None, "Side of images in pixels, by interpolation; default: the checkpoint's own.", positive
    )
    max_num_patches: int | None = option(
        None, "Most patches per image of a NaFlex checkpoint; default: its own.", positive
    )
    attn_implementation: str | None = option(
        None, "sdpa, eager, flash_attention_2, ...; default: the fastest for the model."
    )
    head: str | None = option(
        None,
        "Classification head: linear, or cosine (cosine to class embeddings, times a learned "
        "temperature); default: cosine with --head_init text, else linear. The head of --objective "
        "contrastive is its prompts.",
        HEADS,
    )
    head_init: str = common(
        "random",
        "Start of the head: random, text or probe. text: class embeddings from the checkpoint's "
        "text tower (its zero-shot classifier); probe: a logistic regression on frozen features.",
        HEAD_INITS,
    )
    prompt_templates: str | None = option(
        None, "A file with one prompt per line, {} for the class; default: built-in.", path=True
    )
    class_prompts: str | None = option(
        None,
        "A YAML file with prompts for some classes, 'name: [text, text]'; the others get the "
        "templates.",
        path=True,
    )
    lora_r: int | None = common(
        None,
        "Rank of adapters (LoRA, requires peft) on an encoder that stays frozen.",
        between(1, 4096),
    )
    lora_alpha: int | None = option(
        None, "Adapters are scaled by lora_alpha / lora_r; default: 2 lora_r.", positive
    )
    lora_dropout: float = option(
        0.0, "Dropout before adapters, except in the pooling head's attention.", between(0, 0.99)
    )
    use_dora: bool = option(
        False, "Weight-decomposed adapters (DoRA), not for the pooling head's attention."
    )
    lora_target_modules: list[str] | None = option(
        None, f"Modules that get adapters; default: all of {', '.join(LORA_MODULES)}.", LORA_MODULES
    )

    def __post_init__(self) -> None:
        self.model_name_or_path = enter_run(self.model_name_or_path)
        super().__post_init__()
        parse_trainable(self.trainable)

    @property
    def head_kind(self) -> str:
        """``linear`` or ``cosine``; embeddings of texts are compared by their direction."""
        return self.head or ("cosine" if self.head_init == "text" else "linear")

    @property
    def adapted_modules(self) -> tuple[str, ...]:
        """The names of the modules that get adapters."""
        if self.lora_target_modules is not None:
            return tuple(self.lora_target_modules)
        return LORA_MODULES[:-1] if self.use_dora else LORA_MODULES

    @property
    def adapter_alpha(self) -> int:
        """The numerator of the adapters' scale."""
        assert self.lora_r is not None
        return 2 * self.lora_r if self.lora_alpha is None else self.lora_alpha


def parse_trainable(trainable: str) -> int | None:
    """Return N of ``last:N``, or None for ``all`` and ``head``; InputError for anything else."""
    if trainable in ("all", "head"):
        return None
    word, _, number = trainable.partition(":")
    if word != "last" or not number.isdigit() or int(number) < 1:
        raise InputError(f"--trainable is {trainable!r}; use all, head or last:N with N >= 1.")
    return int(number)
