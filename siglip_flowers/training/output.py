"""The output directory of a run: what lies in it, and whether a run may start there."""

import json
import shutil
from pathlib import Path

import yaml

from siglip_flowers.errors import InputError
from siglip_flowers.parsing import read_yaml
from siglip_flowers.records import write_text

# Written last: its presence beside model/ says that the run is complete.
METRICS_FILE = "metrics.json"
CONFIG_FILE = "config.yaml"
MODEL_DIR = "model"
ADAPTER_DIR = "adapter"
CHECKPOINT_DIR = "checkpoints"
RUN_FILES = (
    METRICS_FILE,
    CONFIG_FILE,
    MODEL_DIR,
    ADAPTER_DIR,
    CHECKPOINT_DIR,
    "splits.json",
    "history.csv",
    "loss_plot.png",
    "accuracy_plot.png",
    "predictions_test.parquet",
    "examples.png",
    *(f"example{number}.png" for number in range(1, 6)),
)
# Left by runs that fit heads on features, besides those.
PROBE_GRID_FILE = "probe_grid.csv"
# Settings that may differ between a run and its resumption.
UNCOMPARED = (
    "overwrite_output_dir",
    "local_rank",
    "disable_tqdm",
    "dataloader_num_workers",
    "image_workers",
    "pixel_cache",
    "cache_dir",
    "cpu_threads",
)


def is_finished(directory: Path) -> bool:
    """Say whether the directory holds a complete run."""
    return (directory / METRICS_FILE).is_file() and (directory / MODEL_DIR).is_dir()


def find_checkpoint(directory: Path) -> str | None:
    """Return the newest whole checkpoint of an unfinished run, or None."""
    checkpoints = directory / CHECKPOINT_DIR
    whole = [path for path in checkpoints.glob("checkpoint-*") if _is_whole(path)]
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return None if newest is None else str(newest)


def _is_whole(checkpoint: Path) -> bool:
    # The Trainer writes this file last; a killed run leaves a directory without it, or half of it.
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def claim_output_dir(directory: Path, configuration: str, *, overwrite: bool) -> str | None:
    """Make the directory this run's own and return the checkpoint to go on from, if any.

    Args:
        directory: The output directory.
        configuration: YAML text of the resolved configuration, kept beside the results.
        overwrite: Delete what an earlier run left (its own files and no others).

    Raises:
        InputError: The directory holds a finished run, or an unfinished one of other settings.
    """
    if overwrite:
        for name in (*RUN_FILES, PROBE_GRID_FILE):
            path = directory / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    check_output_dir(directory, configuration)
    for path in (directory / CHECKPOINT_DIR).glob("checkpoint-*"):
        if not _is_whole(path):
            shutil.rmtree(path)
    write_text(directory / CONFIG_FILE, configuration)
    return find_checkpoint(directory)


def check_output_dir(directory: Path, configuration: str) -> None:
    """Raise InputError if a run with this configuration can neither start nor go on there."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"--output_dir {directory} is a file; name a directory.")
    if is_finished(directory):
        raise InputError(
            f"The directory {directory} already holds a finished run; choose another --output_dir "
            "or add --overwrite_output_dir."
        )
    if find_checkpoint(directory) is not None:
        _check_same_settings(directory, configuration)


def _check_same_settings(directory: Path, configuration: str) -> None:
    path = directory / CONFIG_FILE
    if not path.is_file():
        return
    before, now = read_yaml(path), yaml.safe_load(configuration)
    for key in sorted({*before, *now} - set(UNCOMPARED)):
        if before.get(key) != now.get(key):
            raise InputError(
                f"The directory {directory} holds an unfinished run with --{key} "
                f"{before.get(key)}, not {now.get(key)}; repeat its settings to go on with it, "
                "choose another --output_dir, or add --overwrite_output_dir to start anew."
            )
