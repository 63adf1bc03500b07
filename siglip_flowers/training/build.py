"""Build a run: check its arguments, build its model and its Trainer."""

import copy
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import torch

from siglip_flowers.base.errors import InputError
from siglip_flowers.config import AugmentationArguments, DataArguments, ModelArguments
from siglip_flowers.config.rules import (
    TRAIN_RULES,
    check_rules,
    merge_options,
    needs_text_tower,
    uses_deepspeed,
    uses_fsdp,
)
from siglip_flowers.config.saved import dump_configuration
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.data.augmentation import check_patch_augmentation
from siglip_flowers.data.pixels.tensors import PixelDataset, PixelForm, read_form
from siglip_flowers.data.sources.load import check_data_arguments
from siglip_flowers.data.splits import ClassificationData, draw_every_class
from siglip_flowers.evaluation.features import fit_head
from siglip_flowers.inference.engine import count_tokens
from siglip_flowers.model.adapters import add_adapters, check_peft
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.contrastive import ContrastiveSiglip, load_contrastive
from siglip_flowers.model.heads import keep_known_heads, set_calibration, set_text_head
from siglip_flowers.model.loading import (
    check_image_size,
    load_checkpoint_config,
    load_classifier,
    refuse_malformed,
    set_attention,
    vision_config_of,
)
from siglip_flowers.model.text_head import (
    check_text_tower,
    load_calibration,
    read_prompts,
    zero_shot_head,
)
from siglip_flowers.model.towers import (
    check_max_num_patches,
    check_trainable,
    freeze,
    get_vision_class,
    is_naflex,
)
from siglip_flowers.runtime.devices import choose_attention, count_cores
from siglip_flowers.runtime.memory import fit_workers
from siglip_flowers.tracking.kinds import check_trackers
from siglip_flowers.training.objectives import name_activation
from siglip_flowers.training.output import check_output_dir, check_overwritten

logger = logging.getLogger(__name__)

# Released encoders, from base size up, lose their features at higher rates than this.
HIGHEST_USUAL_LEARNING_RATE, BASE_HIDDEN_SIZE = 5e-5, 768


@dataclass
class RunArguments:
    """Everything that decides a run."""

    data: DataArguments
    augmentation: AugmentationArguments
    model: ModelArguments
    training: SiglipTrainingArguments

    @property
    def options(self) -> SimpleNamespace:
        """All options as attributes of one object, as rules take them."""
        return merge_options(self.data, self.augmentation, self.model, self.training)

    def dump(self) -> str:
        """Return the configuration as YAML text that ``--config`` reads back."""
        return dump_configuration(self.data, self.augmentation, self.model, self.training)


class TrainingExtension:
    """What a feature does in a training run; each step does nothing unless it is overridden.

    A feature's ``extension.py`` has a class ``Extension``, which is made with an instance of the
    feature's ``EXTENDS["train"]`` if any of its options is set.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    def check(self, arguments: RunArguments) -> None:
        """Raise InputError or RunError for what cannot work; called by the main process.

        This is before data or weights are read.
        """

    def finish(self, arguments: RunArguments) -> None:
        """Do the feature's work on the finished run; called by the main process."""


