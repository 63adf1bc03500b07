"""The files of a run by name, and writing files so that they are whole or absent."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.text import first_line

# Written last: a directory with this file and model/ holds a finished run.
METRICS_FILE = "metrics.json"
CONFIG_FILE = "config.yaml"
MODEL_DIR = "model"
ADAPTER_DIR = "adapter"
CHECKPOINT_DIR = "checkpoints"
SPLITS_FILE = "splits.json"
# In the checkpoints: what was measured before the first step.
START_DIR = "start"
# What to do about a damaged file of a checkpoint.
REMOVE_CHECKPOINT = "Remove the checkpoint, and the same command resumes from the one before"
RUN_FILES = (
    *(METRICS_FILE, CONFIG_FILE, MODEL_DIR, ADAPTER_DIR, CHECKPOINT_DIR, SPLITS_FILE),
    *("history.csv", "loss_plot.png", "accuracy_plot.png", "predictions_test.parquet"),
    "examples.png",
    *(f"example{number}.png" for number in range(1, 6)),
)
# Written by some runs only.
PROBE_GRID_FILE = "probe_grid.csv"
TENSORBOARD_DIR = "tensorboard"
# A report of each split.
REPORT_DIRS = {split: f"report_{split}" for split in ("train", "validation", "test")}
OTHER_FILES = (PROBE_GRID_FILE, TENSORBOARD_DIR, *REPORT_DIRS.values())


def _get_mode() -> int:
    """Return the permissions of a new directory under the umask of this process."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o777 & ~umask


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it to ``path`` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, since writers such as matplotlib choose the format by it.
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files.
        temporary.chmod(0o666 & _get_mode())
        os.replace(temporary, path)
    except OSError as error:
        # A full disk has no name.
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside ``path``; it takes ``path``'s place on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        # mkdtemp, and safetensors, make private files.
        mode = _get_mode()
        for each in (temporary, *temporary.rglob("*")):
            each.chmod(mode if each.is_dir() else 0o666 & mode)
        remove(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file, a directory with its contents, or a link, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def reading(path: Path, remedy: str = REMOVE_CHECKPOINT) -> Iterator[None]:
    """Make one sentence of whatever is wrong with a file that an earlier command wrote.

    The block reads the file and everything that is needed of its contents.

    Raises:
        RunError: The block raised something; the message ends with the remedy.
    """
    try:
        yield
    except (InputError, RunError, MemoryError):
        raise
    except Exception as error:
        # Damage and contents of another form have no error class in common.
        reason = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise RunError(f"{path} cannot be read ({reason}). {remedy}.") from error


def read_json(path: Path) -> Any:
    """Return what a JSON file contains."""
    return json.loads(path.read_text(encoding="utf-8"))


def digest_weight_files(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every safetensors file of a saved model, by its name."""
    digests = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def is_finished(directory: Path) -> bool:
    """Return whether the directory holds a finished run."""
    return (directory / METRICS_FILE).is_file() and (directory / MODEL_DIR).is_dir()


def measure_free_bytes(directory: Path) -> int:
    """Return the free space of the disk that a directory is on or will be on."""
    return shutil.disk_usage(find_existing(directory)).free


def find_existing(path: Path) -> Path:
    """Return the path itself if it exists, or the nearest directory above it that does."""
    absolute = path.absolute()
    return next(each for each in (absolute, *absolute.parents) if os.path.exists(each))
