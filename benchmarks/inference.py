"""Classify image files: this package against transformers.pipeline and the model's own limit.

    python -m benchmarks.inference              # the small model, or SigLIP B/16 where a GPU is
    python -m benchmarks.inference --size base  # SigLIP B/16 at 224 pixels, full-size images

The small model classifies the 64-pixel photographs. The images of base are photographs or drawn
flowers enlarged to 667 x 500 pixels, without added noise, which would swell the files.

Every round runs every arm once, so that a busy machine slows all of them alike; the first round
warms up and does not count. All arms classify the same JPEG files, with the same weights under a
random head; the limit classifies as many images that lie in memory, one batch again and again.
Writes inference_<device>.json and .md to --output_dir; --size base on a CPU, and small on a
GPU, add the size to the name.
"""

import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import SiglipVisionConfig, pipeline

from benchmarks.harness import (
    MemoryMeter,
    Sample,
    alternate,
    compare,
    measure_memory,
    run_benchmark,
    run_timed,
    select_device,
    summarize,
)
from benchmarks.images import SHARED, make_processor, write_full_size
from benchmarks.report import RESULTS, format_bytes, format_table, write_report
from siglip_flowers import SiglipClassifier, SiglipClassifierConfig, SiglipImageClassifier
from siglip_flowers.base.errors import InputError
from siglip_flowers.base.prompts import FLOWER_NAMES
from siglip_flowers.config.fields import check_choice, positive
from siglip_flowers.model.loading import load_classifier, load_image_processor

MODULE = "benchmarks.inference"
PIPELINE = "pipeline, defaults"
PIPELINE_BATCH = "pipeline, batch_size=64"
OURS = "SiglipImageClassifier"
OURS_FLOAT32 = "SiglipImageClassifier, float32"
LIMIT = "limit of the model"
LIMIT_FLOAT32 = "limit of the model, float32"
ARMS = (PIPELINE, PIPELINE_BATCH, OURS_FLOAT32, OURS, LIMIT_FLOAT32, LIMIT)
ARCHIVE = "102flowers.tgz"
# Of each class, and two more; they are repeated until there are enough.
LARGE_PER_CLASS = 2


@dataclass
class InferenceOptions:
    """What is classified, and how often."""

    size: str | None = field(
        default=None,
        metadata={"help": "small or base, SigLIP B/16 at 224 pixels; default: by the device."},
    )
    images: int | None = field(
        default=None, metadata={"help": "JPEG files; default: 1024 small, 4096 base."}
    )
    rounds: int = field(default=7, metadata={"help": "Rounds that count."})
    cpu: bool = field(default=False, metadata={"help": "Leave the GPU alone."})
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": f"Folder with {ARCHIVE}, which small reads; default: shared/flowers102-64px "
            "beside the repository."
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint of small; default: shared/siglip-nano beside the repository."
        },
    )
    output_dir: str = field(default=str(RESULTS), metadata={"help": "Where results are written."})
    memory_of: str | None = field(
        default=None,
        metadata={"help": "Run one arm only, on --directory, and print its peak memory."},
    )
    directory: str | None = field(
        default=None, metadata={"help": "Model and images of --memory_of."}
    )

    def __post_init__(self) -> None:
        check_choice("size", self.size, ("small", "base"))
        check_choice("memory_of", self.memory_of, ARMS)
        for name in ("images", "rounds"):
            positive(name, getattr(self, name))


