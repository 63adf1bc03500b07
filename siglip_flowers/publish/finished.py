"""A finished run: its figures, and the proof that they belong to its weights."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow.parquet

from siglip_flowers.base import files
from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.text import is_hub_id, shorten_description
from siglip_flowers.config.saved import read_yaml
from siglip_flowers.metrics.classification import accuracy, precision_recall_f1

PREDICTIONS_FILE = "predictions_test.parquet"
COPY = "Copy the whole directory again"
COLUMNS = ("image_id", "label", "label_name", "top_labels", "top_names", "top_probabilities")


@dataclass(frozen=True)
class FinishedRun:
    """A run directory whose figures belong to its weights.

    ``metrics`` are those of ``metrics.json`` without paths of this machine, ``settings`` those of
    ``config.yaml``. ``predictions`` has a row for each test image: ``COLUMNS``, ``predicted``, and
    whether the true class is a ``hit``, among the top five.
    """

    directory: Path
    metrics: dict[str, Any]
    settings: dict[str, Any]
    predictions: pandas.DataFrame

    @property
    def model_dir(self) -> Path:
        """The directory of model and image processor."""
        return self.directory / files.MODEL_DIR

    @property
    def base_model(self) -> str | None:
        """The Hub id of the checkpoint that the run started from; None for a local one."""
        name = str(self.settings.get("model_name_or_path"))
        local = self.metrics["model"].get("local", True)
        return name if is_hub_id(name) and not local else None

    @property
    def dataset_id(self) -> str | None:
        """The Hub id of the data set, if it has one."""
        name = str(self.settings.get("dataset_name"))
        return name if is_hub_id(name) and not Path(name).exists() else None

    @property
    def dataset_title(self) -> str:
        """The name of the data set for readers."""
        return shorten_description(self.metrics["data"]["description"])


def check_finished(directory: Path) -> None:
    """Raise InputError unless the directory holds a finished run."""
    if not files.is_finished(directory):
        if files.is_finished(directory.parent):
            raise InputError(f"{directory} is part of a run; name the run: {directory.parent}.")
        raise InputError(
            f"{directory} holds no finished run ({files.METRICS_FILE} or {files.MODEL_DIR}/ is "
            "missing); finish it with the command that started it, or name another."
        )


def read_finished_run(directory: Path) -> FinishedRun:
    """Read a finished run and check that its figures belong to its weights.

    Raises:
        InputError: There is no finished run.
        RunError: The weights are not those that were measured, or figures contradict predictions.
    """
    check_finished(directory)
    settings = read_yaml(directory / files.CONFIG_FILE)
    with files.reading(directory / files.METRICS_FILE, COPY):
        metrics = files.read_json(directory / files.METRICS_FILE)
        recorded, test = metrics["weights"], metrics["splits"]["test"]
    if files.digest_weight_files(directory / files.MODEL_DIR) != recorded:
        raise RunError(
            f"The weights in {directory / files.MODEL_DIR} are not those that "
            f"{files.METRICS_FILE} measured (another SHA-256); restore the model of the run."
        )
    with files.reading(directory / PREDICTIONS_FILE, COPY):
        table = pyarrow.parquet.read_table(directory / PREDICTIONS_FILE, columns=list(COLUMNS))
        predictions = table.to_pandas()
        predictions["predicted"] = predictions["top_labels"].str[0].astype(np.int64)
        predictions["hit"] = [
            label in top
            for label, top in zip(predictions["label"], predictions["top_labels"], strict=True)
        ]
    with files.reading(directory / files.METRICS_FILE, COPY):
        _check_figures(directory, test, predictions)
        run = FinishedRun(directory, metrics, settings, predictions)
        private = list_private_paths(settings, {run.base_model, run.dataset_id})
        model = {**metrics["model"], "model_id": run.base_model}
    return dataclasses.replace(run, metrics=hide_paths({**metrics, "model": model}, private))


def _check_figures(directory: Path, test: Mapping[str, Any], predictions: pandas.DataFrame) -> None:
    """Raise RunError unless the figures of the test split follow from the predictions."""
    labels, predicted = predictions["label"].to_numpy(), predictions["predicted"].to_numpy()
    macro = precision_recall_f1(labels, predicted)
    found = {
        "n": len(labels),
        "accuracy": accuracy(labels, predicted),
        "top5_accuracy": float(predictions["hit"].mean()),
        **{f"{name}_macro": value for name, value in macro.items()},
    }
    for name, value in found.items():
        if abs(test[name] - value) > 1e-9:
            raise RunError(
                f"The figures in {directory} contradict each other: {name} is {test[name]:.6g} in "
                f"{files.METRICS_FILE} and {value:.6g} by {PREDICTIONS_FILE}; copy the whole "
                "directory again."
            )


def list_private_paths(settings: Mapping[str, Any], public: set[str | None]) -> list[str]:
    """Return the paths of this machine that a run's settings name, the longest first."""
    paths = {str(Path.home()), str(Path.cwd())}
    for value in settings.values():
        if isinstance(value, str) and {"/", os.sep} & set(value) and value not in public:
            paths |= {value, str(Path(value).resolve())}
    # The home directory in a bare container would match everything.
    return sorted(paths - {"/"}, key=len, reverse=True)


def hide_paths(value: Any, private: list[str]) -> Any:
    """Return JSON values with each of the paths, within any text, cut to its last part."""
    text = json.dumps(value)
    for path in private:
        text = text.replace(json.dumps(path)[1:-1], json.dumps(Path(path).name)[1:-1])
    return json.loads(text)
