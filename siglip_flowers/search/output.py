"""The output directory of a search: whose it is, and what lies in it."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import write_text
from siglip_flowers.base.run_dir import is_finished
from siglip_flowers.config.parsing import read_yaml
from siglip_flowers.search.setup import TRIALS_DIR, Search
from siglip_flowers.search.space import dump_space
from siglip_flowers.search.study import STUDY_FILE, delete_study, hide_password
from siglip_flowers.training.output import UNCOMPARED, find_checkpoint

SEARCH_FILE, LOCK_FILE = "search.yaml", ".search.lock"
BEST_FILE, TABLE_FILE, PLOT_FILE = "best.yaml", "trials.csv", "trials.png"
SEARCH_FILES = (SEARCH_FILE, STUDY_FILE, TRIALS_DIR, BEST_FILE, TABLE_FILE, PLOT_FILE)
# Settings that may differ between a search and its continuation.
FREE = (*UNCOMPARED, "n_trials", "workers")


def check_directory(search: Search) -> None:
    """See that the search may begin or go on in its directory; clear that first where asked to.

    Raises:
        InputError: It holds a training run, or a search of other settings.
    """
    directory = search.directory
    if is_finished(directory) or find_checkpoint(directory) is not None:
        raise InputError(
            f"The directory {directory} holds a training run; choose another --output_dir for the "
            "search."
        )
    if search.run.training.overwrite_output_dir:
        _clear(search)
    path = directory / SEARCH_FILE
    if path.is_file():
        _check_same(path, _describe(search))


def write_settings(search: Search) -> None:
    """Make the directory this search's own."""
    text = yaml.safe_dump(_describe(search), sort_keys=False, allow_unicode=True)
    write_text(search.directory / SEARCH_FILE, text)


def _describe(search: Search) -> dict[str, Any]:
    """Return everything that decides the search, as ``--config`` reads it, without secrets."""
    options = asdict(search.options)
    options["search_space"] = dump_space(search.space)
    options["storage"] = hide_password(search.options.storage)
    values: dict[str, Any] = yaml.safe_load(search.run.dump())
    return {**{key: value for key, value in options.items() if value is not None}, **values}


def _check_same(path: Path, settings: dict[str, Any]) -> None:
    before = read_yaml(path)
    for key in sorted({*before, *settings} - set(FREE)):
        if before.get(key) != settings.get(key):
            raise InputError(
                f"The directory {path.parent} holds a search with --{key} {before.get(key)}, not "
                f"{settings.get(key)}; repeat its settings to go on with it, choose another "
                "--output_dir, or add --overwrite_output_dir to start anew."
            )


def _clear(search: Search) -> None:
    """Delete what an earlier search left: its own files and no others, and its study."""
    if search.options.storage is not None:
        delete_study(search)
    # SQLite keeps these beside a file that was being written.
    journals = (f"{STUDY_FILE}-journal", f"{STUDY_FILE}-wal", f"{STUDY_FILE}-shm")
    for name in (*SEARCH_FILES, *journals):
        path = search.directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def clear_trials(search: Search, kept: set[int]) -> None:
    """Remove the checkpoints of all trials but those that are to be gone on with."""
    names = {search.name_directory(number).name for number in kept}
    for path in (search.directory / TRIALS_DIR).glob("trial-*"):
        if path.name not in names:
            shutil.rmtree(path)