def prepare(options: InferenceOptions, directory: Path) -> None:
    """Write the model and the JPEG files of a size into a directory.

    Raises:
        InputError: The photographs or the checkpoint of the small size are not there.
    """
    assert options.images is not None
    torch.manual_seed(0)
    images = directory / "images"
    images.mkdir()
    if options.size == "small":
        checkpoint = options.model_name_or_path or str(SHARED / "siglip-nano")
        path = Path(options.data_dir or SHARED / "flowers102-64px") / ARCHIVE
        if not path.is_file():
            raise InputError(
                f"There is no {path}; name a folder that holds {ARCHIVE} with --data_dir, or "
                "choose --size base, whose images are made on the spot."
            )
        model = load_classifier(checkpoint, FLOWER_NAMES)
        processor = load_image_processor(checkpoint)
        with tarfile.open(path) as archive:
            members = [member for member in archive if member.name.endswith(".jpg")]
            for member in members[: options.images]:
                content = archive.extractfile(member)
                assert content is not None
                (images / Path(member.name).name).write_bytes(content.read())
    else:
        processor = make_processor(224)
        config = SiglipClassifierConfig(
            SiglipVisionConfig(), id2label=dict(enumerate(FLOWER_NAMES))
        )
        model = SiglipClassifier(config)
        photographs = SHARED / "flowers102-64px"
        source = photographs if photographs.is_dir() else None
        large = write_full_size(directory / "large", source, LARGE_PER_CLASS)
        files = sorted(large.rglob("*.jpg"))
        for number in range(options.images):
            shutil.copyfile(files[number % len(files)], images / f"{number:05d}.jpg")
    model.save_pretrained(directory / "model")
    processor.save_pretrained(directory / "model")


def build_arm(name: str, directory: Path, device: torch.device) -> Callable[[], Sample]:
    """Load what an arm needs and return a function that runs one round of it."""
    model = str(directory / "model")
    paths = sorted(map(str, (directory / "images").iterdir()))
    if name in (PIPELINE, PIPELINE_BATCH):
        classify = pipeline("image-classification", model=model, device=device)
        options = {"batch_size": 64} if name == PIPELINE_BATCH else {}
        return lambda: run_timed(lambda: classify(paths, **options), len(paths), device)
    classifier = SiglipImageClassifier.from_pretrained(
        model, device=device, dtype="float32" if name in (OURS_FLOAT32, LIMIT_FLOAT32) else "auto"
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


def measure(options: InferenceOptions, directory: Path, device: torch.device, command: str) -> None:
    """Run all rounds, then each arm in a process of its own for its memory, and write it up."""
    arms = {name: build_arm(name, directory, device) for name in ARMS}
    samples = alternate(arms, options.rounds)
    del arms
    results = {name: summarize(rounds) for name, rounds in samples.items()}
    for name in ARMS:
        ratio = compare(samples, name, PIPELINE)
        results[name]["times_pipeline"] = ratio
        memory = measure_memory(
            MODULE, [f"--memory_of={name}", f"--directory={directory}", f"--cpu={options.cpu}"]
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
    images = (
        "64-pixel photographs, SigLIP of 4.1 M parameters"
        if options.size == "small"
        else "noise-free images of 667 x 500 pixels, SigLIP B/16 at 224"
    )
    table = (
        f"{options.images} JPEG files ({images}), {options.rounds} rounds. {OURS} reaches "
        f"{100 * share:.0f}% of the model's limit, {100 * share_float32:.0f}% in float32.\n\n"
        + table
    )
    print(table)
    usual = "base" if device.type == "cuda" else "small"
    path = write_report(
        "inference" if options.size == usual else f"inference_{options.size}",
        device,
        command,
        {name: getattr(options, name) for name in ("size", "images", "rounds")},
        {"arms": results, "share_of_limit": share, "share_of_limit_float32": share_float32},
        table,
        Path(options.output_dir),
    )
    print(f"Written to {path}")


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and measure."""
    return run_benchmark(InferenceOptions, MODULE, __doc__, _run, argv)


def _run(options: InferenceOptions, command: str) -> None:
    device = select_device(options.cpu)
    if options.memory_of is not None:
        with MemoryMeter(device) as meter:
            build_arm(options.memory_of, Path(str(options.directory)), device)()
        meter.report()
        return
    options.size = options.size or ("base" if device.type == "cuda" else "small")
    options.images = options.images or (4096 if options.size == "base" else 1024)
    with tempfile.TemporaryDirectory() as directory:
        prepare(options, Path(directory))
        measure(options, Path(directory), device, command)


if __name__ == "__main__":
    sys.exit(main())
