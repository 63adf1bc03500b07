"""Time and peak memory as the number and the size of the images grow, against the usual script.

    python -m benchmarks.scaling

A very small model, so that the input path shows. Every figure comes from a process of its own.
Writes ``benchmarks/results/scaling_<device>.json`` and ``.md``.
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import MemoryMeter, Stopwatch, run_alone, run_benchmark, select_device
from benchmarks.images import tiny_config, write_checkpoint, write_random_images
from benchmarks.report import RESULTS, format_bytes, format_table, write_report
from benchmarks.training_arms import (
    LABELS,
    TrainingJob,
    build_usual,
    build_usual_model,
    prepare_job,
    time_trainer,
)
from siglip_flowers.config import AugmentationArguments, DataArguments, ModelArguments
from siglip_flowers.config.fields import positive
from siglip_flowers.training.build import build_model
from siglip_flowers.training.trainer import SiglipTrainer

MODULE = "benchmarks.scaling"
ARMS = ("ours", "usual")
MARK = "cell: "
SKIPPED_STEPS = 2
SETTINGS = ("factors", "image_sizes", "per_class", "batch_size")
# Files are larger than what is trained on, as photographs are.
FILE_SCALE = 4 / 3


@dataclass
class ScalingOptions:
    """What grows, and how far."""

    factors: list[int] = field(
        default_factory=lambda: [1, 4, 16], metadata={"help": "Multiples of the images."}
    )
    image_sizes: list[int] = field(
        default_factory=lambda: [64, 128, 224, 384],
        metadata={"help": "Sides in pixels, multiples of 8; the first goes with --factors."},
    )
    per_class: int = field(
        default=5, metadata={"help": "Training images in each of the 102 classes, times 1."}
    )
    batch_size: int = field(default=32, metadata={"help": "Images a step."})
    num_workers: int | None = field(
        default=None, metadata={"help": "Of both Trainers; default: the package's own choice."}
    )
    output_dir: str = field(default=str(RESULTS), metadata={"help": "Where results are written."})
    cell: str | None = field(
        default=None, metadata={"help": "Measure one arm only, on --folder; prints JSON."}
    )
    folder: str | None = field(default=None, metadata={"help": "Images and model of --cell."})

    def __post_init__(self) -> None:
        for name in ("per_class", "batch_size"):
            positive(name, getattr(self, name))


def measure_cell(arm: str, folder: Path, options: ScalingOptions) -> dict[str, Any]:
    """Load the images, read them all once, train an epoch; returns seconds and peak memory.

    ``setup_seconds`` is loading and, for the package, building the cache; ``input_seconds`` one
    pass over decoded, varied and normalized batches; ``epoch_seconds`` one epoch of training.
    """
    device = select_device()
    with MemoryMeter(device) as meter:
        start = time.perf_counter()
        job = prepare_job(
            ModelArguments(model_name_or_path=str(folder / "model"), attn_implementation="eager"),
            DataArguments(data_dir=str(folder / "images"), cache_dir=str(folder / "cache")),
            folder / "run",
            batch_size=options.batch_size,
            steps=1,
            skip_steps=SKIPPED_STEPS,
            augmentation=AugmentationArguments(train_resize_scale=1.0),
            num_workers=options.num_workers,
        )
        count = len(job.data.splits["train"])
        job.steps = max(1, count // options.batch_size - SKIPPED_STEPS)
        job.arguments.training.max_steps = SKIPPED_STEPS + job.steps
        trainer = build_ours(job) if arm == "ours" else build_usual(job, build_usual_model(job))
        setup = time.perf_counter() - start
        with Stopwatch(device) as watch:
            read_all(trainer, job, arm)
        sample = time_trainer(trainer, job)
        return {
            "images": count,
            "setup_seconds": setup,
            "input_seconds": watch.seconds,
            "epoch_seconds": count / sample.rate,
            "peak_memory": meter.read(),
        }


def build_ours(job: TrainingJob) -> Any:
    """Build the package's Trainer, and its cache if it is not there."""
    model = build_model(job.arguments, job.data, job.processor)
    return SiglipTrainer(job.arguments, job.data, model, job.processor)


def read_all(trainer: Any, job: TrainingJob, arm: str) -> None:
    """Prepare every batch of an epoch as the model would get it, on the device."""
    for number, batch in enumerate(trainer.get_train_dataloader()):
        inputs = trainer._prepare_inputs(batch)
        if arm == "ours":
            pixels, _ = trainer.augmenter(
                inputs["pixel_values"], inputs["labels"], inputs["index"], number
            )
            trainer.normalizer(pixels)


def start_cell(arm: str, folder: Path, options: ScalingOptions) -> dict[str, Any]:
    """Measure one arm in a process of its own.

    Raises:
        RunError: The process failed.
    """
    argv = [f"--cell={arm}", f"--folder={folder}", f"--batch_size={options.batch_size}"]
    if options.num_workers is not None:
        argv.append(f"--num_workers={options.num_workers}")
    return run_alone(MODULE, argv, MARK)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, measure, and write the results."""
    return run_benchmark(ScalingOptions, MODULE, __doc__, _run, argv)


def _run(options: ScalingOptions, command: str) -> None:
    if options.cell is not None:
        print(MARK + json.dumps(measure_cell(options.cell, Path(str(options.folder)), options)))
        return
    first = options.image_sizes[0]
    grid = [(factor, first) for factor in options.factors]
    grid += [(options.factors[0], size) for size in options.image_sizes[1:]]
    cells = []
    for factor, size in grid:
        with tempfile.TemporaryDirectory(prefix="scaling_") as folder:
            place = Path(folder)
            write_random_images(
                place / "images", factor * options.per_class, round(size * FILE_SCALE)
            )
            write_checkpoint(place / "model", tiny_config(size))
            for arm in ARMS:
                cell = start_cell(arm, place, options)
                cells.append({"arm": arm, "factor": factor, "image_size": size, **cell})
                print(f"{LABELS[arm]}, {cell['images']} images of {size} px: done", flush=True)
    write_scaling(cells, options, command)


def write_scaling(cells: list[dict[str, Any]], options: ScalingOptions, command: str) -> None:
    """Write JSON and table."""
    device = select_device()
    heads = ["", "images", "pixels", "set-up, s", "input path, s", "epoch, s"]
    table = format_table(
        [*heads, "peak memory", "without mapped files"],
        [
            [
                LABELS[cell["arm"]],
                cell["images"],
                cell["image_size"],
                cell["setup_seconds"],
                cell["input_seconds"],
                cell["epoch_seconds"],
                format_bytes(cell["peak_memory"]["resident_bytes"]),
                format_bytes(cell["peak_memory"]["anonymous_bytes"]),
            ]
            for cell in cells
        ],
    )
    path = write_report(
        "scaling",
        device,
        command,
        {name: getattr(options, name) for name in SETTINGS},
        {"cells": cells},
        table,
        Path(options.output_dir),
    )
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
