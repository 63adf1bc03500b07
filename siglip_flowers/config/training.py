"""How the model is trained: the package's options joined to those of the Trainer."""

import os
from dataclasses import dataclass

import torch
from transformers import TrainingArguments

from siglip_flowers.config.options import TrainingOptions
from siglip_flowers.config.precision import computes_bfloat16


@dataclass
class SiglipTrainingArguments(TrainingOptions, TrainingArguments):  # type: ignore[misc]
    """``transformers.TrainingArguments`` with the recipe defaults of fine-tuning SigLIP.

    A field of both has the default and the help text of ``TrainingOptions``.
    """

    def __post_init__(self) -> None:
        TrainingOptions.__post_init__(self)
        # The parent refuses bf16 on a machine without an accelerator unless told to use the CPU.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        cuda = torch.cuda.is_available() and not self.use_cpu
        if self.bf16 is None:
            device_type = "cuda" if cuda else "cpu" if self.use_cpu else "other"
            self.bf16 = not self.fp16 and computes_bfloat16(device_type)
        if self.dataloader_num_workers is None:
            local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            self.dataloader_num_workers = min(8, _count_cores() // local_ranks) if cuda else 0
        keep = self.dataloader_persistent_workers
        # Where there are none, torch refuses to keep them.
        self.dataloader_persistent_workers = self.dataloader_num_workers > 0 and (
            cuda if keep is None else keep
        )
        if not cuda:
            self.dataloader_pin_memory = False
        elif self.tf32 is None:
            # Autocast leaves few products in float32; those may be computed in TensorFloat-32.
            self.tf32 = torch.cuda.get_device_capability() >= (8, 0) or None
        # The parent knows neither Aim nor what is not said.
        trackers, self.report_to = self.report_to, ["none"]
        TrainingArguments.__post_init__(self)
        self.report_to = trackers

    @property
    def checkpoint_dir(self) -> str:
        """The directory that holds ``checkpoint-STEP`` directories."""
        assert self.output_dir is not None
        return os.path.join(self.output_dir, "checkpoints")


def _count_cores() -> int:
    # Those of this process: a container or a batch system may leave it a few of the machine's.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
