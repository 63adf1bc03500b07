"""The Trainer's arguments, filled from our options."""

import os
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler

from siglip_flowers.base.environment import computes_bfloat16
from siglip_flowers.base.errors import InputError
from siglip_flowers.base.metric_names import is_higher_better
from siglip_flowers.config.training_options import TrainingOptions

# Settings of schedules that are words; the others are numbers.
WORDS = ("decay_type", "warmup_type", "threshold_mode")


@dataclass
class SiglipTrainingArguments(TrainingOptions, TrainingArguments):  # type: ignore[misc]
    """``transformers.TrainingArguments`` with the recipe defaults of fine-tuning SigLIP.

    The command line knows the fields of ``TrainingOptions`` only. The fields below are not options:
    the package works with these values alone.

    Raises:
        InputError: This machine or this version of transformers does not support an option.
    """

    # The input path needs every column.
    remove_unused_columns: bool = False
    # Every trained parameter has a gradient.
    ddp_find_unused_parameters: bool | None = False
    # Patience that was used up before a checkpoint stays used up after it.
    restore_callback_states_from_checkpoint: bool = True

    OPTIONS: ClassVar[type] = TrainingOptions

    def __post_init__(self) -> None:
        TrainingOptions.__post_init__(self)
        # The parent refuses bf16 on a machine without an accelerator unless told to use the CPU.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        cuda = torch.cuda.is_available() and not self.use_cpu
        if self.bf16 is None:
            device_type = "cuda" if cuda else "cpu" if self.use_cpu else "other"
            self.bf16 = not self.fp16 and computes_bfloat16(device_type)
            # Cards without bfloat16, as T4 and V100, train in float16 with loss scaling.
            self.fp16 = self.fp16 or (cuda and not self.bf16)
        if not cuda:
            self.dataloader_pin_memory = False
        elif self.tf32 is None:
            # float32 means float32, in training as in the evaluation that follows.
            self.tf32 = False
        # The re-entrant kind trains nothing below a frozen input.
        kwargs = {"use_reentrant": False} if self.gradient_checkpointing else None
        # The option has the name that all supported versions of transformers know; 5.24 renamed it.
        renamed = hasattr(self, "activation_checkpointing")
        name = "activation_checkpointing" if renamed else "gradient_checkpointing"
        setattr(self, name, self.gradient_checkpointing)
        setattr(self, f"{name}_kwargs", kwargs)
        self.greater_is_better = is_higher_better(self.metric_for_best_model)
        # The parent does not know Aim, and takes None for a choice of its own.
        trackers, self.report_to = self.report_to, ["none"]
        # Nor Muon, which the Trainer of this package builds itself.
        optimizer = self.optim
        if optimizer == "muon":
            self.optim = "adamw_torch_fused"
        # Their default depends on the data.
        workers = self.dataloader_num_workers
        if workers is None:
            self.dataloader_num_workers = 1
        try:
            TrainingArguments.__post_init__(self)
        except (ValueError, ImportError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(" ".join(str(error).split())) from error
        self.report_to, self.optim, self.dataloader_num_workers = trackers, optimizer, workers
        # A process has one GPU. With more, the Trainer would multiply the batch (DataParallel).
        self._n_gpu = min(self._n_gpu, 1)
        self._check_schedule()
        if self.fp16 and self.use_cpu:
            raise InputError("--fp16 has no effect on a CPU; remove it, or use --bf16 true.")

    def _check_schedule(self) -> None:
        """Raise InputError unless the schedule takes its settings."""
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=self.learning_rate)
        schedule = SchedulerType(self.lr_scheduler_type).value
        settings = self.lr_scheduler_kwargs or {}
        try:
            # transformers ignores those of a constant schedule; the run decides on the others.
            if schedule.startswith("constant") and settings:
                raise ValueError("it has no settings")
            for name, value in settings.items():
                if name in ("last_epoch", "mode"):
                    raise ValueError(f"{name} cannot be set")
                # They go wrong in the middle of the training, or unseen.
                if name not in WORDS and not (isinstance(value, (int, float)) and value >= 0):
                    raise ValueError(f"{name} is {value!r}; use a number of at least 0")
            get_scheduler(schedule, optimizer, 0, 10, settings)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise InputError(
                f"--lr_scheduler_kwargs {self.lr_scheduler_kwargs} does not fit "
                f"--lr_scheduler_type {schedule}: {str(error).rstrip('.')}."
            ) from error

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step, over all devices, processes and micro-batches."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps

    @property
    def precision(self) -> str:
        """The dtype that the encoder computes in: bfloat16, float16 or float32."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"

    @property
    def checkpoint_dir(self) -> str:
        """The directory that holds ``checkpoint-STEP`` directories."""
        return os.path.join(self.output_dir, "checkpoints")
