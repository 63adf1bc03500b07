"""The output directory of a run: what lies in it, and whether a run may start there."""

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import (
    CHECKPOINT_DIR,
    CONFIG_FILE,
    OTHER_FILES,
    RUN_FILES,
    START_DIR,
    is_finished,
    remove,
    write_text,
)
from siglip_flowers.base.paths import enter_run
from siglip_flowers.base.version import __version__
from siglip_flowers.config.saved import read_version, read_yaml
from siglip_flowers.training.checkpoints import clear_leftovers, list_checkpoints

# Held by the process that writes to the directory; the system releases it if that is killed.
LOCK_FILE, HOLDER_FILE = ".lock", ".lock-holder"
# Settings that may differ between a run and its resumption.
UNCOMPARED = (
    *("overwrite_output_dir", "resume", "local_rank", "ddp_timeout", "disable_tqdm"),
    *("dataloader_num_workers", "dataloader_persistent_workers", "image_workers", "cpu_threads"),
    *("pixel_cache", "cache_dir", "on_nan", "max_bad_steps", "report_to", "aim_repo"),
)


def find_checkpoint(directory: Path) -> str | None:
    """Return the newest whole checkpoint of an unfinished run, or None."""
    checkpoints = list_checkpoints(directory / CHECKPOINT_DIR)
    return str(checkpoints[-1]) if checkpoints else None


@contextmanager
def hold_output_dir(
    directory: Path, configuration: str, *, overwrite: bool, resume: bool
) -> Iterator[str | None]:
    """Keep other runs out of the directory, and yield the checkpoint to resume from, if any.

    Called by all processes of a run, of which the first one decides: see :func:`claim_output_dir`.

    Raises:
        InputError: Another run writes to the directory, or this one may not.
    """
    lock, checkpoint, refusal = FileLock(directory / LOCK_FILE, timeout=0), None, None
    try:
        if PartialState().is_main_process:
            try:
                _lock(directory, lock)
                checkpoint = claim_output_dir(
                    directory, configuration, overwrite=overwrite, resume=resume
                )
            except InputError as error:
                refusal = str(error)
        # The first process tells the others, which would wait for it otherwise.
        checkpoint, refusal = broadcast_object_list([checkpoint, refusal])
        if refusal is not None:
            raise InputError(refusal)
        yield checkpoint
    finally:
        if lock.is_locked:
            (directory / HOLDER_FILE).unlink(missing_ok=True)
            # Windows removes no open file, and filelock removes it after the release there.
            with suppress(PermissionError):
                (directory / LOCK_FILE).unlink(missing_ok=True)
            lock.release()


def _lock(directory: Path, lock: FileLock) -> None:
    """Take the lock of a directory, and write down who holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    holder = directory / HOLDER_FILE
    try:
        lock.acquire()
    except Timeout as error:
        who = holder.read_text("utf-8", "replace") if holder.is_file() else "another process"
        raise InputError(
            f"Another run writes to --output_dir {directory}: {who}. Wait for its end or choose "
            "another --output_dir."
        ) from error
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    write_text(holder, f"process {os.getpid()} on {socket.gethostname()}, since {now}")


def claim_output_dir(
    directory: Path, configuration: str, *, overwrite: bool, resume: bool = True
) -> str | None:
    """Make the directory this run's own and return the checkpoint to resume from, if any.

    What a killed run left half-written is removed.

    Args:
        directory: The output directory.
        configuration: YAML text of the resolved configuration, kept with the results.
        overwrite: Delete an earlier run (its own files and no others).
        resume: Resume an unfinished run; without it such a run is an error.

    Raises:
        InputError: The directory holds a finished run, or an unfinished one of other settings.
    """
    if overwrite:
        for name in (*RUN_FILES, *OTHER_FILES):
            remove(directory / name)
    check_output_dir(directory, configuration, resume=resume)
    clear_leftovers(directory / CHECKPOINT_DIR)
    checkpoint = find_checkpoint(directory)
    if checkpoint is None:
        # The measured start, which may be of other settings or data.
        remove(directory / CHECKPOINT_DIR / START_DIR)
    # Files and directories of atomic writers that were killed.
    for name in (*RUN_FILES, *OTHER_FILES):
        for path in directory.glob(f".{Path(name).stem}.*{Path(name).suffix}"):
            remove(path)
    write_text(directory / CONFIG_FILE, configuration)
    return checkpoint


def check_output_dir(directory: Path, configuration: str, *, resume: bool = True) -> None:
    """Raise InputError if a run with this configuration can neither start nor resume there."""
    if is_finished(directory):
        raise InputError(
            f"The directory {directory} already holds a finished run. Choose another --output_dir "
            "or add --overwrite_output_dir."
        )
    checkpoint = find_checkpoint(directory)
    if checkpoint is None:
        return
    saved = directory / CONFIG_FILE
    version = read_version(saved) if saved.is_file() else __version__
    if version is None or version.split(".")[:2] != __version__.split(".")[:2]:
        raise InputError(
            f"The directory {directory} holds an unfinished run of siglip_flowers "
            f"{version or '0.1'}, which version {__version__} cannot resume. Finish it with that "
            "version, or add --overwrite_output_dir."
        )
    if not resume:
        raise InputError(
            f"The directory {directory} holds an unfinished run up to {Path(checkpoint).name}, "
            "which --resume never does not resume. Add --overwrite_output_dir to start over, or "
            "use --resume auto."
        )
    check_same_settings(directory / CONFIG_FILE, configuration)


def check_overwritten(directory: Path, read: Iterable[str | None]) -> None:
    """Raise InputError if a run would delete, with an earlier one, what it reads itself."""
    deleted = {(directory / name).resolve() for name in (*RUN_FILES, *OTHER_FILES)}
    for name in filter(None, read):
        path = Path(enter_run(name)).resolve()
        if deleted & {path, *path.parents}:
            raise InputError(
                f"--overwrite_output_dir would delete {name}, which the run starts from. Choose "
                "another --output_dir."
            )


def check_same_settings(
    path: Path,
    configuration: str,
    *,
    kind: str = "unfinished run",
    free: tuple[str, ...] = UNCOMPARED,
    remedy: str = "choose another --output_dir, or add --overwrite_output_dir",
) -> None:
    """Raise InputError if a saved configuration differs from this one in more than free options."""
    if not path.is_file():
        return
    before, now = read_yaml(path), yaml.safe_load(configuration)
    if Path(str(before.get("output_dir"))).resolve() == path.parent.resolve():
        before["output_dir"] = now.get("output_dir")  # perhaps spelled otherwise
    for key in sorted({*before, *now} - set(free), key=str):
        if before.get(key) != now.get(key):
            raise InputError(
                f"The directory {path.parent} holds an {kind} with --{key} {before.get(key)}, not "
                f"{now.get(key)}; use the same settings to resume it, {remedy}."
            )
