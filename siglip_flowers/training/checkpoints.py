"""Checkpoints that are whole or absent: written under another name, renamed, then rotated.

A checkpoint is a directory ``checkpoint-STEP`` with a manifest that names its files and their
sizes; a checkpoint that is cut off or half deleted does not match its manifest and is never used.
"""

import os
import re
import shutil
import traceback
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import sort_checkpoints

from siglip_flowers.base.errors import RunError, explain_write_failure
from siglip_flowers.base.files import measure_free_bytes, read_json, reading, write_json
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.model.adapters import has_adapters, select_trained
from siglip_flowers.runtime.memory import is_out_of_memory
from siglip_flowers.training.callbacks import Throughput

CHECKPOINT_PREFIX = "checkpoint-"
MANIFEST_FILE = "manifest.json"
STATE_FILE = "trainer_state.json"
# The functions of transformers that read a checkpoint, and those of torch that use its schedule,
# whose settings the options passed already.
LOADERS = re.compile(
    "_load_(from_checkpoint|optimizer|scaler|rng|callback)|load_from_json"
    r"|lr_scheduler\.py:(step|get_lr|_update_lr)"
)
# Hidden names: being written, being removed, or replaced by another one of the same step.
STAGING_DIR = ".writing"
REMOVED, REPLACED = ".removed-", ".replaced-"
# Written by the Trainer into every checkpoint as a pickle; config.yaml holds the same.
ARGUMENTS_FILE = "training_args.bin"


def write_manifest(checkpoint: Path) -> None:
    """Record the files of a checkpoint and their sizes, and flush all to the disk."""
    sizes = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != MANIFEST_FILE:
            sizes[str(path.relative_to(checkpoint))] = path.stat().st_size
            _flush(path)
    write_json(checkpoint / MANIFEST_FILE, {"files": sizes})
    _flush(checkpoint / MANIFEST_FILE)
    _flush(checkpoint)


def is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint has every file of its manifest at its full size."""
    try:
        sizes = read_json(checkpoint / MANIFEST_FILE)["files"]
        return STATE_FILE in sizes and all(
            (checkpoint / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def list_checkpoints(directory: Path) -> list[Path]:
    """Return the whole checkpoints of a directory, the oldest first."""
    paths = map(Path, sort_checkpoints(str(directory)))
    return [path for path in paths if _is_own(path) and is_whole(path)]


def _is_own(path: Path) -> bool:
    # Not a user's copy, such as checkpoint-10-kept.
    return path.name.removeprefix(CHECKPOINT_PREFIX).isdecimal()


def find_damaged(error: Exception, resumed: Any, best: str | None) -> Any:
    """Return the checkpoint, the resumed or the best one, that an error arose in loading, or None.

    Damage and contents of another form have no error class in common, but the place. What the
    system refuses, and too little memory, are no damage.
    """
    refused = isinstance(error, OSError) and explain_write_failure(error)
    if refused or is_out_of_memory(error):
        return None
    frames = traceback.extract_tb(error.__traceback__)
    functions = " ".join(f"{Path(frame.filename).name}:{frame.name}" for frame in frames)
    if "_load_best_model" in functions:
        return best
    return resumed if LOADERS.search(functions) else None


def had_ended(checkpoint: Path) -> bool:
    """Return whether training stopped at a checkpoint before its last step, out of patience."""
    with reading(checkpoint / STATE_FILE):
        state = read_json(checkpoint / STATE_FILE)
        control = state.get("stateful_callbacks", {}).get("TrainerControl", {})
        stopped = control.get("args", {}).get("should_training_stop", False)
        # They would go wrong in the middle of the training.
        numbers = isinstance(state["best_metric"] or 0.0, float | int)
        if not numbers or not isinstance(state["global_step"], int):
            raise ValueError("its step or best metric is not a number")
        ended = bool(stopped) and state["global_step"] < state["max_steps"]
        if any(row["step"] > state["global_step"] for row in state["log_history"]):
            raise ValueError("its log is that of another checkpoint")
    return ended


def publish_checkpoint(staged: Path, final: Path) -> None:
    """Give a complete checkpoint its name, replacing one of the same step.

    That one may be of before the evaluation of an epoch, which a resumed run would not make up for.
    """
    write_manifest(staged)
    replaced = final.with_name(REPLACED + final.name)
    if final.exists():
        remove_checkpoint(replaced)
        final.rename(replaced)
    staged.rename(final)
    _flush(final.parent)
    remove_checkpoint(replaced)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; its name disappears at once, however long its files take."""
    if path.exists():
        hidden = path.with_name(REMOVED + path.name.lstrip("."))
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def rotate_checkpoints(
    directory: Path, limit: int | None, best: str | None, *, keep_newest: bool = True
) -> None:
    """Remove the oldest whole checkpoints beyond the limit, but neither the best nor the newest.

    A finished run without ``keep_newest`` has the newest only within the limit.
    """
    if limit is None:
        return
    checkpoints = list_checkpoints(directory)
    kept = {Path(best).name} if best else set()
    kept |= {path.name for path in checkpoints[-1:] if keep_newest}
    surplus = len(checkpoints) - max(limit, len(kept))
    for path in [path for path in checkpoints if path.name not in kept][: max(0, surplus)]:
        remove_checkpoint(path)


