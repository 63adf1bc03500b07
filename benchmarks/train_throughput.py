"""Training speed: the package against the device's limit and the usual script.

    python -m benchmarks.train_throughput --preset cpu
    python -m benchmarks.train_throughput --preset gpu

The arms run in turn in one process, then each by itself for its peak memory. Writes
``benchmarks/results/train_throughput_<device>.json`` and ``.md``.
"""

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.flops import compute_utilization, count_forward_flops
from benchmarks.harness import (
    MemoryMeter,
    alternate,
    compare,
    get_own_bytes,
    list_memory_options,
    measure_memory,
    name_device,
    run_benchmark,
    summarize,
)
from benchmarks.images import SourceOptions, fill_sources
from benchmarks.report import RESULTS, format_bytes, format_table, write_report
from benchmarks.training_arms import ARMS, LABELS, TrainingJob, build_arms, prepare_job
from siglip_flowers.config import AugmentationArguments, DataArguments, ModelArguments
from siglip_flowers.config.fields import check_choice, positive

MODULE = "benchmarks.train_throughput"
TARGETS = {"cpu": 1.0, "gpu": 2.0}
LIMIT_TARGET = 0.95
MEMORY_TARGET = 1.0
SETTINGS = ("preset", "batch_size", "steps", "rounds", "attn_implementation", "pooling")
SETTINGS += ("train_resize_scale", "torch_compile")


