"""Find the model that a command uses, and the data that it was trained on."""

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import CONFIG_FILE, MODEL_DIR
from siglip_flowers.base.paths import check_dataset, check_model, enter_run, find_run
from siglip_flowers.commands.entry import Command
from siglip_flowers.config import DataArguments
from siglip_flowers.config.saved import read_yaml

# Together they name the source of the data.
SOURCE_OPTIONS = ("data_source", "data_dir", "dataset_name", "dataset_config_name")

logger = logging.getLogger(__name__)


def find_model(model: str | None, results: Path = Path("results")) -> str:
    """Return the model directory or Hub id to use.

    Raises:
        InputError, RunError: No model was named and there is none in ``results``, or there is none
            of that name (see :func:`~siglip_flowers.base.paths.check_model`).
    """
    if model is not None:
        model = enter_run(model)
        check_model(model)
        return model
    found = [
        path.parent
        for pattern in (f"{MODEL_DIR}/config.json", f"*/{MODEL_DIR}/config.json")
        for path in results.glob(pattern)
    ]
    if not found:
        raise InputError(f"There is no model in {results}/. Train one, or name one with --model.")
    newest = max(found, key=lambda path: (path / "config.json").stat().st_mtime)
    if len(found) > 1:
        logger.warning("%d models in %s/; using the newest, %s.", len(found), results, newest)
    return str(newest)


def check_sources(model: str | None, data: DataArguments) -> None:
    """Check the model and the data that options name, before seconds of imports.

    Data that are missing are left to later checks, which name them.

    Raises:
        InputError, RunError: As :func:`~siglip_flowers.base.paths.check_model` and
            :func:`~siglip_flowers.base.paths.check_dataset`.
    """
    if data.data_dir is not None and not Path(data.data_dir).exists():
        return
    if model is not None:
        check_model(enter_run(model))
    if data.dataset_name is not None:
        check_dataset(data.dataset_name)


def names_source(given: DataArguments) -> bool:
    """Return whether the options name a source of data."""
    return any(getattr(given, name) is not None for name in SOURCE_OPTIONS[:3])


def read_data_defaults(run_config: Path, given: DataArguments) -> dict[str, Any]:
    """Return the data options of a run's configuration, {} if there is no such file.

    Args:
        run_config: The run's ``config.yaml``.
        given: The options of the command line: if they name a data source, the run's own source
            is left out.
    """
    if not run_config.is_file():
        return {}
    known = {item.name for item in dataclasses.fields(DataArguments)}
    if names_source(given):
        known -= set(SOURCE_OPTIONS)
    return {name: value for name, value in read_yaml(run_config).items() if name in known}


def follow_run(
    options: Any, given: DataArguments, read: Callable[..., tuple[Any, ...]]
) -> DataArguments:
    """Find the model that ``options.model`` names, and return the data options of its training.

    Args:
        options: Its ``model`` becomes the directory or Hub id that is used.
        given: The data options without those of the run.
        read: Returns all options again, data options second; takes ``defaults``.
    """
    options.model = find_model(options.model)
    run = find_run(options.model)
    own = {} if run is None else read_data_defaults(run / CONFIG_FILE, given)
    data_arguments: DataArguments = read(defaults=own)[1]
    if run is not None:
        saved = read_yaml(run / CONFIG_FILE)
        same = all(saved.get(name) == getattr(given, name) for name in SOURCE_OPTIONS)
        data_arguments.trained_run = run if same or not names_source(given) else None
    return data_arguments


def parse_with_run_data(command: Command, argv: list[str]) -> tuple[Any, ...]:
    """Parse the options of a command that takes ``--model`` and data options.

    The model is found as :func:`find_model` does, and the data options default to those of its
    training.

    Args:
        command: Its dataclasses are one with the field ``model``, ``DataArguments``, and others.
        argv: The command line without the program's name.
    """
    options, given, *others = command.parse(argv)
    return options, follow_run(options, given, partial(command.parse, argv)), *others
