"""What can be configured, in four dataclasses: data, augmentation, model and training.

The help text of a field is its only documentation. Values are validated in ``__post_init__``
because argparse checks neither defaults nor values that came from a YAML file.
"""

import os
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from siglip_flowers.errors import InputError

DATA_SOURCES = ("oxford", "hub", "folder", "procedural")
SPLIT_PROTOCOLS = ("swapped", "official")
HEAD_INITS = ("random", "text", "probe")
OBJECTIVES = ("cross_entropy", "sigmoid", "contrastive")
TRACKERS = ("aim", "wandb", "tensorboard", "trackio")


def check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    """Raise InputError unless the option has one of the values, or none."""
    if value is not None and value not in choices:
        raise InputError(f"--{name} is {value!r}; choose one of {', '.join(choices)}.")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise InputError unless low <= value <= high."""
    if not low <= value <= high:
        raise InputError(f"--{name} is {value}; it must lie between {low:g} and {high:g}.")


def check_positive(name: str, value: float | None) -> None:
    """Raise InputError unless the option is greater than 0, or none."""
    if value is not None and value <= 0:
        raise InputError(f"--{name} is {value}; it must be greater than 0.")


@dataclass
class DataArguments:
    """Where the pictures come from and how they are split."""

    data_source: str | None = field(
        default=None,
        metadata={
            "help": "oxford, hub, folder or procedural. Left out, it follows from the other "
            "options: hub with --dataset_name; oxford where --data_dir holds the original files; "
            "folder with any other --data_dir; else oxford, downloaded."
        },
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "A directory with 102flowers.tgz (or the unpacked jpg/), imagelabels.mat and "
            "setid.mat; or an image folder: train/, validation/ and test/ with one folder a class, "
            "or one folder a class directly, to be cut into splits by --seed."
        },
    )
    oxford_url: str = field(
        default="https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
        metadata={"help": "Where the three original files are downloaded from (a mirror, say)."},
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A dataset on the Hugging Face Hub, or a local one."}
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "The configuration of --dataset_name."}
    )
    image_column_name: str = field(
        default="image", metadata={"help": "The image column of --dataset_name."}
    )
    label_column_name: str = field(
        default="label", metadata={"help": "The label column of --dataset_name."}
    )
    train_split_name: str = field(
        default="train", metadata={"help": "The split of --dataset_name to train on."}
    )
    validation_split_name: str = field(
        default="validation",
        metadata={
            "help": "The split of --dataset_name to validate on; cut from the training split "
            "(--validation_fraction, stratified, by --split_seed) where it does not exist."
        },
    )
    test_split_name: str = field(
        default="test", metadata={"help": "The split of --dataset_name to test on."}
    )
    validation_fraction: float = field(
        default=0.15,
        metadata={"help": "Share of the rows that a missing validation (or test) split gets."},
    )
    split_protocol: str = field(
        default="swapped",
        metadata={
            "help": "swapped: 6149 train / 1020 validation / 1020 test, the original train and "
            "test ids exchanged; official: 1020 / 1020 / 6149. For the oxford source only."
        },
    )
    split_seed: int = field(
        default=0,
        metadata={"help": "Seed of every cut: missing splits, --shots, --max_*_samples."},
    )
    shots_seed: int | None = field(
        default=None,
        metadata={
            "help": "Seed of --shots and --max_train_samples alone, which leaves the evaluated "
            "pictures as they are; default: --split_seed."
        },
    )
    shots: int | None = field(
        default=None, metadata={"help": "Train on this many pictures a class only."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many pictures at most, drawn at random."}
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={"help": "Evaluate on this many pictures of each split at most, drawn at random."},
    )
    procedural_images_per_class: int = field(
        default=60,
        metadata={"help": "Procedural pictures a class, over all three splits (3:1:1)."},
    )
    procedural_image_size: int = field(
        default=64, metadata={"help": "Side of a procedural picture, in pixels."}
    )
    procedural_seed: int = field(default=0, metadata={"help": "Seed of the procedural pictures."})
    skip_corrupt_images: bool = field(
        default=False,
        metadata={"help": "Drop and count unreadable pictures instead of stopping."},
    )
    allow_duplicates: bool = field(
        default=False,
        metadata={"help": "Accept pictures that stand in more than one split."},
    )
    image_workers: int | None = field(
        default=None,
        metadata={"help": "Threads that check pictures before training; default: one a core."},
    )

    def __post_init__(self) -> None:
        check_choice("data_source", self.data_source, DATA_SOURCES)
        check_choice("split_protocol", self.split_protocol, SPLIT_PROTOCOLS)
        for name in ("shots", "max_train_samples", "max_eval_samples", "image_workers"):
            check_positive(name, getattr(self, name))
        if not 0.0 < self.validation_fraction < 0.5:
            raise InputError(
                f"--validation_fraction is {self.validation_fraction}; it must lie between 0 and "
                "0.5, since a missing test split takes the same share."
            )
        if self.procedural_images_per_class < 5:
            raise InputError(
                f"--procedural_images_per_class is {self.procedural_images_per_class}; it must be "
                "at least 5, so that every split has a picture of every class."
            )
        if self.procedural_image_size < 16:
            raise InputError(
                f"--procedural_image_size is {self.procedural_image_size}; it must be at least 16."
            )
        if self.data_source == "hub" and self.dataset_name is None:
            raise InputError("--data_source hub needs --dataset_name.")
        if self.data_source == "folder" and self.data_dir is None:
            raise InputError("--data_source folder needs --data_dir.")
        if self.dataset_name is not None and self.data_source not in (None, "hub"):
            raise InputError(
                f"--dataset_name goes with --data_source hub, not {self.data_source}; drop one."
            )


@dataclass
class AugmentationArguments:
    """How training pictures are varied; evaluation pictures never are."""

    augment: bool = field(
        default=True, metadata={"help": "Vary training pictures; false trains on them as they are."}
    )
    train_resize_scale: float = field(
        default=1.15,
        metadata={
            "help": "Pictures are decoded to this multiple of the model's size before a training "
            "crop is cut, so that a crop still holds detail; 1 where pictures are that small."
        },
    )
    crop_min_scale: float = field(
        default=0.5,
        metadata={"help": "Smallest share of a picture's area that a random resized crop keeps."},
    )
    horizontal_flip: float = field(
        default=0.5, metadata={"help": "Probability of mirroring a picture left to right."}
    )
    color_jitter: float = field(
        default=0.2,
        metadata={"help": "Brightness, contrast and saturation change by up to this share."},
    )
    random_erasing: float = field(
        default=0.0, metadata={"help": "Probability of blanking a random rectangle."}
    )
    mixup_alpha: float = field(
        default=0.0, metadata={"help": "Beta parameter of mixup (Zhang et al. 2018); 0 is off."}
    )
    cutmix_alpha: float = field(
        default=0.0, metadata={"help": "Beta parameter of CutMix (Yun et al. 2019); 0 is off."}
    )

    def __post_init__(self) -> None:
        for name in ("horizontal_flip", "random_erasing"):
            check_range(name, getattr(self, name), 0.0, 1.0)
        check_range("color_jitter", self.color_jitter, 0.0, 0.99)
        check_range("crop_min_scale", self.crop_min_scale, 0.01, 1.0)
        check_range("train_resize_scale", self.train_resize_scale, 1.0, 4.0)
        for name in ("mixup_alpha", "cutmix_alpha"):
            check_range(name, getattr(self, name), 0.0, 100.0)


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


def parse_wise_ft(wise_ft: str | None) -> list[float]:
    """Return the alphas to try: none, the one given, or 0, 0.1, ..., 1 for ``sweep``."""
    if wise_ft is None:
        return []
    if wise_ft == "sweep":
        return [tenth / 10 for tenth in range(11)]
    try:
        alpha = float(wise_ft)
    except ValueError:
        alpha = -1.0
    if not 0.0 <= alpha <= 1.0:
        raise InputError(f"--wise_ft is {wise_ft!r}; use a number from 0 to 1, or sweep.")
    return [alpha]


@dataclass
class FlowersTrainingArguments(TrainingArguments):
    """``transformers.TrainingArguments`` with the recipe defaults of fine-tuning SigLIP.

    The fields up to the blank comment line change a default of the parent; the others are new.
    """

    output_dir: str | None = field(
        default="results",
        metadata={"help": "Where model, checkpoints, metrics and pictures are written."},
    )
    per_device_train_batch_size: int = field(
        default=64, metadata={"help": "Training pictures per device and step."}
    )
    per_device_eval_batch_size: int = field(
        default=128, metadata={"help": "Evaluation pictures per device and step."}
    )
    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes over the train split."})
    learning_rate: float = field(
        default=2e-5,
        metadata={
            "help": "Peak learning rate of the encoder. Released SigLIP checkpoints want 1e-5 to "
            "3e-5; small or untrained encoders want more."
        },
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Not on biases, norms, probe."})
    lr_scheduler_type: str = field(  # type: ignore[assignment]
        default="cosine", metadata={"help": "Learning-rate schedule after the warm-up."}
    )
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Warm-up: a number of steps, or below 1 a share of all."}
    )
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "bfloat16 autocast; default: where the device computes it natively."},
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log rows."})
    eval_strategy: str = field(  # type: ignore[assignment]
        default="epoch", metadata={"help": "When to evaluate: epoch, steps or no."}
    )
    save_strategy: str = field(  # type: ignore[assignment]
        default="epoch", metadata={"help": "When to save a checkpoint: epoch, steps, best or no."}
    )
    save_total_limit: int | None = field(
        default=1, metadata={"help": "Checkpoints to keep besides the best one."}
    )
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Keep the weights of the best evaluation, not the last."}
    )
    metric_for_best_model: str | None = field(
        default="validation_accuracy", metadata={"help": "What the best evaluation is best in."}
    )
    greater_is_better: bool | None = field(
        default=True, metadata={"help": "Whether a larger --metric_for_best_model is better."}
    )
    report_to: list[str] = field(  # type: ignore[assignment]
        default_factory=lambda: ["none"],
        metadata={"help": "Trackers: any of aim, wandb, tensorboard, trackio; or none."},
    )
    dataloader_num_workers: int | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Processes that decode pictures; default: 0 on CPU, up to 8 a GPU."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Stays false: the input path needs every column."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Stays false: every trained parameter has a gradient."}
    )
    #
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace what an earlier run left in --output_dir."}
    )
    head_learning_rate: float | None = field(
        default=1e-3,
        metadata={"help": "Peak learning rate of a fresh head; null: --learning_rate."},
    )
    train_eval_samples: int = field(
        default=1020,
        metadata={"help": "Training pictures, unaugmented, evaluated beside the validation split."},
    )
    objective: str = field(
        default="cross_entropy",
        metadata={
            "help": "cross_entropy: softmax over the classes; sigmoid: SigLIP's pairwise sigmoid "
            "loss between pictures and classes; contrastive: the same between pictures and prompts "
            "of their classes, training both towers."
        },
    )
    class_weights: str = field(
        default="none",
        metadata={"help": "balanced: weigh classes by inverse frequency (cross_entropy only)."},
    )
    train_text_tower: bool = field(
        default=True, metadata={"help": "contrastive: train the text tower too; false locks it."}
    )
    ema: float | None = field(
        default=None,
        metadata={"help": "Decay of a moving average of the weights, which is evaluated and kept."},
    )
    wise_ft: str | None = field(
        default=None,
        metadata={
            "help": "Weight-space ensemble of the start (text or probe head) and the fine-tuned "
            "model: an alpha from 0 (start) to 1, or sweep to choose it on the validation split."
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a new best."}
    )

    def __post_init__(self) -> None:
        for name in ("learning_rate", "head_learning_rate", "num_train_epochs"):
            check_positive(name, getattr(self, name))
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
            check_positive(name, getattr(self, name))
        for name in ("train_eval_samples", "early_stopping_patience"):
            check_positive(name, getattr(self, name))
        check_range("label_smoothing_factor", self.label_smoothing_factor, 0.0, 0.99)
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("class_weights", self.class_weights, ("none", "balanced"))
        if self.class_weights == "balanced" and self.objective != "cross_entropy":
            raise InputError(
                f"--class_weights balanced goes with --objective cross_entropy, not "
                f"{self.objective}; drop it."
            )
        if self.ema is not None:
            check_range("ema", self.ema, 0.0, 0.999999)
        parse_wise_ft(self.wise_ft)
        self.report_to = [name for name in self.report_to if name != "none"]
        for name in self.report_to:
            check_choice("report_to", name, TRACKERS)
        # The parent refuses bf16 on a machine without an accelerator unless told to use the CPU.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        cuda = torch.cuda.is_available() and not self.use_cpu
        if self.bf16 is None:
            self.bf16 = not self.fp16 and _computes_bf16(cuda, self.use_cpu)
        if self.dataloader_num_workers is None:
            local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            self.dataloader_num_workers = (
                min(8, (os.cpu_count() or 1) // local_ranks) if cuda else 0
            )
        if not cuda:
            self.dataloader_pin_memory = False
        super().__post_init__()

    @property
    def checkpoint_dir(self) -> str:
        """The directory that holds ``checkpoint-STEP`` directories."""
        assert self.output_dir is not None
        return os.path.join(self.output_dir, "checkpoints")


def _computes_bf16(cuda: bool, use_cpu: bool) -> bool:
    if cuda:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # A processor without these instructions emulates bfloat16, slower than float32.
    return use_cpu and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
