"""How fast exported classifiers run on the CPU, against the original in eager mode.

    python -m benchmarks.export

Every arm classifies the same batch, in float32 but for the one in 8-bit integers, with as many
threads as torch has. The weights are those of --model_name_or_path under a random head: speed does
not depend on them. What 8 bits cost in accuracy is printed by 'siglip-flowers export --int8'.
"""

import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import alternate, compare, run_benchmark, run_timed, summarize
from benchmarks.images import SHARED
from benchmarks.report import RESULTS, format_bytes, format_table, write_report
from siglip_flowers.base.prompts import FLOWER_NAMES
from siglip_flowers.config.fields import positive
from siglip_flowers.export.export import draw_images, name_inputs, prepare_images
from siglip_flowers.export.formats import (
    LogitsModel,
    OnnxClassifier,
    load_program,
    save_program,
    trace_program,
    write_int8,
    write_onnx,
)
from siglip_flowers.model.loading import load_classifier, load_image_processor

MODULE = "benchmarks.export"
REFERENCE = "eager"


@dataclass
class Options:
    """What is measured."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "The checkpoint; default: shared/siglip-nano beside the repository."},
    )
    pooling: str = field(default="map", metadata={"help": "map or mean."})
    batch_size: int = field(default=32, metadata={"help": "Images classified at once."})
    batches: int = field(default=4, metadata={"help": "Batches of a round."})
    rounds: int = field(default=5, metadata={"help": "Rounds that count."})
    output_dir: str = field(default=str(RESULTS), metadata={"help": "Where the files go."})

    def __post_init__(self) -> None:
        for name in ("batch_size", "batches", "rounds"):
            positive(name, getattr(self, name))


def build_arms(
    options: Options, directory: Path
) -> tuple[dict[str, Any], tuple[torch.Tensor, ...]]:
    """Write every format; return runners by name, and a batch."""
    checkpoint = options.model_name_or_path or str(SHARED / "siglip-nano")
    torch.manual_seed(0)
    model = load_classifier(checkpoint, FLOWER_NAMES, pooling=options.pooling).eval()
    processor = load_image_processor(checkpoint)
    names = name_inputs(model)
    batch = prepare_images(draw_images(options.batch_size), processor, names)
    program = trace_program(model, names, batch)
    save_program(program, directory / "model.pt2", {})
    write_onnx(program, names, directory / "model.onnx", {})
    write_int8(directory / "model.onnx", directory / "int8.onnx")
    model.save_pretrained(directory)
    return {
        REFERENCE: (LogitsModel(model, names), directory / "model.safetensors"),
        "exported_program": (load_program(directory / "model.pt2")[0], directory / "model.pt2"),
        "onnx": (OnnxClassifier(directory / "model.onnx"), directory / "model.onnx"),
        "onnx, int8": (OnnxClassifier(directory / "int8.onnx"), directory / "int8.onnx"),
    }, batch


@torch.no_grad()
def run_batches(runner: Any, batch: tuple[torch.Tensor, ...], batches: int) -> None:
    """Run one round."""
    for _ in range(batches):
        runner(*batch)


def measure(options: Options, command: str) -> None:
    """Measure, print and write."""
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as directory:
        arms, batch = build_arms(options, Path(directory))
        sizes = {name: path.stat().st_size for name, (_, path) in arms.items()}
        images = options.batches * options.batch_size
        works = {
            name: partial(run_batches, runner, batch, options.batches)
            for name, (runner, _) in arms.items()
        }
        rounds = {name: partial(run_timed, work, images, device) for name, work in works.items()}
        samples = alternate(rounds, options.rounds)
    results = {
        name: {
            **summarize(samples[name]),
            "times_eager": compare(samples, name, REFERENCE),
            "bytes": sizes[name],
        }
        for name in arms
    }
    table = format_table(
        ["format", "images/s", "slowest to fastest round", "times eager", "file"],
        [
            [
                name,
                row["images_per_second"],
                f"{row['images_per_second_min']:.0f} to {row['images_per_second_max']:.0f}",
                row["times_eager"],
                format_bytes(row["bytes"]),
            ]
            for name, row in results.items()
        ],
    )
    table = (
        f"Batches of {options.batch_size}, {options.pooling} pooling, {options.rounds} rounds.\n\n"
        f"{table}"
    )
    print(table)
    path = write_report(
        "export",
        device,
        command,
        {key: value for key, value in vars(options).items() if key != "output_dir"},
        results,
        table,
        Path(options.output_dir),
    )
    print(f"Written to {path}")


def main(argv: list[str] | None = None) -> int:
    """Parse the options and measure."""
    return run_benchmark(Options, MODULE, __doc__, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
