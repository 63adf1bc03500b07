"""What a user watches while a model trains."""

from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback


class LossProgressCallback(ProgressCallback):
    """A progress bar with loss, accuracy and speed, and one line for each evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self._evaluation: dict[str, float] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the running loss on the bar; print a line when the validation split is done."""
        if not state.is_world_process_zero or self.training_bar is None or logs is None:
            return
        if "loss" in logs:
            shown = {"loss": f"{logs['loss']:.3f}"}
            if "accuracy" in logs:
                shown["accuracy"] = f"{logs['accuracy']:.1%}"
            if "images_per_second" in logs:
                shown["img/s"] = f"{logs['images_per_second']:.0f}"
                shown["waiting for data"] = f"{logs['data_wait']:.1%}"
            self.training_bar.set_postfix(shown, refresh=False)
        self._evaluation.update({k: v for k, v in logs.items() if k.startswith("eval_")})
        if "eval_validation_accuracy" in logs:
            values = self._evaluation
            line = (
                f"epoch {state.epoch:.1f}: validation accuracy "
                f"{values['eval_validation_accuracy']:.2%}, "
                f"loss {values['eval_validation_loss']:.3f}"
            )
            if "eval_train_accuracy" in values:
                line += (
                    f"; train accuracy {values['eval_train_accuracy']:.2%}, "
                    f"loss {values['eval_train_loss']:.3f}"
                )
            self.training_bar.write(line)
            self._evaluation = {}
