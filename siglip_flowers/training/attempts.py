"""Train to the end, with a smaller batch if memory runs out and the arguments allow it."""

import copy
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache
from transformers import set_seed

from siglip_flowers.base.errors import RunError
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.data.splits import ClassificationData
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.contrastive import ContrastiveSiglip
from siglip_flowers.runtime.memory import is_out_of_memory
from siglip_flowers.training.build import RunArguments, build_model
from siglip_flowers.training.output import find_checkpoint
from siglip_flowers.training.trainer import SiglipTrainer

logger = logging.getLogger(__name__)


class TooLittleMemoryError(RunError):
    """The batch is too large for the memory, and may or can not be made smaller."""


def train_to_the_end(
    arguments: RunArguments,
    data: ClassificationData,
    model: SiglipClassifier | ContrastiveSiglip,
    processor: Any,
    checkpoint: str | None,
    prepare: Callable[[SiglipTrainer], None],
) -> SiglipTrainer:
    """Train, and if memory runs out train again with a smaller batch; return the Trainer.

    Args:
        arguments: Of the run.
        data: All splits.
        model: As :func:`~siglip_flowers.training.build.build_model` returns it.
        processor: Its image processor.
        checkpoint: Resume from this one.
        prepare: Called with every Trainer before it trains.

    Raises:
        TooLittleMemoryError: Memory ran out, and the batch may not be halved.
    """
    while True:
        trainer = SiglipTrainer(arguments, data, model, processor)
        prepare(trainer)
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
            return trainer
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # The error is gone by here, and with it the frames that held the batch's memory.
        del trainer
        training = shrink_batch(arguments.training, PartialState().num_processes)
        arguments = dataclasses.replace(arguments, training=training)
        clear_device_cache(garbage_collection=True)
        logger.warning(
            "Memory ran out; continuing with --per_device_train_batch_size %d and "
            "--gradient_accumulation_steps %d%s.",
            training.per_device_train_batch_size,
            training.gradient_accumulation_steps,
            # They are the other images of the micro-batch.
            ", which halves the negatives of each image"
            if training.objective == "contrastive"
            else "",
        )
        # From the beginning or the newest checkpoint: the step that failed left nothing behind.
        set_seed(training.seed)
        model = build_model(arguments, data, processor)
        checkpoint = find_checkpoint(Path(str(training.output_dir)))


def shrink_batch(
    training: SiglipTrainingArguments, num_processes: int = 1
) -> SiglipTrainingArguments:
    """Halve the batch of a device and double the accumulation: the optimizer sees the same batch.

    Raises:
        TooLittleMemoryError: ``--auto_find_batch_size`` is off, the batch is odd, or there are
            several processes, of which the others wait for this one in a step.
    """
    size, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    if size % 2 or num_processes > 1 or not training.auto_find_batch_size:
        half = (
            f"--per_device_train_batch_size {size // 2} --gradient_accumulation_steps "
            f"{2 * accumulation}, or "
        )
        raise TooLittleMemoryError(
            f"There is too little memory for --per_device_train_batch_size {size}. Use "
            f"{half if size > 1 else ''}--gradient_checkpointing true; a single process halves "
            "an even batch by itself with --auto_find_batch_size true."
        )
    smaller = copy.copy(training)
    smaller.per_device_train_batch_size = size // 2
    smaller.gradient_accumulation_steps = 2 * accumulation
    return smaller
