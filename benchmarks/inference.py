"""Classify picture files: this package against transformers.pipeline and the model's own limit.

    python -m benchmarks.inference              # the small model, or SigLIP B/16 where a GPU is
    python -m benchmarks.inference --size base  # SigLIP B/16 at 224 pixels, full-size pictures

Every round runs every arm once, so that a busy machine slows all of them alike; the first round
warms up and does not count. All arms classify the same JPEG files, with the same weights under a
random head; the limit classifies as many pictures that lie in memory, one batch again and again.
Writes inference_<device>.json, .md and .png to --output_dir; --size base on a CPU, and small on a
GPU, add the size to the name.
"""

import argparse
import functools
import io
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, pipeline

from benchmarks.harness import (
    MemoryMeter,
    Sample,
    Stopwatch,
    alternate,
    compare,
    measure_memory,
    name_device,
    select_device,
    summarize,
)
from benchmarks.report import RESULTS, draw_bars, format_bytes, format_table, write_report
from siglip_flowers import FlowerClassifier, SiglipClassifier, SiglipClassifierConfig
from siglip_flowers.data.drawing import draw_flower
from siglip_flowers.labels import FLOWER_NAMES
from siglip_flowers.model.loading import load_classifier, load_image_processor

PIPELINE = "pipeline, defaults"
PIPELINE_BATCH = "pipeline, batch_size=64"
OURS = "FlowerClassifier"
OURS_FLOAT32 = "FlowerClassifier, float32"
OURS_COMPILED = "FlowerClassifier, compiled"
LIMIT = "limit of the model"
LIMIT_FLOAT32 = "limit of the model, float32"
ARMS = (PIPELINE, PIPELINE_BATCH, OURS_FLOAT32, OURS, OURS_COMPILED, LIMIT_FLOAT32, LIMIT)
DRAWN_PICTURES = 204
# As the photographs of Flowers102, whose shorter side has 500 pixels.
DRAWN_SIZE = (667, 500)


def prepare(options: argparse.Namespace, directory: Path) -> None:
    """Write the model and the JPEG files of a size into a directory."""
    torch.manual_seed(0)
    pictures = directory / "pictures"
    pictures.mkdir()
    if options.size == "small":
        model = load_classifier(options.model_name_or_path, FLOWER_NAMES)
        processor = load_image_processor(options.model_name_or_path)
        with tarfile.open(Path(options.data_dir) / "102flowers.tgz") as archive:
            files = [member for member in archive if member.name.endswith(".jpg")]
            for member in files[: options.images]:
                content = archive.extractfile(member)
                assert content is not None
                (pictures / Path(member.name).name).write_bytes(content.read())
    else:
        size = {"height": 224, "width": 224}
        half = [0.5, 0.5, 0.5]
        processor = SiglipImageProcessorPil(size=size, image_mean=half, image_std=half)
        config = SiglipClassifierConfig(
            SiglipVisionConfig(), id2label=dict(enumerate(FLOWER_NAMES))
        )
        model = SiglipClassifier(config)
        for number in range(options.images):
            content = draw_jpeg(number % DRAWN_PICTURES)
            (pictures / f"{number:05d}.jpg").write_bytes(content)
    model.save_pretrained(directory / "model")
    processor.save_pretrained(directory / "model")


