"""The Trainer of transformers with an image input path, whole checkpoints and safe steps."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.trainer_utils import TrainOutput

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.files import REMOVE_CHECKPOINT
from siglip_flowers.base.text import count
from siglip_flowers.data.augmentation import build_augmenter, draw_patches
from siglip_flowers.data.pixels.tensors import PixelNormalizer, collate_pixels, open_pixels
from siglip_flowers.data.rows import get_labels, image_ids
from siglip_flowers.data.splits import ClassificationData
from siglip_flowers.metrics.classification import compute_metrics
from siglip_flowers.model.adapters import has_adapters, select_trained
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.contrastive import ContrastiveSiglip
from siglip_flowers.model.ensemble import WeightAverage
from siglip_flowers.runtime.devices import count_cores
from siglip_flowers.runtime.memory import is_out_of_memory
from siglip_flowers.runtime.preemption import defer_signals, shield_workers
from siglip_flowers.training.anomalies import AnomalyWatch
from siglip_flowers.training.build import (
    RunArguments,
    copy_for_trainer,
    draw_train_sample,
    list_pixel_forms,
)
from siglip_flowers.training.callbacks import Throughput, list_callbacks, show_progress
from siglip_flowers.training.checkpoints import CheckpointingTrainer, find_damaged, had_ended
from siglip_flowers.training.objectives import (
    BalancedImages,
    Objective,
    TrainingBatch,
    build_objective,
    name_activation,
    weigh_classes,
    weigh_images,
)
from siglip_flowers.training.optimizer import MuonWithAdamW, build_parameter_groups, split_for_muon
from siglip_flowers.training.sharding import (
    allow_sharding_on_cpu,
    shard_encoder_layers,
    to_full_tensor,
)

# The private methods of transformers.Trainer that are overridden, each with the reason. Checked
# with transformers 5.17 and 5.24.
PRIVATE_OVERRIDES = {
    "_get_grad_norm": "callbacks do not receive the gradient norm before clipping",
    "_run_epoch": "resuming a run that had trained to its end would take another step",
    "_save_checkpoint": "a checkpoint gets its name only once it is complete",
}


class SiglipTrainer(CheckpointingTrainer):
    """Trains an image classifier on uint8 pixels; see ``Trainer`` for everything else.

    A signal ends training after a step, with a checkpoint.

    Args:
        arguments: Of the run.
        data: All splits.
        model: As :func:`~siglip_flowers.training.build.build_model` returns it.
        processor: Its image processor.
    """

    def __init__(
        self,
        arguments: RunArguments,
        data: ClassificationData,
        model: SiglipClassifier | ContrastiveSiglip,
        processor: Any,
    ) -> None:
        training, train = arguments.training, data.splits["train"]
        forms, augmentation = list_pixel_forms(arguments, processor), arguments.augmentation
        pixels: Any = open_pixels(train, forms["train"], arguments.data)
        evaluated = {
            "train": draw_train_sample(arguments, data),
            "validation": data.splits["validation"],
        }
        args = copy_for_trainer(training, pixels, forms)
        if not args.dataloader_num_workers:
            pixels.threads = max(1, count_cores() // training.world_size)
        labels, num_classes = get_labels(train), len(data.class_names)
        balance, strength = training.class_balance, training.class_balance_strength
        self.class_weights = None
        if balance == "weights":
            self.class_weights = weigh_classes(labels, num_classes, strength)
        elif balance == "sampler":
            pixels = BalancedImages(pixels, labels, strength, training.seed)
        self.objective: Objective = build_objective(model, training, labels)
        activation = name_activation(training)
        self.normalizer = PixelNormalizer(processor)
        self.augmenter = None
        if augmentation.augment:
            size = augmentation.train_image_size or forms["validation"].size
            self.augmenter = build_augmenter(augmentation, size, num_classes, training.seed)
        self.anomalies = AnomalyWatch(args, lambda rows: image_ids(train.select(rows)))
        self.throughput = Throughput()
        allow_sharding_on_cpu()
        super().__init__(
            model=model,
            args=args,
            train_dataset=pixels,
            eval_dataset={
                name: open_pixels(rows, forms["validation"], arguments.data)
                for name, rows in evaluated.items()
            },
            data_collator=collate_pixels,
            compute_metrics=lambda found: compute_metrics(
                np.asarray(found.predictions), np.asarray(found.label_ids), activation
            ),
            callbacks=[*list_callbacks(training), self.anomalies],
        )
        if self.is_fsdp_enabled:
            shard_encoder_layers(self.accelerator.state.fsdp_plugin, model)
        # compute_loss divides by the images of the whole step, so the Trainer must not average.
        self.model_accepts_loss_kwargs = True
        self.checkpoint_parts = [self.anomalies, self.throughput]
        self.average = None if training.ema is None else WeightAverage(model, training.ema)
        if self.average is not None:
            self.add_part(self.average)
        if has_adapters(model):
            # Saved with a checkpoint is only what trains; the rest comes from the base checkpoint.
            frozen = model.state_dict().keys() - select_trained(model)
            model._keys_to_ignore_on_save = set(frozen)
        show_progress(self, hide_bars=bool(training.disable_tqdm))
        # Images of the training batches since the last row of the log: those right, and all.
        self._running_hits = torch.zeros(2, dtype=torch.int64, device=self.args.device)
        self._had_ended = False

    # ---- Training

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Train; a signal ends it after a step, with a checkpoint, by raising ``Preempted``."""
        with defer_signals():
            try:
                if isinstance(resume_from_checkpoint, str):
                    self._had_ended = had_ended(Path(resume_from_checkpoint))
                    # It was done, and would count as one without a new best.
                    self.args.eval_on_start = False
                    for part in self.checkpoint_parts:
                        part.load(Path(resume_from_checkpoint))
                self.throughput.start()
                return super().train(resume_from_checkpoint, *args, **kwargs)
            except Exception as error:
                best = self.state.best_model_checkpoint
                checkpoint = find_damaged(error, resume_from_checkpoint, best)
                if checkpoint is None:
                    raise
                raise RunError(
                    f"The checkpoint {checkpoint} cannot be loaded: one of its files is damaged or "
                    f"holds more than tensors and numbers. {REMOVE_CHECKPOINT}."
                ) from error
            finally:
                self._end_workers()

    def _end_workers(self) -> None:
        """End the data loading processes that outlive an epoch: they end with their loaders."""
        self._eval_dataloaders: dict[str, Any] = {}
        self.callback_handler.train_dataloader = None
        self.callback_handler.eval_dataloader = None
        self.accelerator._dataloaders.clear()

    def get_train_dataloader(self) -> Any:
        """Return the parent's, with workers that let the last step finish on a signal."""
        loader = super().get_train_dataloader()
        if len(loader) == 0:
            raise InputError(
                "The training split has fewer images than one batch of "
                f"{self.args.train_batch_size} per process, which --dataloader_drop_last drops. "
                "Lower --per_device_train_batch_size."
            )
        return shield_workers(loader)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Return the parent's for every image, whatever training drops."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return shield_workers(super().get_eval_dataloader(*args, **kwargs))
        finally:
            self.args.dataloader_drop_last = drop_last

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer with one learning rate for the encoder and one for the head."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            groups = build_parameter_groups(trained, self.args)
            if self.args.optim == "muon":
                split = split_for_muon(trained, groups, self.args)
                self.optimizer = MuonWithAdamW(split, self.args)
            else:
                optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
                self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self._had_ended or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if isinstance(self.train_dataset, BalancedImages):
            self.train_dataset.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch the batches of one step, and count the time that takes.

        Returns the batches, each with ``counted`` (B,) bool, false for images that are repeated to
        fill the batch; and the sum of the weights of those counted over all processes' batches.
        """
        began = time.perf_counter()
        samples, _ = super().get_batch_samples(*args, **kwargs)
        waited, images = time.perf_counter() - began, sum(len(each["labels"]) for each in samples)
        self.throughput.count(images * self.accelerator.num_processes, waited)
        for batch in samples:
            batch["counted"] = torch.ones_like(batch["labels"], dtype=torch.bool)
        if not samples:
            return samples, None
        if self.accelerator.gradient_state.end_of_dataloader:
            samples[-1]["counted"] = self._find_first_reads(samples[-1]["labels"])
        weights = [weigh_images(b["labels"], self.class_weights) * b["counted"] for b in samples]
        return samples, self.accelerator.gather(torch.cat(weights).sum()).sum()

    def _find_first_reads(self, labels: torch.Tensor) -> torch.Tensor:
        """Return which images (B,) of the last batch of an epoch have not been seen in it.

        Accelerate fills that batch with images of the first ones, so that all processes have
        equally many. Its own count of them is unknown in the first epoch after a resume.
        """
        count, size, dataset = self.accelerator.num_processes, len(labels), self.train_dataset
        numbers = torch.arange(size, device=labels.device) + self.accelerator.process_index * size
        remaining = len(dataset) % (self.args.train_batch_size * count)  # type: ignore[arg-type]
        filled = count > 1 and remaining > 0 and not self.args.dataloader_drop_last
        return numbers < (remaining if filled else count * size)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Compute the gradients of a micro-batch, and mark a loss that is not finite."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        return self.anomalies.see_loss(self.state.global_step + 1, loss, inputs["index"])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return a training batch's share of the loss of the step; augments and normalizes first.

        Over all batches and processes of a step the shares add up, when the processes' gradients
        are averaged, to the weighted mean over its images. ``num_items_in_batch`` is the sum of
        their weights.
        """
        pixels, labels, rows = inputs["pixel_values"], inputs["labels"], inputs["index"]
        step = self.state.global_step
        targets = labels
        if self.augmenter is not None:
            pixels, targets = self.augmenter(pixels, labels, rows, step)
        prepared = self.normalizer.prepare(pixels)
        if step < self.args.patch_drop_until * self.state.max_steps:
            prepared.update(self._drop_patches(rows, pixels))
        batch = TrainingBatch(prepared, labels, targets, rows, step)
        # Or the augmented images would take memory all through the forward pass.
        del pixels
        losses, logits = self.objective(model, batch)
        if logits is None:
            # Of a contrastive batch, whose images depend on each other.
            return losses / getattr(self, "current_gradient_accumulation_steps", 1)
        hard = targets if targets.ndim == 1 else targets.argmax(dim=-1)
        counted = inputs["counted"]
        hits = (logits.detach().argmax(dim=-1) == hard) & counted
        self._running_hits += torch.stack([hits.sum(), counted.sum()])
        weights = weigh_images(targets, self.class_weights) * counted
        assert num_items_in_batch is not None  # get_batch_samples has counted them
        return (losses * weights).sum() * self.accelerator.num_processes / num_items_in_batch

    def _drop_patches(self, rows: np.ndarray, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the patches that the layers see, as a model's input; nothing without dropping."""
        if self.args.patch_drop == 0:
            return {}
        count = (pixels.shape[-1] // self.model.vision_model.config.patch_size) ** 2
        kept = max(1, round((1 - self.args.patch_drop) * count))
        chosen = draw_patches(self.args.seed + 2, self.state.global_step, rows, count, kept)
        return {"kept_patches": chosen.to(pixels.device)}

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = to_full_tensor(super()._get_grad_norm(model, grad_norm=grad_norm))
        self.anomalies.see_norm(norm, is_scaled=self.accelerator.scaler is not None)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, adding the accuracy and the speed of the training batches since the last row."""
        if "loss" in logs:
            hits, images = self.accelerator.reduce(self._running_hits, "sum").tolist()
            if images:
                logs["accuracy"] = hits / images
            self._running_hits.zero_()
            logs.update(self.throughput.close_window())
        super().log(logs, start_time)

    # ---- Evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the averaged weights if there are any, else the current ones."""
        average = self.average
        averaged = nullcontext() if average is None else average.applied_to(self.model)
        with self.throughput.paused(), averaged:
            return super().evaluate(*args, **kwargs)

    @torch.no_grad()
    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Return logits (B, C) float32 and labels (B,).

        No loss: the Trainer averages the losses of batches, which would count the padding of the
        last batch of several processes. ``compute_metrics`` computes it from the gathered logits.
        """
        inputs = self._prepare_inputs(inputs)
        pixels, labels = inputs["pixel_values"], inputs["labels"]
        try:
            with self.compute_loss_context_manager():
                logits = model(**self.normalizer.prepare(pixels)).logits
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(
                f"There is too little memory to evaluate {count(len(labels), 'image')} at once; "
                "lower --per_device_eval_batch_size."
            ) from error
        return None, logits.float(), labels

    def finish(self) -> None:
        """Give the model the weights to keep: the moving average, of the best evaluation."""
        if has_adapters(self.model):
            self.model._keys_to_ignore_on_save = set()
        if self.average is None:
            return
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None:
            self.average.load(Path(best))
        self.average.copy_to(self.model)
