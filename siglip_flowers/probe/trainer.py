"""The Trainer that fits a whole grid of heads on features at once."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState

from siglip_flowers.base.errors import RunError
from siglip_flowers.base.files import write_json
from siglip_flowers.evaluation.features import FeatureDataset, collate_features
from siglip_flowers.probe.figures import (
    finite_or_none,
    judge_logits,
    or_nan,
    summarize_head,
)
from siglip_flowers.probe.head_grid import HeadGrid, HeadGridAdamW
from siglip_flowers.training.trainer import SiglipTrainer

RECORDS_FILE = "probe_records.json"
# One figure a head, by name.
HeadFigures = dict[str, list[float | None]]
# Maps logits (B, K, C) and labels (B,) to the mean loss of each head, (K,).
HeadLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ProbeSetting:
    """What one head of the grid is fitted with.

    Attributes:
        pooling: How patch tokens are pooled.
        learning_rate: Peak learning rate; None where none is used.
        weight_decay: The same.
        strength: Strength of the L2 penalty of a solver other than AdamW.
    """

    pooling: str
    learning_rate: float | None = None
    weight_decay: float | None = None
    strength: float | None = None


class ProbeTrainer(SiglipTrainer):
    """Fits all heads of a grid, each as if it were trained alone.

    Gradients are clipped head by head, each head has its learning rate and weight decay, and of
    each the best evaluation is kept. What the Trainer logs on the way are the figures of the
    setting that leads at the moment; ``records`` hold those of all, by step.

    Args:
        settings: The K settings, in the order of the grid's heads.
        head_loss: The loss of every head.
        activation: ``softmax`` or ``sigmoid``, for the evaluation's loss.
        poolings: The poolings of a batch, in the order of its features' second axis.
        **kwargs: The arguments of ``Trainer``; the model is a ``HeadGrid``.
    """

    # One setting of the grid may diverge without harm to the others.
    watches_anomalies = False

    def __init__(
        self,
        *,
        settings: list[ProbeSetting],
        head_loss: HeadLoss,
        activation: str,
        poolings: list[str],
        **kwargs: Any,
    ) -> None:
        self.settings = settings
        self.head_loss = head_loss
        self.activation = activation
        self.poolings = poolings
        self.records: dict[int, dict[str, HeadFigures]] = {}
        self._running_losses: list[Tensor] = []
        self._running_head_hits: list[Tensor] = []
        self._norms: Tensor | None = None
        self._measured_split = ""
        self.grid: HeadGrid = kwargs["model"]
        # The setting with the best validation figures so far; the first one before there are any.
        self.leader = 0
        # The parent's objective and normalizer are for pixels, of which there are none here.
        super().__init__(
            objective=None,  # type: ignore[arg-type]
            normalizer=None,  # type: ignore[arg-type]
            augmenter=None,
            data_collator=collate_features,
            compute_metrics=self._measure,
            **kwargs,
        )
        self.add_callback(_ViewCallback())

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build AdamW with each head's learning rate and weight decay."""
        if self.optimizer is None:
            highest = max(setting.learning_rate or 0.0 for setting in self.settings)
            groups = []
            for heads, part, parameter, _ in self.grid.iterate_parts():
                chosen = self.settings[heads]
                # As for any head: biases and the scale of the cosine head are not decayed.
                decayed = part in ("weight", "class_embeddings")
                groups.append(
                    {
                        "params": [parameter],
                        "lr_factors": [(one.learning_rate or 0.0) / highest for one in chosen],
                        "weight_decays": [
                            (one.weight_decay or 0.0) if decayed else 0.0 for one in chosen
                        ],
                    }
                )
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            self.optimizer = HeadGridAdamW(groups, highest, betas, self.args.adam_epsilon)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the sum of all heads' losses, whose gradients do not touch each other."""
        logits = model(self._split_poolings(inputs["features"]))
        losses = self.head_loss(logits, inputs["labels"])
        self._running_losses.append(losses.detach())
        hits = logits.detach().argmax(dim=-1) == inputs["labels"][:, None]
        self._running_head_hits.append(hits.float().mean(dim=0))
        self._running_hits.append(self._running_head_hits[-1][self.leader])
        loss = losses.sum()
        return (loss, {"logits": logits}) if return_outputs else loss

    def _split_poolings(self, features: Tensor) -> dict[str, Tensor]:
        return {name: features[:, number] for number, name in enumerate(self.poolings)}

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        self.accelerator.unscale_gradients()
        self._norms = self.grid.clip_gradients(self.args.max_grad_norm)
        return self._norms[self.leader]

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Tensor, Tensor]:
        """Return what ``summarize_head`` needs of each image and head, (B, K, 4), and labels.

        The logits themselves, of all images and all heads, would not fit into memory.
        """
        inputs = self._prepare_inputs(inputs)
        labels = inputs["labels"]
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(self._split_poolings(inputs["features"])).float()
        return None, judge_logits(logits, labels, self.activation), labels

    def _measure(self, prediction: EvalPrediction) -> dict[str, float]:
        judged, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        num_classes = self._num_classes()
        heads = [
            summarize_head(judged[:, number], labels, num_classes)
            for number in range(judged.shape[1])
        ]
        figures: HeadFigures = {
            name: [finite_or_none(head[name]) for head in heads] for name in heads[0]
        }
        record = self.records.setdefault(self.state.global_step, {})
        record[self._measured_split] = figures
        if self._measured_split == "validation":
            self._keep_best(figures)
            self.leader = self._find_leader()
            if figures["loss"][self.leader] is None:
                raise RunError(
                    "The logits of every setting are not finite: the heads have diverged, so lower "
                    "the learning rate."
                )
        leading = {name: values[self.leader] for name, values in figures.items()}
        return {name: value for name, value in leading.items() if value is not None}

    def _num_classes(self) -> int:
        _, _, parameter, _ = next(self.grid.iterate_parts())
        return parameter.shape[1]

    def _keep_best(self, figures: HeadFigures) -> None:
        metric = str(self.args.metric_for_best_model or "").removeprefix("eval_")
        name = metric.removeprefix("validation_")
        step = self.state.global_step
        if self.args.load_best_model_at_end and name in figures:
            values = torch.tensor([or_nan(value) for value in figures[name]])
            greater = bool(self.args.greater_is_better)
            self.grid.keep(values, step, greater=greater)
        else:
            values = torch.tensor([or_nan(value) for value in figures["accuracy"]])
            self.grid.keep_all(values, step)

    def _find_leader(self) -> int:
        ranked = []
        for number, step in enumerate(self.grid.kept_step.tolist()):
            # Nothing was kept yet of a setting that diverged before its first evaluation.
            figures = self.records.get(step, {}).get("validation")
            accuracy = None if figures is None else figures["accuracy"][number]
            loss = None if figures is None else figures["loss"][number]
            if accuracy is None or loss is None:
                ranked.append((-1.0, 0.0))
            else:
                ranked.append((accuracy, -loss))
        return max(range(len(ranked)), key=lambda number: ranked[number])

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one split, whose name the metrics' prefix ends with."""
        prefix = kwargs.get("metric_key_prefix", "eval")
        self._measured_split = str(prefix).removeprefix("eval_")
        return super().evaluation_loop(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the leading setting's figures, and record those of every setting."""
        if "loss" in logs and self._running_losses:
            figures = {
                "loss": self._average_over_ranks(self._running_losses),
                "accuracy": self._average_over_ranks(self._running_head_hits),
            }
            if self._norms is not None:
                figures["grad_norm"] = [finite_or_none(norm) for norm in self._norms.tolist()]
            self.records.setdefault(self.state.global_step, {})["running"] = figures
            logs["loss"] = or_nan(figures["loss"][self.leader])
        if "train_loss" in logs:
            # The Trainer's closing summary adds all heads up.
            logs["train_loss"] /= len(self.settings)
        super().log(logs, start_time)

    def _average_over_ranks(self, values: list[Tensor]) -> list[float | None]:
        mean = torch.stack(values).mean(dim=0)
        values.clear()
        gathered = self.accelerator.gather(mean[None])
        return [finite_or_none(value) for value in gathered.mean(dim=0).tolist()]

    def finish(self) -> None:
        """Make sure that every head was measured as it is kept."""
        step = self.state.global_step
        measured = "validation" in self.records.get(step, {})
        if not measured and (not self.args.load_best_model_at_end or not self.has_evaluated):
            self.evaluate()

    @property
    def has_evaluated(self) -> bool:
        """Whether any evaluation took place."""
        return any("validation" in record for record in self.records.values())

    def show_only(self, number: int) -> None:
        """Rewrite the log as if one setting had been trained alone."""
        factor = 1.0
        rates = [setting.learning_rate for setting in self.settings if setting.learning_rate]
        if rates:
            factor = (self.settings[number].learning_rate or 0.0) / max(rates)
        log: list[dict[str, Any]] = self.state.log_history
        for entry in log:
            record = self.records.get(int(entry["step"]), {})
            for key in entry:
                split, _, metric = key.removeprefix("eval_").partition("_")
                if key.startswith("eval_") and metric in record.get(split, {}):
                    entry[key] = record[split][metric][number]
                elif "loss" in entry and key in record.get("running", {}):
                    entry[key] = record["running"][key][number]
            if "learning_rate" in entry:
                entry["learning_rate"] *= factor
        kept = int(self.grid.kept_step[number])
        self.state.best_global_step = kept
        self.state.best_metric = self.records[kept]["validation"]["accuracy"][number]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the heads, and beside them in a checkpoint the figures of all settings so far."""
        super().save_model(output_dir, _internal_call)
        if output_dir is not None and self.args.should_save:
            write_json(Path(output_dir) / RECORDS_FILE, self.records)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        text = (Path(resume_from_checkpoint) / RECORDS_FILE).read_text(encoding="utf-8")
        self.records = {int(step): record for step, record in json.loads(text).items()}
        self.leader = self._find_leader()

    def _load_best_model(self) -> None:
        # Every head has its own best evaluation, which the grid itself keeps.
        pass


class _ViewCallback(TrainerCallback):
    """Shows the next augmented view of each image in each epoch."""

    def on_epoch_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        dataset = getattr(kwargs.get("train_dataloader"), "dataset", None)
        if isinstance(dataset, FeatureDataset):
            # Also in the middle of an epoch, where a resumed run begins.
            dataset.epoch = int((state.epoch or 0.0) + 1e-6)