@functools.cache
def draw_jpeg(number: int) -> bytes:
    """Draw a flower at full size, with the fine grain that makes a photograph slow to decode."""
    drawn = Image.fromarray(draw_flower(number % 102, number // 102, 256, 0)).resize(DRAWN_SIZE)
    noise = np.random.default_rng(number).normal(0, 6, (DRAWN_SIZE[1], DRAWN_SIZE[0], 1))
    pixels = np.clip(np.asarray(drawn) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=90)
    return file.getvalue()


def build_arm(name: str, directory: Path, device: torch.device) -> Callable[[], Sample]:
    """Load what an arm needs and return a function that runs one round of it."""
    model = str(directory / "model")
    paths = sorted(map(str, (directory / "pictures").iterdir()))
    if name in (PIPELINE, PIPELINE_BATCH):
        classify = pipeline("image-classification", model=model, device=device)
        options = {"batch_size": 64} if name == PIPELINE_BATCH else {}
        return lambda: run_timed(lambda: classify(paths, **options), len(paths), device)
    classifier = FlowerClassifier.from_pretrained(
        model,
        device=device,
        dtype="float32" if name in (OURS_FLOAT32, LIMIT_FLOAT32) else "auto",
        compile=name == OURS_COMPILED,
    )
    if name not in (LIMIT, LIMIT_FLOAT32):
        return lambda: run_timed(lambda: classifier(paths), len(paths), device)
    size = load_image_processor(model).size["height"]
    batch = torch.randint(0, 256, (classifier.batch_size, 3, size, size), dtype=torch.uint8)
    batches = max(1, len(paths) // len(batch))

    def run_limit() -> None:
        for _ in range(batches):
            classifier.engine.classify(batch)

    return lambda: run_timed(run_limit, batches * len(batch), device)


def run_timed(work: Callable[[], object], images: int, device: torch.device) -> Sample:
    """Do the work once and return how long it took."""
    with Stopwatch(device) as watch:
        work()
    return Sample(images, watch.seconds)


def measure(options: argparse.Namespace, directory: Path, device: torch.device) -> None:
    """Run all rounds, then each arm in a process of its own for its memory, and write it up."""
    names = [name for name in ARMS if options.compile or name != OURS_COMPILED]
    arms = {name: build_arm(name, directory, device) for name in names}
    samples = alternate(arms, options.rounds)
    del arms
    results = {name: summarize(rounds) for name, rounds in samples.items()}
    for name in names:
        ratio = compare(samples, name, PIPELINE)
        results[name]["times_pipeline"] = ratio
        memory = measure_memory(
            "benchmarks.inference",
            ["--memory_of", name, "--directory", str(directory), *(["--cpu"] * options.cpu)],
        )
        results[name]["memory"] = memory
    share = compare(samples, OURS, LIMIT)
    share_float32 = compare(samples, OURS_FLOAT32, LIMIT_FLOAT32)
    memory_key = "cuda_bytes" if device.type == "cuda" else "anonymous_bytes"
    table = format_table(
        ["arm", "images/s", "slowest to fastest round", "times the pipeline", "peak memory"],
        [
            (
                name,
                result["images_per_second"],
                f"{result['images_per_second_min']:.0f} to {result['images_per_second_max']:.0f}",
                result["times_pipeline"],
                format_bytes(result["memory"][memory_key]),
            )
            for name, result in results.items()
        ],
    )
    pictures = (
        "64-pixel photographs, SigLIP of 4.1 M parameters"
        if options.size == "small"
        else f"drawn pictures of {DRAWN_SIZE[0]} x {DRAWN_SIZE[1]} pixels, SigLIP B/16 at 224"
    )
    table = (
        f"{options.images} JPEG files ({pictures}), {options.rounds} rounds. {OURS} reaches "
        f"{100 * share:.0f} % of the model's limit, {100 * share_float32:.0f} % in float32.\n\n"
        + table
    )
    print(table)
    usual = "base" if device.type == "cuda" else "small"
    path = write_report(
        "inference" if options.size == usual else f"inference_{options.size}",
        device,
        describe_command(),
        {name: getattr(options, name) for name in ("size", "images", "rounds")},
        {"arms": results, "share_of_limit": share, "share_of_limit_float32": share_float32},
        table,
        draw_bars(
            f"Classifying JPEG files, {name_device(device)}",
            "images per second",
            results,
            {name: f"({result['times_pipeline']:.1f}x)" for name, result in results.items()},
        ),
        options.output_dir,
    )
    print(f"Written to {path}")


def describe_command() -> str:
    """Return what was typed, with the number of threads where the environment sets it."""
    threads = os.environ.get("OMP_NUM_THREADS")
    words = ["python -m benchmarks.inference", *sys.argv[1:]]
    return " ".join([f"OMP_NUM_THREADS={threads}", *words] if threads else words)


def main() -> int:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("small", "base"), help="Default: by the device.")
    parser.add_argument("--images", type=int, help="JPEG files; default: 1024 small, 4096 base.")
    parser.add_argument("--rounds", type=int, default=7, help="Rounds that count.")
    parser.add_argument("--compile", action="store_true", help="Measure torch.compile too.")
    parser.add_argument("--cpu", action="store_true", help="Leave the GPU alone.")
    parser.add_argument("--data_dir", default="../shared/flowers102-64px")
    parser.add_argument("--model_name_or_path", default="../shared/siglip-nano")
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    parser.add_argument("--memory_of", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = select_device(options.cpu)
    if options.memory_of:
        with MemoryMeter(device) as meter:
            build_arm(options.memory_of, options.directory, device)()
        meter.report()
        return 0
    options.size = options.size or ("base" if device.type == "cuda" else "small")
    options.images = options.images or (4096 if options.size == "base" else 1024)
    with tempfile.TemporaryDirectory() as directory:
        prepare(options, Path(directory))
        measure(options, Path(directory), device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
