"""The three arms of training: the device's limit, the package, and the usual script."""

import copy
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    SiglipForImageClassification,
    SiglipVisionConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks import usual_script
from benchmarks.harness import Sample, Stopwatch, synchronize
from siglip_flowers.config import AugmentationArguments, DataArguments, ModelArguments
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.data.pixels.tensors import PixelNormalizer
from siglip_flowers.data.sources.load import load_data
from siglip_flowers.data.splits import ClassificationData
from siglip_flowers.model.loading import (
    load_checkpoint_config,
    load_image_processor,
    vision_config_of,
)
from siglip_flowers.runtime.allocator import keep_freed_memory
from siglip_flowers.runtime.devices import count_cores
from siglip_flowers.training.build import RunArguments, build_model
from siglip_flowers.training.trainer import SiglipTrainer

ARMS = ("limit", "ours", "usual")
LABELS = {"limit": "limit: batch on the device", "ours": "siglip_flowers", "usual": "usual script"}


@dataclass
class TrainingJob:
    """What all arms share: data, model, options, and how long a round is.

    Attributes:
        arguments: The run, as ``train.py`` would resolve it.
        data: The images.
        processor: The checkpoint's image processor.
        skip_steps: Steps at the start of a round that are not timed: set-up, and the batches that
            workers fetched ahead while nobody was waiting.
        steps: Steps that are.
    """

    arguments: RunArguments
    data: ClassificationData
    processor: Any
    skip_steps: int
    steps: int

    @property
    def device(self) -> torch.device:
        """Where the arms run."""
        return self.arguments.training.device

    def load_vision_config(self) -> SiglipVisionConfig:
        """Return the tower's configuration at the size that is trained."""
        checkpoint = self.arguments.model.model_name_or_path
        config = copy.deepcopy(vision_config_of(load_checkpoint_config(checkpoint)))
        assert isinstance(config, SiglipVisionConfig), "the arms compare fixed-resolution towers"
        config.image_size = self.processor.size["height"]
        return config

    @property
    def images(self) -> int:
        """Images in the timed steps."""
        return self.steps * self.arguments.training.per_device_train_batch_size


def prepare_job(
    model: ModelArguments,
    data: DataArguments,
    output_dir: Path,
    *,
    batch_size: int,
    steps: int,
    skip_steps: int,
    augmentation: AugmentationArguments | None = None,
    num_workers: int | None = None,
    **training: Any,
) -> TrainingJob:
    """Resolve the options and load the data; ``training`` goes to ``SiglipTrainingArguments``."""
    quiet = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    options = SiglipTrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=batch_size,
        max_steps=skip_steps + steps,
        dataloader_num_workers=num_workers,
        disable_tqdm=True,
        overwrite_output_dir=True,
        **{**quiet, **training},
    )
    # As in a run; the other arms share the process and profit as well.
    keep_freed_memory()
    arguments = RunArguments(data, augmentation or AugmentationArguments(), model, options)
    processor = load_image_processor(model.model_name_or_path, model.image_size)
    return TrainingJob(arguments, load_data(data), processor, skip_steps, steps)


def build_arms(job: TrainingJob) -> dict[str, Callable[[], Sample]]:
    """Return the arms by name, each a function that runs one round."""
    model = build_model(job.arguments, job.data, job.processor)
    usual_model = build_usual_model(job)

    def build_ours() -> SiglipTrainer:
        return SiglipTrainer(job.arguments, job.data, copy.deepcopy(model), job.processor)

    def run_ours() -> Sample:
        return time_trainer(build_ours(), job)

    def run_limit() -> Sample:
        return time_limit(build_ours(), job)

    def run_usual() -> Sample:
        return time_trainer(build_usual(job, copy.deepcopy(usual_model)), job)

    return {"limit": run_limit, "ours": run_ours, "usual": run_usual}


def build_usual_model(job: TrainingJob) -> SiglipForImageClassification:
    """Build the usual script's model."""
    attention = job.arguments.model.attn_implementation
    return usual_script.build_model(job.load_vision_config(), len(job.data.class_names), attention)


