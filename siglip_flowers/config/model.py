"""Which encoder is trained, and which parts of it."""

from dataclasses import dataclass, field

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.checks import check_choice, check_positive, check_range

HEAD_INITS = ("random", "text", "probe")
# Of the encoder layers, and fc1 and fc2 also of the pooling head; attention is that of the head.
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "attention")


@dataclass
class ModelArguments:
    """Which encoder, and what is put on it."""

    model_name_or_path: str = field(
        default="google/siglip2-base-patch16-224",
        metadata={
            "help": "A SigLIP or SigLIP 2 checkpoint, fixed-resolution or NaFlex (two towers or "
            "vision only): a directory or a Hub id. Only safetensors weights are read."
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
            "help": "Side of the images in pixels; position embeddings are interpolated where "
            "it is not the checkpoint's own."
        },
    )
    max_num_patches: int | None = field(
        default=None,
        metadata={
            "help": "Most patches of an image, for NaFlex checkpoints, which keep its aspect "
            "ratio; default: the checkpoint's own."
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

    lora_r: int | None = field(
        default=None,
        metadata={
            "help": "Rank of low-rank adapters (LoRA): only they and the head train, the encoder "
            "stays as it is. Needs the package peft. Default: no adapters."
        },
    )
    lora_alpha: int | None = field(
        default=None, metadata={"help": "Adapters count lora_alpha / lora_r; default: 2 lora_r."}
    )
    lora_dropout: float = field(
        default=0.05,
        metadata={"help": "Dropout before the adapters; not in the pooling head's attention."},
    )
    use_dora: bool = field(
        default=False,
        metadata={
            "help": "Weight-decomposed adapters (DoRA); the pooling head's attention, for which "
            "peft has none, stays as it is."
        },
    )
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": f"What gets adapters, of {', '.join(LORA_MODULES)} (the pooling head's); "
            "default: all of them."
        },
    )

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

    def __post_init__(self) -> None:
        check_choice("pooling", self.pooling, ("map", "mean"))
        check_choice("head_init", self.head_init, HEAD_INITS)
        check_positive("image_size", self.image_size)
        check_positive("max_num_patches", self.max_num_patches)
        parse_trainable(self.trainable)
        self._check_adapters()

    def _check_adapters(self) -> None:
        check_positive("lora_r", self.lora_r)
        check_positive("lora_alpha", self.lora_alpha)
        check_range("lora_dropout", self.lora_dropout, 0.0, 0.99)
        if self.lora_target_modules == []:
            raise InputError("--lora_target_modules is empty; leave it out to adapt all modules.")
        for name in self.lora_target_modules or ():
            check_choice("lora_target_modules", name, LORA_MODULES)
        if self.lora_r is None:
            for name in ("lora_alpha", "use_dora", "lora_target_modules"):
                if getattr(self, name):
                    raise InputError(f"--{name} needs adapters to act on; add --lora_r or drop it.")
            return
        if self.trainable != "all":
            raise InputError(
                f"--lora_r {self.lora_r} freezes the encoder and trains adapters on it, which "
                f"--trainable {self.trainable} contradicts; drop one of the two."
            )
        if self.from_scratch:
            raise InputError(
                f"--lora_r {self.lora_r} would adapt an encoder of random weights; drop "
                "--from_scratch."
            )
        if "attention" in (self.lora_target_modules or ()) and (
            self.use_dora or self.pooling != "map"
        ):
            option = "--use_dora" if self.use_dora else f"--pooling {self.pooling}"
            raise InputError(
                f"--lora_target_modules attention is the pooling head's attention, which {option} "
                "leaves out; drop one of the two."
            )


def parse_trainable(trainable: str) -> int | None:
    """Return N of ``last:N``, or None for ``all`` and ``head``; InputError for anything else."""
    if trainable in ("all", "head"):
        return None
    word, _, number = trainable.partition(":")
    if word != "last" or not number.isdigit() or int(number) < 1:
        raise InputError(f"--trainable is {trainable!r}; use all, head or last:N with N >= 1.")
    return int(number)
