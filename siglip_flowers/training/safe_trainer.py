"""A Trainer that can be killed at any moment, stops on signals, and keeps bad steps out."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import TrainOutput

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.config import SiglipTrainingArguments
from siglip_flowers.runtime.failures import explain_write_failure
from siglip_flowers.runtime.preemption import (
    Preempted,
    defer_signals,
    is_stop_requested,
    outlive_signals,
)
from siglip_flowers.runtime.processes import StopAgreement
from siglip_flowers.training.anomalies import AnomalyWatch
from siglip_flowers.training.checkpoints import (
    PREFIX,
    STAGING_DIR,
    STATE_FILE,
    list_checkpoints,
    measure_checkpoint,
    publish_checkpoint,
    remove_checkpoint,
    rotate_checkpoints,
)
from siglip_flowers.training.sharding import (
    allow_sharding_on_cpu,
    choose_wrapped_layers,
    to_full_tensor,
)


class SafeTrainer(Trainer):
    """``Trainer`` with whole checkpoints, an orderly end on signals and a watch on bad steps.

    Checkpoints are written under another name and renamed when they are whole; only then are old
    ones removed. Training that had ended goes on to nothing when it is resumed.
    """

    args: SiglipTrainingArguments
    # A loss that is a sum over independent models says nothing about one of them.
    watches_anomalies: ClassVar[bool] = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.is_fsdp_enabled:
            assert isinstance(self.model, nn.Module)
            choose_wrapped_layers(self.accelerator.state.fsdp_plugin, self.model)
        # Patience that was used up before a checkpoint stays used up after it.
        self.args.restore_callback_states_from_checkpoint = True
        self.anomalies = AnomalyWatch(
            self.args.on_nan, self.args.max_bad_steps, self.args.max_grad_norm_stop
        )
        self.anomalies.newest_checkpoint = self._name_newest_checkpoint
        if self.is_deepspeed_enabled and self.args.on_nan != "stop":
            raise InputError(
                f"--on_nan {self.args.on_nan} cannot leave out a step under DeepSpeed; use stop."
            )
        self._staging: Path | None = None
        self._had_ended = False
        self._saved_step = -1
        self.stop = _StopCallback()
        self.add_callback(self.stop)
        self.add_callback(_DropCallback(self.anomalies))

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator as the parent does, which may shard on a CPU too."""
        allow_sharding_on_cpu(self.args)
        super().create_accelerator_and_postprocess()

    def is_local_process_zero(self) -> bool:
        """Return whether this process is the one that speaks: one of all machines, not of each."""
        return self.is_world_process_zero()

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Train; a signal ends it after a step, with a checkpoint, by raising ``Preempted``."""
        if isinstance(resume_from_checkpoint, str):
            self.anomalies.load(Path(resume_from_checkpoint))
            self._had_ended = _had_ended_early(Path(resume_from_checkpoint))
        with defer_signals():
            self.stop.agreement = StopAgreement(self.args.ddp_timeout_delta)
            try:
                outcome = super().train(resume_from_checkpoint, *args, **kwargs)
            except UnpicklingError as error:
                # torch refuses to run what a file of the training state asks for.
                raise RunError(
                    f"The checkpoint {resume_from_checkpoint} cannot be loaded, since a file of "
                    "its training state holds other things than tensors and numbers, or is "
                    "damaged; remove the checkpoint, and the same command goes on from the one "
                    "before."
                ) from error
            finally:
                self._end_workers()
            self.stop.agreement.close()
        return outcome

    def _end_workers(self) -> None:
        """End the processes that load data and outlive an epoch: they end with their loaders."""
        self._eval_dataloaders: dict[str, Any] = {}
        self.callback_handler.train_dataloader = None
        self.callback_handler.eval_dataloader = None
        self.accelerator._dataloaders.clear()

    def get_train_dataloader(self) -> Any:
        """Return the parent's, with workers that let the last step finish on a signal."""
        return _shield_workers(super().get_train_dataloader())

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Return the parent's, with workers that let the evaluation finish on a signal."""
        return _shield_workers(super().get_eval_dataloader(*args, **kwargs))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Compute the gradients of a micro-batch, and mark a loss that is not finite."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not self.watches_anomalies:
            return loss
        return self.anomalies.see_loss(self.state.global_step + 1, loss, inputs["index"])

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = to_full_tensor(super()._get_grad_norm(model, grad_norm=grad_norm))
        # With float16 a norm that overflows is usual, and the scaler leaves out the step.
        if self.watches_anomalies and getattr(self.accelerator, "scaler", None) is None:
            self.anomalies.see_norm(norm)
        return norm

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The parent would do one step more than it was asked to.
        if self._had_ended or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, *args: Any, **kwargs: Any
    ) -> None:
        control = self.control
        looks = control.should_log or control.should_evaluate or control.should_save
        if looks or self.anomalies.is_full():
            self.anomalies.check()
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, *args, **kwargs)
        if self.stop.leaves:
            # With the strategy "best" an evaluation decides anew what is saved.
            if self._saved_step != self.state.global_step:
                self._save_checkpoint(model, None)
            raise Preempted(
                f"stopped by a signal after step {self.state.global_step}; the same command goes "
                f"on from {self._name_newest_checkpoint()}"
            )

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self.anomalies.check()
        # The parent would remove the newest checkpoint where another is the best: a run that is
        # killed while it measures what it trained still needs it.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def remove_surplus_checkpoints(self) -> None:
        """Remove the newest checkpoint of a finished run, if only the best one is to be kept."""
        best = self.state.best_model_checkpoint
        if self.args.should_save and self.args.save_total_limit == 1 and best is not None:
            directory = Path(self.args.checkpoint_dir)
            for path in list_checkpoints(directory):
                if path.name != Path(best).name:
                    remove_checkpoint(path)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.checkpoint_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        directory = Path(self.args.checkpoint_dir)
        name = f"{PREFIX}{self.state.global_step}"
        self._staging = directory / STAGING_DIR
        staged, final = self._staging / name, directory / name
        try:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
                staged.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            if self.state.best_model_checkpoint == str(staged):
                self.state.best_model_checkpoint = str(final)
            # All have written their random states.
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.anomalies.save(staged)
                self.state.save_to_json(str(staged / STATE_FILE))
                publish_checkpoint(staged, final)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = explain_write_failure(error)
            if reason is None:
                raise
            # Room for others, and for the message to be right about what is free.
            shutil.rmtree(self._staging, ignore_errors=True)
            raise RunError(self._describe_failed_save(reason, directory)) from error
        finally:
            if self.args.should_save:
                shutil.rmtree(directory / STAGING_DIR, ignore_errors=True)
            self._staging = None
        self.accelerator.wait_for_everyone()
        self._saved_step = self.state.global_step
        if self.args.should_save:
            rotate_checkpoints(
                directory, self.args.save_total_limit, self.state.best_model_checkpoint
            )

    def _name_newest_checkpoint(self) -> str | None:
        checkpoints = list_checkpoints(Path(self.args.checkpoint_dir))
        return str(checkpoints[-1]) if checkpoints else None

    def _describe_failed_save(self, reason: str, directory: Path) -> str:
        checkpoints = list_checkpoints(directory)
        if checkpoints:
            needed, begin = measure_checkpoint(checkpoints[-1]), checkpoints[-1].name
        else:
            needed, begin = self._estimate_checkpoint(), "the beginning"
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        return (
            f"The checkpoint of step {self.state.global_step} could not be written to {directory} "
            f"({reason}): it needs about {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free; "
            f"make room and repeat the command, which goes on from {begin}."
        )

    def _estimate_checkpoint(self) -> int:
        assert isinstance(self.model, nn.Module)
        tensors = [*self.model.state_dict().values()]
        if self.optimizer is not None:
            tensors += [
                value
                for state in self.optimizer.state.values()
                for value in state.values()
                if isinstance(value, torch.Tensor)
            ]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _StopCallback(TrainerCallback):
    """Asks for a checkpoint after the step, or the epoch, at which all processes stop."""

    def __init__(self) -> None:
        self.agreement: StopAgreement | None = None
        self.stops = False
        self.leaves = False

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.agreement is not None and self.agreement.decide(is_stop_requested()):
            self.stops = True
        # The last step of an epoch is complete only with the epoch's evaluation, which a resumed
        # run would not make up for; and training that ends anyway need not be left.
        last = float(state.epoch or 0).is_integer() or control.should_training_stop
        if self.stops and not last:
            self._leave(control)

    def on_epoch_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stops:
            self._leave(control)

    def _leave(self, control: TrainerControl) -> None:
        self.leaves = control.should_save = control.should_log = True


class _DropCallback(TrainerCallback):
    """Drops the gradients of a step whose update is left out: the optimizer then does nothing."""

    def __init__(self, anomalies: AnomalyWatch) -> None:
        self.anomalies = anomalies

    def on_pre_optimizer_step(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if self.anomalies.drops_update(state.global_step + 1):
            assert model is not None
            model.zero_grad(set_to_none=True)


def _shield_workers(loader: Any) -> Any:
    initialize = getattr(loader, "worker_init_fn", None)
    # A loader whose workers persist comes here at every evaluation.
    shielded = isinstance(initialize, partial) and initialize.func is _initialize_worker
    if getattr(loader, "num_workers", 0) and not shielded:
        loader.worker_init_fn = partial(_initialize_worker, initialize)
    return loader


def _initialize_worker(initialize: Callable[[int], None] | None, worker: int) -> None:
    if initialize is not None:
        initialize(worker)
    outlive_signals(worker)


def _had_ended_early(checkpoint: Path) -> bool:
    """Return whether training had ended at a checkpoint before its last step: no patience left."""
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {})
    stopped = control.get("args", {}).get("should_training_stop", False)
    return bool(stopped) and state["global_step"] < state["max_steps"]