def build_usual(job: TrainingJob, model: SiglipForImageClassification) -> Trainer:
    """Build the usual script's Trainer."""
    training, augmentation = copy_arguments(job.arguments.training), job.arguments.augmentation
    rows = job.data.splits["train"]
    return usual_script.build_trainer(model, rows, job.processor, augmentation, training)


def copy_arguments(ours: SiglipTrainingArguments) -> TrainingArguments:
    """Return plain arguments with our batch, precision and workers, and defaults otherwise."""
    names = (
        "output_dir",
        "per_device_train_batch_size",
        "max_steps",
        "dataloader_pin_memory",
        "save_strategy",
        "disable_tqdm",
        "logging_steps",
        "learning_rate",
        "weight_decay",
        "bf16",
        "tf32",
        "use_cpu",
        "remove_unused_columns",
    )
    workers = ours.dataloader_num_workers
    if workers is None:
        # It decodes every image in every epoch.
        workers = min(8, count_cores()) if ours.device.type == "cuda" else 0
    values = {name: getattr(ours, name) for name in names}
    return TrainingArguments(report_to=[], dataloader_num_workers=workers, **values)


class StepWindow(TrainerCallback):
    """Times the steps after the first ``skip_steps``, and the wait for data among them."""

    def __init__(self, trainer: Trainer, job: TrainingJob) -> None:
        self.job = job
        self.seconds = 0.0
        self.waited = 0.0
        fetch = trainer.get_batch_samples

        def timed_fetch(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            fetched = fetch(*args, **kwargs)
            self.waited += time.perf_counter() - start
            return fetched

        trainer.get_batch_samples = timed_fetch  # type: ignore[method-assign]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start or stop the watch; in between, the host may run ahead of the device."""
        if state.global_step == self.job.skip_steps:
            synchronize(self.job.device)
            self._start = time.perf_counter()
            self.waited = 0.0
        elif state.global_step == state.max_steps:
            synchronize(self.job.device)
            self.seconds = time.perf_counter() - self._start
            self._waited_in_window = self.waited

    def sample(self) -> Sample:
        """Return the round."""
        return Sample(self.job.images, self.seconds, self._waited_in_window)


def time_trainer(trainer: Trainer, job: TrainingJob) -> Sample:
    """Train for one round and time its steps; the Trainer is used up."""
    window = StepWindow(trainer, job)
    trainer.add_callback(window)
    trainer.train()
    _release(trainer)
    return window.sample()


def time_limit(trainer: SiglipTrainer, job: TrainingJob) -> Sample:
    """Train on one batch that lies on the device: nothing but the model's own work.

    Model, objective, precision, optimizer and clipping are those of the Trainer, whose parts are
    used; it is used up.
    """
    training, device = trainer.args, job.device
    model: Any = trainer.model
    model.to(device).train()
    optimizer = trainer.create_optimizer()
    inputs, labels = _draw_batch(trainer, job)
    if training.torch_compile:
        model = torch.compile(model)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bool(training.bf16)):
            loss = model(pixel_values=inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(job.skip_steps):
        step()
    with Stopwatch(device) as watch:
        for _ in range(job.steps):
            step()
    _release(trainer)
    return Sample(job.images, watch.seconds, 0.0)


def _draw_batch(trainer: SiglipTrainer, job: TrainingJob) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalized pixels (B, 3, S, S) float32 and labels (B,) int64 on the device."""
    dataset: Any = trainer.train_dataset
    count = trainer.args.per_device_train_batch_size
    batch = dataset.__getitems__([row % len(dataset) for row in range(count)])
    size = job.processor.size["height"]
    pixels = batch["pixel_values"][..., :size, :size].to(job.device)
    return PixelNormalizer(job.processor)(pixels).contiguous(), batch["labels"].to(job.device)


def _release(trainer: Any) -> None:
    """Let go of a Trainer's weights and moments, which hold each other in circles."""
    trainer.model = None
    trainer.model_wrapped = None
    trainer.optimizer = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
