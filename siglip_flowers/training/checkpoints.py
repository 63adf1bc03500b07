"""Checkpoints that are whole or absent: written under another name, renamed, then rotated.

A checkpoint is a directory ``checkpoint-STEP`` with a manifest that names its files and their
sizes; what is cut off or half deleted does not match its manifest and is never taken.
"""

import json
import os
import shutil
from pathlib import Path

from siglip_flowers.base.files import write_json

PREFIX = "checkpoint-"
MANIFEST_FILE = "manifest.json"
STATE_FILE = "trainer_state.json"
# Hidden names: of what is being written, taken away, or making room for another of its step.
STAGING_DIR = ".writing"
REMOVED, REPLACED = ".removed-", ".replaced-"


def write_manifest(checkpoint: Path) -> None:
    """Write down which files a checkpoint has, and their sizes, and send all to the disk."""
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
        manifest = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))
        sizes = manifest["files"]
        return STATE_FILE in sizes and all(
            (checkpoint / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def list_checkpoints(directory: Path) -> list[Path]:
    """Return the whole checkpoints of a directory, the oldest first."""
    whole = [path for path in directory.glob(f"{PREFIX}*") if _has_step(path) and is_whole(path)]
    return sorted(whole, key=_get_step)


def _has_step(path: Path) -> bool:
    return path.name.removeprefix(PREFIX).isdecimal()


def _get_step(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def publish_checkpoint(staged: Path, final: Path) -> None:
    """Give a checkpoint that is complete its name, in the place of one of the same step."""
    write_manifest(staged)
    replaced = final.with_name(REPLACED + final.name)
    if final.exists():
        remove_checkpoint(replaced)
        final.rename(replaced)
    staged.rename(final)
    _flush(final.parent)
    remove_checkpoint(replaced)


def remove_checkpoint(path: Path) -> None:
    """Take a checkpoint away: it is gone at once, whenever its files are."""
    if path.exists():
        hidden = path.with_name(REMOVED + path.name.lstrip("."))
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def rotate_checkpoints(directory: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest whole checkpoints beyond the limit; the newest and the best one stay."""
    if not limit or limit <= 0:
        return
    checkpoints = list_checkpoints(directory)
    kept = {path.name for path in checkpoints[-1:]} | ({Path(best).name} if best else set())
    surplus = len(checkpoints) - max(limit, len(kept))
    for path in [path for path in checkpoints if path.name not in kept][: max(0, surplus)]:
        remove_checkpoint(path)


def clear_leftovers(directory: Path) -> None:
    """Remove what a killed process left unfinished; a whole checkpoint gets its name back."""
    for path in directory.glob(f"{REPLACED}{PREFIX}*"):
        final = path.with_name(path.name.removeprefix(REPLACED))
        if is_whole(path) and not final.exists():
            path.rename(final)
    for pattern in (STAGING_DIR, f"{REMOVED}*", f"{REPLACED}*", ".start.*"):
        for path in directory.glob(pattern):
            shutil.rmtree(path)
    for path in directory.glob(f"{PREFIX}*"):
        if not is_whole(path):
            shutil.rmtree(path)


def measure_checkpoint(checkpoint: Path) -> int:
    """Return the bytes of a checkpoint's files."""
    return sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())


def _flush(path: Path) -> None:
    # A rename can reach the disk before the content does, should the power fail.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
