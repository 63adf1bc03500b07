"""Put a run together: check the arguments, build the model and the Trainer."""

import copy
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import EarlyStoppingCallback, EvalPrediction
from transformers.trainer_callback import ProgressCallback

from siglip_flowers.config import (
    AugmentationArguments,
    DataArguments,
    FlowersTrainingArguments,
    ModelArguments,
)
from siglip_flowers.data import FlowerData, check_data_arguments
from siglip_flowers.data.augment import BatchAugmenter
from siglip_flowers.data.pixels import PixelDataset, PixelNormalizer, collate_pixels
from siglip_flowers.data.splits import draw_rows
from siglip_flowers.errors import RunError
from siglip_flowers.metrics.modules import compute_metrics
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.loading import (
    check_image_size,
    freeze,
    load_checkpoint_config,
    load_classifier,
    vision_config_of,
)
from siglip_flowers.model.losses import cross_entropy_loss
from siglip_flowers.parsing import dump_configuration
from siglip_flowers.training.output import check_output_dir
from siglip_flowers.training.progress import LossProgressCallback
from siglip_flowers.training.trackers import build_tracker_callbacks
from siglip_flowers.training.trainer import FlowersTrainer

logger = logging.getLogger(__name__)

# Released encoders, from base size up, lose their features at higher rates than this.
HIGHEST_USUAL_LEARNING_RATE = 5e-5
BASE_HIDDEN_SIZE = 768
# A checkpoint holds the weights and two moments of AdamW, in float32.
CHECKPOINT_BYTES_PER_PARAMETER = 12


@dataclass
class RunArguments:
    """Everything that decides a run."""

    data: DataArguments
    augmentation: AugmentationArguments
    model: ModelArguments
    training: FlowersTrainingArguments

    def dump(self) -> str:
        """Return the configuration as YAML text that ``--config`` reads back."""
        return dump_configuration(self.data, self.augmentation, self.model, self.training)


def check_arguments(arguments: RunArguments) -> None:
    """Check everything that can be checked before data, weights or training: see the errors."""
    training = arguments.training
    if not training.overwrite_output_dir:
        check_output_dir(Path(str(training.output_dir)))
    check_data_arguments(arguments.data)
    checkpoint = arguments.model.model_name_or_path
    vision_config = vision_config_of(load_checkpoint_config(checkpoint))
    if arguments.model.image_size is not None:
        check_image_size(arguments.model.image_size, vision_config.patch_size)
    released = vision_config.hidden_size >= BASE_HIDDEN_SIZE and not arguments.model.from_scratch
    if (
        released
        and arguments.model.trainable != "head"
        and training.learning_rate > HIGHEST_USUAL_LEARNING_RATE
    ):
        logger.warning(
            "--learning_rate %g is high for a released SigLIP encoder, which tends to lose its "
            "features above %g; 1e-5 to 3e-5 is usual.",
            training.learning_rate,
            HIGHEST_USUAL_LEARNING_RATE,
        )


def build_model(arguments: RunArguments, class_names: list[str]) -> SiglipClassifier:
    """Build the classifier that the arguments describe, frozen where they say so."""
    options = arguments.model
    model = load_classifier(
        options.model_name_or_path,
        class_names,
        pooling=options.pooling,
        image_size=options.image_size,
        from_scratch=options.from_scratch,
        attn_implementation=options.attn_implementation,
    )
    freeze(model, options.trainable)
    return model


def build_trainer(
    arguments: RunArguments, data: FlowerData, model: SiglipClassifier, processor: Any
) -> FlowersTrainer:
    """Put data, model, objective and callbacks together."""
    training = arguments.training
    size, resample = processor.size["height"], processor.resample
    augmenter, train_size = None, size
    if arguments.augmentation.augment:
        train_size = round(size * arguments.augmentation.train_resize_scale)
        augmenter = BatchAugmenter(
            arguments.augmentation, size, model.config.num_labels, training.seed
        )
    train_sample = draw_rows(
        data.splits["train"], training.train_eval_samples, arguments.data.split_seed, "train"
    )
    activation = model.config.activation

    def measure(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        return compute_metrics(logits, labels, activation)

    def loss_function(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy_loss(logits, targets, training.label_smoothing_factor)

    callbacks: list[Any] = build_tracker_callbacks(training.report_to)
    if training.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(training.early_stopping_patience))
    # Aim's callback is ours to add: the Trainer refuses the name.
    trainer_arguments = copy.copy(training)
    trainer_arguments.report_to = [name for name in training.report_to if name != "aim"]
    trainer = FlowersTrainer(
        loss_function=loss_function,
        normalizer=PixelNormalizer(processor),
        augmenter=augmenter,
        model=model,
        args=trainer_arguments,
        train_dataset=PixelDataset(data.splits["train"], train_size, resample),
        eval_dataset={
            "train": PixelDataset(train_sample, size, resample),
            "validation": PixelDataset(data.splits["validation"], size, resample),
        },
        data_collator=collate_pixels,
        compute_metrics=measure,
        callbacks=callbacks,
    )
    if not training.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(LossProgressCallback())
    return trainer


def check_free_disk(model: SiglipClassifier, training: FlowersTrainingArguments) -> None:
    """Raise RunError if the checkpoints of the run would not fit on the disk."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # The best and the newest ones, one being written, and the final weights.
    kept = (training.save_total_limit or 10) + 2
    needed = parameters * (CHECKPOINT_BYTES_PER_PARAMETER * kept + 4)
    directory = Path(str(training.output_dir))
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise RunError(
            f"The disk of {directory} has {free / 1e9:.1f} GB free, but this run's checkpoints "
            f"need {needed / 1e9:.1f} GB; make room, name another --output_dir, or keep fewer "
            "with --save_total_limit."
        )
