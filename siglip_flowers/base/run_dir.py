"""The files of a run, by name."""

from pathlib import Path

# Written last: a directory with this file and model/ holds a finished run.
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
# Written by some runs only.
PROBE_GRID_FILE = "probe_grid.csv"
TENSORBOARD_DIR = "tensorboard"
# A report of each split.
REPORT_DIRS = {split: f"report_{split}" for split in ("train", "validation", "test")}


def is_finished(directory: Path) -> bool:
    """Return whether the directory holds a finished run."""
    return (directory / METRICS_FILE).is_file() and (directory / MODEL_DIR).is_dir()