def check_arguments(arguments: RunArguments) -> None:
    """Check everything that can be checked before data, weights or training: see the errors."""
    training, options, model = arguments.training, arguments.options, arguments.model
    output_dir, checkpoint = Path(str(training.output_dir)), model.model_name_or_path
    check_rules(TRAIN_RULES, options)
    if not training.overwrite_output_dir:
        check_output_dir(output_dir, arguments.dump(), resume=training.resume == "auto")
    else:
        read = (model.model_name_or_path, model.prompt_templates, model.class_prompts)
        check_overwritten(output_dir, (*read, arguments.data.data_dir))
    check_trackers(training.report_to)
    check_data_arguments(arguments.data)
    vision_config = vision_config_of(load_checkpoint_config(checkpoint))
    if model.image_size is not None:
        check_image_size(model.image_size, vision_config)
    train_size = arguments.augmentation.train_image_size
    if train_size is not None:
        check_image_size(train_size, vision_config, "train_image_size")
        size: Any = model.image_size or vision_config.image_size
        if train_size > size:
            raise InputError(
                f"--train_image_size {train_size} is larger than the {size} pixels of evaluation; "
                "lower it, or raise --image_size."
            )
    check_max_num_patches(model.max_num_patches, vision_config)
    if is_naflex(vision_config):
        check_patch_augmentation(arguments.augmentation)
        if training.patch_drop:
            raise InputError(
                f"--patch_drop {training.patch_drop} is for fixed-resolution checkpoints, and "
                f"{checkpoint} is a NaFlex one; remove it, or lower --max_num_patches."
            )
    check_trainable(model.trainable, vision_config.num_hidden_layers)
    if model.attn_implementation is not None:
        with torch.device("meta"), refuse_malformed(checkpoint):
            tower: Any = get_vision_class(vision_config)(vision_config)  # type: ignore[arg-type]
        set_attention(tower, model.attn_implementation)
    if model.lora_r is not None:
        check_peft()
    if needs_text_tower(options):
        check_text_tower(checkpoint)
    is_released = vision_config.hidden_size >= BASE_HIDDEN_SIZE and not model.from_scratch
    is_tuned = model.trainable != "head" and model.lora_r is None
    if is_released and is_tuned and training.learning_rate > HIGHEST_USUAL_LEARNING_RATE:
        logger.warning(
            "--learning_rate %g is high for a released SigLIP encoder, which tends to lose its "
            "features above %g; 1e-5 to 3e-5 is usual.",
            training.learning_rate,
            HIGHEST_USUAL_LEARNING_RATE,
        )


def fits_on_features(arguments: RunArguments) -> bool:
    """Return whether a run trains nothing that a logistic regression on features would not."""
    model, training = arguments.model, arguments.training
    return (
        model.trainable == "head"
        and model.head_init == "random"
        and model.head_kind == "linear"
        and not arguments.augmentation.augment
        and training.objective == "cross_entropy"
        and training.label_smoothing_factor == 0
        and training.class_balance in ("none", "weights")
        and training.class_balance_strength == 1
        and training.patch_drop == 0
        and training.ema is None
        and not uses_deepspeed()
        and not uses_fsdp()
    )


def list_pixel_forms(arguments: RunArguments, processor: Any) -> dict[str, PixelForm]:
    """Return by split the pixels that a run decodes: those of training may be larger."""
    form, options = read_form(processor), arguments.augmentation
    larger = form.scale(options.train_resize_scale) if options.augment else form
    return {"train": larger, "validation": form, "test": form}


def build_model(
    arguments: RunArguments, data: ClassificationData, processor: Any
) -> SiglipClassifier | ContrastiveSiglip:
    """Build the model that the arguments describe: its head started, its frozen parts frozen."""
    options, training = arguments.model, arguments.training
    model: SiglipClassifier | ContrastiveSiglip
    if training.objective == "contrastive":
        model = load_contrastive(
            options.model_name_or_path,
            data.class_names,
            read_prompts(data.class_names, options),
            image_size=options.image_size,
            train_text_tower=training.train_text_tower,
        )
    else:
        model = load_classifier(
            options.model_name_or_path,
            data.class_names,
            pooling=options.pooling,
            head=options.head_kind,
            # The text tower's embeddings are compared to images by their direction.
            normalize_features=options.head_init == "text" and options.head_kind == "linear",
            activation=name_activation(training),
            image_size=options.image_size,
            from_scratch=options.from_scratch,
        )
        _start_head(model, arguments, data, processor)
    if options.attn_implementation is None:
        dtype = torch.bfloat16 if training.bf16 else torch.float32
        tokens = count_tokens(model.vision_model.config, processor)
        compiled = bool(training.torch_compile)
        model.vision_model.set_attn_implementation(
            choose_attention(training.device, dtype, tokens, compiled=compiled)
        )
    else:
        set_attention(model, options.attn_implementation)
    freeze(model.vision_model, options.trainable)
    if options.lora_r is not None:
        add_adapters(model, options)
    return model


