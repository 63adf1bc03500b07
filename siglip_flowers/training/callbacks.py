"""Callbacks of a run: stop on a signal, check the first gradients, average the weights."""

from typing import Any

from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState

from siglip_flowers.base.errors import RunError
from siglip_flowers.model.ensemble import WeightAverage
from siglip_flowers.runtime.preemption import Preempted, is_stop_requested
from siglip_flowers.runtime.processes import StopAgreement

SHOWN_PARAMETERS = 8


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint and raises ``Preempted`` after the step at which all processes stop."""

    def __init__(self) -> None:
        self._agreement: StopAgreement | None = None
        self._is_agreed = False
        self._leaves = False

    def on_train_begin(self, args: Any, *_: Any, **kwargs: Any) -> None:
        """Open the group of processes that agree."""
        self._agreement = StopAgreement(args.ddp_timeout_delta)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask whether to stop; called by every process after every step."""
        assert self._agreement is not None
        if self._agreement.decide(is_stop_requested()):
            self._is_agreed = True
        # The last step of an epoch is complete only with the epoch's evaluation, which a resumed
        # run would not make up for.
        ends_epoch = float(state.epoch or 0).is_integer()
        if self._is_agreed and not ends_epoch and not control.should_training_stop:
            self._leave(control)

    def on_epoch_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop after the evaluation of the epoch."""
        if self._is_agreed:
            self._leave(control)

    def _leave(self, control: TrainerControl) -> None:
        self._leaves = control.should_save = control.should_log = True

    def on_save(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End training now that the checkpoint is written."""
        if self._leaves:
            raise Preempted(
                f"stopped by a signal after step {state.global_step}; the same command resumes "
                f"from {args.checkpoint_dir}/checkpoint-{state.global_step}"
            )

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:
        """Wait for the last question; its answer comes too late to matter."""
        assert self._agreement is not None
        self._agreement.close()


class GradientCheck(TrainerCallback):
    """Stops a run before its first step if a parameter that should train has no gradient."""

    def __init__(self) -> None:
        self._checked = False

    def on_pre_optimizer_step(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at all gradients once; zeros are fine."""
        if self._checked:
            return
        self._checked = True
        assert model is not None
        trained = [item for item in model.named_parameters() if item[1].requires_grad]
        idle = [name for name, parameter in trained if parameter.grad is None]
        if idle:
            more = ", ..." if len(idle) > SHOWN_PARAMETERS else ""
            raise RunError(
                f"{len(idle)} of {len(trained)} trained parameters have no gradient: "
                f"{', '.join(idle[:SHOWN_PARAMETERS])}{more}. They would not learn; change "
                "--trainable."
            )


class UpdateAverage(TrainerCallback):
    """Updates a moving average of the weights after every step."""

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def on_step_end(self, *_: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        """Move the average towards the model."""
        assert model is not None
        self.average.update(model)


class EarlyStopping(EarlyStoppingCallback):
    """Stops after a number of evaluations without a new best.

    transformers calls it after the evaluation of every split and warns if the metric that chooses
    the best model is not among that split's.
    """

    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Count the evaluation if its split has the metric."""
        if f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}" in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)
