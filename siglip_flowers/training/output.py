"""The output directory of a run: what lies in it, and whether a run may start there."""

import shutil
from pathlib import Path

import yaml

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import write_text
from siglip_flowers.base.run_dir import (
    CHECKPOINT_DIR,
    CONFIG_FILE,
    PROBE_GRID_FILE,
    REPORT_DIRS,
    RUN_FILES,
    TENSORBOARD_DIR,
    is_finished,
)
from siglip_flowers.config.parsing import read_yaml
from siglip_flowers.training.checkpoints import clear_leftovers, list_checkpoints

# Settings that may differ between a run and its resumption.
UNCOMPARED = (
    "overwrite_output_dir",
    "local_rank",
    "disable_tqdm",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "image_workers",
    "pixel_cache",
    "cache_dir",
    "cpu_threads",
    "resume",
    "on_nan",
    "max_bad_steps",
    "max_grad_norm_stop",
    "ddp_timeout",
    "report_to",
    "aim_repo",
    "wandb_log_model",
)


def find_checkpoint(directory: Path) -> str | None:
    """Return the newest whole checkpoint of an unfinished run, or None."""
    checkpoints = list_checkpoints(directory / CHECKPOINT_DIR)
    return str(checkpoints[-1]) if checkpoints else None


def claim_output_dir(
    directory: Path,
    configuration: str,
    *,
    overwrite: bool,
    resume: bool = True,
    clear: bool = True,
) -> str | None:
    """Make the directory this run's own and return the checkpoint to go on from, if any.

    Args:
        directory: The output directory.
        configuration: YAML text of the resolved configuration, kept beside the results.
        overwrite: Delete what an earlier run left (its own files and no others).
        resume: Go on with an unfinished run; without it such a run is an error.
        clear: Remove what a killed run left half-written, and write the configuration; for one
            process of a run.

    Raises:
        InputError: The directory holds a finished run, or an unfinished one of other settings.
    """
    if overwrite:
        for name in (*RUN_FILES, PROBE_GRID_FILE, TENSORBOARD_DIR, *REPORT_DIRS.values()):
            path = directory / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    check_output_dir(directory, configuration, resume=resume)
    if clear:
        clear_leftovers(directory / CHECKPOINT_DIR)
        _clear_temporary_files(directory)
        write_text(directory / CONFIG_FILE, configuration)
    return find_checkpoint(directory)


def _clear_temporary_files(directory: Path) -> None:
    """Remove the files and directories that atomic writers of a killed run left."""
    for name in (*RUN_FILES, PROBE_GRID_FILE):
        stem, suffix = Path(name).stem, Path(name).suffix
        for path in directory.glob(f".{stem}.*{suffix}"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def check_output_dir(directory: Path, configuration: str, *, resume: bool = True) -> None:
    """Raise InputError if a run with this configuration can neither start nor go on there."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"--output_dir {directory} is a file; name a directory.")
    if is_finished(directory):
        raise InputError(
            f"The directory {directory} already holds a finished run; choose another --output_dir "
            "or add --overwrite_output_dir."
        )
    checkpoint = find_checkpoint(directory)
    if checkpoint is not None:
        if not resume:
            raise InputError(
                f"The directory {directory} holds an unfinished run up to {Path(checkpoint).name}, "
                "which --resume never does not go on with; add --overwrite_output_dir to start "
                "anew, or use --resume auto."
            )
        check_same_settings(directory / CONFIG_FILE, configuration)


def check_same_settings(
    path: Path,
    configuration: str,
    *,
    kind: str = "unfinished run",
    free: tuple[str, ...] = UNCOMPARED,
) -> None:
    """Raise InputError if a saved configuration differs from this one in more than free options."""
    if not path.is_file():
        return
    before, now = read_yaml(path), yaml.safe_load(configuration)
    for key in sorted({*before, *now} - set(free)):
        if before.get(key) != now.get(key):
            raise InputError(
                f"The directory {path.parent} holds an {kind} with --{key} {before.get(key)}, not "
                f"{now.get(key)}; use the same settings to resume it, choose another --output_dir, "
                "or add --overwrite_output_dir."
            )