def _start_head(
    model: SiglipClassifier, arguments: RunArguments, data: ClassificationData, processor: Any
) -> None:
    options, training = arguments.model, arguments.training
    checkpoint = options.model_name_or_path
    if options.head_init == "text":
        prompts = read_prompts(data.class_names, options)
        set_text_head(model, zero_shot_head(checkpoint, data.class_names, prompts))
    elif options.head_init == "probe":
        fit_head(model, processor, data, arguments.data, training)
    elif not options.from_scratch and not fits_on_features(arguments):
        keep_known_heads(model, checkpoint)
        calibration = load_calibration(checkpoint) if options.head_kind == "cosine" else None
        if calibration is not None:
            set_calibration(model, *calibration)


def draw_train_sample(arguments: RunArguments, data: ClassificationData) -> datasets.Dataset:
    """Return the training images that are evaluated, unaugmented, to show over-fitting.

    There is at least one of each class, whose mean features the OOD detector knows it by.
    """
    count = arguments.training.train_eval_samples
    return draw_every_class(data.splits["train"], count, arguments.data.split_seed)


def choose_workers(
    training: SiglipTrainingArguments, pixels: PixelDataset, forms: Mapping[str, PixelForm]
) -> int:
    """Return how many processes read images: as requested, if shared memory has room.

    By default up to 8 per GPU; none if the images come from the cache: they are copied faster than
    another process passes them on, 64 images of 280 pixels in 6 ms instead of 24.
    """
    workers = training.dataloader_num_workers
    if workers is None:
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        decodes = training.device.type == "cuda" and pixels.cached is None
        workers = min(8, count_cores() // local_processes) if decodes else 0
    batch_bytes = max(
        math.prod(forms["train"].shape) * training.per_device_train_batch_size,
        math.prod(forms["validation"].shape) * training.per_device_eval_batch_size,
    )
    # Those of a step, and one that accelerate fetches ahead, stay while evaluation has its own.
    used, ahead = training.gradient_accumulation_steps + 5, training.dataloader_prefetch_factor or 2
    return fit_workers(workers, batch_bytes, used, ahead)


def copy_for_trainer(
    training: SiglipTrainingArguments, pixels: PixelDataset, forms: Mapping[str, PixelForm]
) -> SiglipTrainingArguments:
    """Return the arguments for the Trainer, which does less by itself than in transformers."""
    # Trackers are added by hand: they outlive the Trainer. Batches are shrunk by the caller,
    # since the Trainer would continue with smaller steps, from weights that were already changed.
    copied = copy.copy(training)
    copied.auto_find_batch_size = False
    # The objective smooths its targets itself. With sigmoids the Trainer would warn that it cannot.
    copied.label_smoothing_factor = 0.0
    workers = copied.dataloader_num_workers = choose_workers(training, pixels, forms)
    # torch refuses both settings if there are none. Workers that stay would draw the images of the
    # first epoch in every one.
    keep = training.dataloader_persistent_workers
    stays = training.device.type == "cuda" if keep is None else keep
    copied.dataloader_persistent_workers = (
        workers > 0 and stays and training.class_balance != "sampler"
    )
    if workers == 0:
        copied.dataloader_prefetch_factor = None
    copied.report_to = []
    if training.lr_scheduler_type == "reduce_lr_on_plateau":
        mode = "max" if training.greater_is_better else "min"
        copied.lr_scheduler_kwargs = {**(training.lr_scheduler_kwargs or {}), "mode": mode}
    return copied
