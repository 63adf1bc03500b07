"""The part of the Trainer that saves: a checkpoint is whole or does not exist."""

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import Trainer

from siglip_flowers.base.errors import RunError
from siglip_flowers.config import SiglipTrainingArguments
from siglip_flowers.runtime.failures import explain_write_failure
from siglip_flowers.training.callbacks import Throughput
from siglip_flowers.training.checkpoints import (
    CHECKPOINT_PREFIX,
    STAGING_DIR,
    STATE_FILE,
    CheckpointPart,
    describe_failed_save,
    list_checkpoints,
    publish_checkpoint,
    remove_checkpoint,
    rotate_checkpoints,
)

# Written by the Trainer into every checkpoint as a pickle; config.yaml holds the same.
ARGUMENTS_FILE = "training_args.bin"


class CheckpointingTrainer(Trainer):
    """Writes checkpoints under another name and renames them once they are complete.

    Only then are old ones removed.

    Attributes:
        throughput: Pauses while a checkpoint is written.
        checkpoint_parts: What a resumed run needs besides what the Trainer itself saves.
    """

    args: SiglipTrainingArguments
    throughput: Throughput
    checkpoint_parts: list[CheckpointPart]

    @property
    def _trained_model(self) -> Any:
        # The Trainer's type allows None, for a model_init that this one does not use.
        return self.model

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        directory = Path(self.args.checkpoint_dir)
        staging, name = directory / STAGING_DIR, f"{CHECKPOINT_PREFIX}{self.state.global_step}"
        output_dir, limit = self.args.output_dir, self.args.save_total_limit
        try:
            with self.throughput.paused():
                if self.args.should_save:
                    shutil.rmtree(staging, ignore_errors=True)
                    (staging / name).mkdir(parents=True)
                self.accelerator.wait_for_everyone()
                # The Trainer writes to, and removes old checkpoints from, its output directory.
                self.args.output_dir, self.args.save_total_limit = str(staging), None
                super()._save_checkpoint(model, trial)
                self.args.output_dir, self.args.save_total_limit = output_dir, limit
                # All processes have written their random states.
                self.accelerator.wait_for_everyone()
                self._publish(staging / name, directory / name)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = explain_write_failure(error)
            if reason is None:
                raise
            # First, so that the message gives the space that is free for others.
            shutil.rmtree(staging, ignore_errors=True)
            raise RunError(
                describe_failed_save(directory, self.state.global_step, reason, self._trained_model)
            ) from error
        finally:
            self.args.output_dir, self.args.save_total_limit = output_dir, limit
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _publish(self, staged: Path, final: Path) -> None:
        """Complete a staged checkpoint, give it its name and remove surplus ones."""
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(final)
        if not self.args.should_save:
            return
        for part in self.checkpoint_parts:
            part.save(staged)
        self.state.save_to_json(str(staged / STATE_FILE))
        (staged / ARGUMENTS_FILE).unlink(missing_ok=True)
        publish_checkpoint(staged, final)
        best = self.state.best_model_checkpoint
        rotate_checkpoints(final.parent, self.args.save_total_limit, best)

    def remove_surplus_checkpoints(self) -> None:
        """Remove the newest checkpoint of a finished run, if only the best one is to be kept.

        Not earlier: a run that is killed while it measures what it trained still needs it.
        """
        best = self.state.best_model_checkpoint
        if self.args.should_save and self.args.save_total_limit == 1 and best is not None:
            for path in list_checkpoints(Path(self.args.checkpoint_dir)):
                if path.name != Path(best).name:
                    remove_checkpoint(path)