def clear_leftovers(directory: Path) -> None:
    """Remove what a killed process left unfinished; a whole checkpoint gets its name back."""
    for path in directory.glob(f"{REPLACED}{CHECKPOINT_PREFIX}*"):
        final = path.with_name(path.name.removeprefix(REPLACED))
        if is_whole(path) and not final.exists():
            path.rename(final)
    for pattern in (STAGING_DIR, f"{REMOVED}*", f"{REPLACED}*", ".start.*"):
        for path in directory.glob(pattern):
            shutil.rmtree(path)
    for path in directory.glob(f"{CHECKPOINT_PREFIX}*"):
        if _is_own(path) and not is_whole(path):
            shutil.rmtree(path)


def estimate_checkpoint_bytes(model: Any) -> int:
    """Return roughly how large a checkpoint of a model becomes, with its optimizer."""
    trained = sum(value.numel() for value in select_trained(model).values())
    kept = trained if has_adapters(model) else sum(value.numel() for value in model.parameters())
    # Float32: the weights, and two moments of AdamW of those that train.
    return 4 * kept + 8 * trained


def check_free_disk(model: nn.Module, training: SiglipTrainingArguments) -> None:
    """Raise RunError if the checkpoints of the run would not fit on the disk."""
    # The best and the newest ones, and one being written.
    needed = estimate_checkpoint_bytes(model) * ((training.save_total_limit or 10) + 2)
    directory = Path(str(training.output_dir)).absolute()
    free = measure_free_bytes(directory)
    if free < needed:
        raise RunError(
            f"The disk of {directory} has {free / 1e9:.1f} GB free, but this run's checkpoints "
            f"need {needed / 1e9:.1f} GB; make room, name another --output_dir, or keep fewer "
            "with --save_total_limit."
        )


def describe_failed_save(directory: Path, step: int, reason: str, model: nn.Module) -> str:
    """Return a message for a checkpoint that could not be written."""
    checkpoints = list_checkpoints(directory)
    needed, free = estimate_checkpoint_bytes(model), measure_free_bytes(directory)
    return (
        f"The checkpoint of step {step} could not be written to {directory} ({reason}): it needs "
        f"about {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free. Make room and repeat the "
        f"command, which resumes from {checkpoints[-1].name if checkpoints else 'the beginning'}."
    )


def _flush(path: Path) -> None:
    # A rename can reach the disk before the content does if the power fails. Windows flushes only
    # files that are open for writing, and no directories.
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class CheckpointingTrainer(Trainer):
    """Writes checkpoints under another name and renames them once they are complete.

    Only then are old ones removed.

    Attributes:
        throughput: Pauses while a checkpoint is written.
        checkpoint_parts: What a resumed run needs besides what the Trainer itself saves: objects
            that the first process asks to ``save(directory)``, and every process to
            ``load(directory)``.
    """

    args: SiglipTrainingArguments
    # The Trainer's type allows None, for a model_init that this one does not use.
    model: Any
    throughput: Throughput
    checkpoint_parts: list[Any]

    def add_part(self, part: Any) -> None:
        """Add a callback that is a part of every checkpoint, too."""
        self.add_callback(part)
        self.checkpoint_parts.append(part)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        directory = Path(self.args.checkpoint_dir)
        staging, name = directory / STAGING_DIR, f"{CHECKPOINT_PREFIX}{self.state.global_step}"
        output_dir = self.args.output_dir
        try:
            with self.throughput.paused():
                # In each process the Trainer looks whether it exists, before it is filled.
                if self.args.should_save:
                    shutil.rmtree(staging, ignore_errors=True)
                    (staging / name).mkdir(parents=True)
                self.accelerator.wait_for_everyone()
                # The Trainer writes to, and removes old checkpoints from, its output directory.
                self.args.output_dir = str(staging)
                super()._save_checkpoint(model, trial)
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
                describe_failed_save(directory, self.state.global_step, reason, self.model)
            ) from error
        finally:
            self.args.output_dir = output_dir
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