@dataclass
class ThroughputOptions(SourceOptions):
    """What is trained, and how long."""

    image_size: int | None = field(default=None, metadata={"help": "Default: the checkpoint's."})
    steps: int | None = field(
        default=None, metadata={"help": "Timed steps a round; default: 20; gpu: 40."}
    )
    rounds: int = field(default=5, metadata={"help": "Rounds of each arm after the warm-up."})
    num_workers: int | None = field(
        default=None, metadata={"help": "Of both Trainers; default: the package's own choice."}
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "Default: where the device computes it natively."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Default: eager; gpu: sdpa."}
    )
    pooling: str = field(
        default="map",
        metadata={
            "help": "Of the limit and the package: map, the default of train.py, trains the "
            "attention-pooling head too; mean is what the usual script's model does."
        },
    )
    train_resize_scale: float = field(
        default=1.0, metadata={"help": "As the option of train.py; 1.15 is its default."}
    )
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the model of the limit and of the package."}
    )
    memory: bool = field(default=True, metadata={"help": "Measure peak memory too."})
    memory_of: str | None = field(
        default=None, metadata={"help": "Run one arm only and print its peak memory."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Of decoded pixels; default: a temporary one."}
    )
    output_dir: str = field(default=str(RESULTS), metadata={"help": "Where results are written."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("pooling", self.pooling, ("map", "mean"))
        check_choice("memory_of", self.memory_of, ARMS)
        for name in ("image_size", "steps", "rounds"):
            positive(name, getattr(self, name))


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, measure, and write the results."""
    return run_benchmark(ThroughputOptions, MODULE, __doc__, _run, argv)


def _run(options: ThroughputOptions, command: str) -> None:
    with tempfile.TemporaryDirectory(prefix="train_throughput_") as work_dir:
        fill_preset(options, Path(work_dir))
        job = make_job(options, Path(work_dir))
        if options.memory_of is not None:
            with MemoryMeter(job.device) as meter:
                build_arms(job)[options.memory_of]()
                meter.report()
            return
        results = measure(job, options)
    path = write_throughput(job, options, results, command)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


def fill_preset(options: ThroughputOptions, work_dir: Path) -> None:
    """Fill what was left out; writes the images and the checkpoint that the preset asks for."""
    gpu = options.preset == "gpu"
    options.cache_dir = options.cache_dir or str(work_dir / "cache")
    fill_sources(options, work_dir)
    options.steps = options.steps or (40 if gpu else 20)
    options.attn_implementation = options.attn_implementation or ("sdpa" if gpu else "eager")


def make_job(options: ThroughputOptions, work_dir: Path) -> TrainingJob:
    """Resolve the options into a training job."""
    assert options.model_name_or_path is not None
    assert options.batch_size is not None
    assert options.steps is not None
    job = prepare_job(
        ModelArguments(
            model_name_or_path=options.model_name_or_path,
            image_size=options.image_size,
            pooling=options.pooling,
            attn_implementation=options.attn_implementation,
        ),
        # Photographs scaled to few pixels, or drawn without noise, may be equal.
        DataArguments(
            data_dir=options.data_dir, cache_dir=options.cache_dir, allow_duplicates=True
        ),
        work_dir / "run",
        batch_size=options.batch_size,
        steps=options.steps,
        skip_steps=2,
        augmentation=AugmentationArguments(train_resize_scale=options.train_resize_scale),
        num_workers=options.num_workers,
        bf16=options.bf16,
        torch_compile=options.torch_compile,
    )
    # Workers start a round with the batches that they fetched before anybody asked.
    training = job.arguments.training
    ahead = (training.dataloader_num_workers or 0) * (training.dataloader_prefetch_factor or 2)
    job.skip_steps += ahead
    training.max_steps = job.skip_steps + job.steps
    return job


def measure(job: TrainingJob, options: ThroughputOptions) -> dict[str, Any]:
    """Run all arms in turn, then each alone; returns what is written as ``results``."""
    samples = alternate(build_arms(job), options.rounds)
    flops = count_forward_flops(
        job.load_vision_config(), len(job.data.class_names), map_head=options.pooling == "map"
    )
    arms: dict[str, dict[str, Any]] = {}
    for name in ARMS:
        arms[name] = summarize(samples[name])
        arms[name]["model_flop_utilization"] = compute_utilization(
            arms[name]["images_per_second"], flops, name_device(job.device)
        )
        arms[name]["peak_memory"] = (
            measure_memory(MODULE, list_memory_options(options, name)) if options.memory else None
        )
    limit, usual = compare(samples, "ours", "limit"), compare(samples, "ours", "usual")
    own, theirs = (get_own_bytes(arms[name]["peak_memory"]) for name in ("ours", "usual"))
    memory = own / theirs if own and theirs else None
    fast = limit >= LIMIT_TARGET and usual >= TARGETS[options.preset]
    return {
        "arms": arms,
        "ours_over_limit": limit,
        "ours_over_usual": usual,
        "memory_over_usual": memory,
        "targets": {
            "ours_over_limit": LIMIT_TARGET,
            "ours_over_usual": TARGETS[options.preset],
            "memory_over_usual": MEMORY_TARGET,
            # None: fast enough, and the memory is not known.
            "met": fast and (None if memory is None else memory <= MEMORY_TARGET),
        },
        "forward_flops_per_image": flops,
    }


def write_throughput(
    job: TrainingJob, options: ThroughputOptions, results: dict[str, Any], command: str
) -> Path:
    """Write JSON and table."""
    arms = results["arms"]
    training = job.arguments.training
    rows = []
    for name in ARMS:
        arm = arms[name]
        memory = arm["peak_memory"] or {}
        peak = memory.get("cuda_bytes") or memory.get("resident_bytes")
        utilization, wait = arm["model_flop_utilization"], arm["data_wait_share"]
        rows.append(
            [
                LABELS[name],
                arm["images_per_second"],
                f"{arm['images_per_second_min']:,.0f} to {arm['images_per_second_max']:,.0f}",
                f"{wait:.1%}",
                format_bytes(peak),
                format_bytes(memory.get("anonymous_bytes")),
                None if utilization is None else f"{utilization:.1%}",
            ]
        )
    columns = ["arm", "images/s", "rounds", "waiting for data", "peak memory"]
    table = format_table([*columns, "of the host, without mapped files", "FLOP utilization"], rows)
    table += (
        f"\n\nsiglip_flowers reaches {results['ours_over_limit']:.3f} of the limit "
        f"(target {LIMIT_TARGET}) and is {results['ours_over_usual']:.2f} times as fast as the "
        f"usual script (target {TARGETS[options.preset]:g})."
    )
    if results["memory_over_usual"] is not None:
        table += (
            f" Its peak memory is {results['memory_over_usual']:.3f} of the usual script's "
            f"(target: at most {MEMORY_TARGET:g}; on a CPU without mapped files)."
        )
    settings = {
        **{name: getattr(options, name) for name in SETTINGS},
        "model": Path(str(options.model_name_or_path)).name,
        "data": job.data.description,
        "image_size": job.processor.size["height"],
        "skipped_steps": job.skip_steps,
        "num_workers": training.dataloader_num_workers or 0,
        "bf16": bool(training.bf16),
        "optim": str(getattr(training.optim, "value", training.optim)),
    }
    return write_report(
        "train_throughput",
        job.device,
        command,
        settings,
        results,
        table,
        Path(options.output_dir),
    )


if __name__ == "__main__":
    sys.exit(main())
