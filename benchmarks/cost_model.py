"""Cost and memory on paper of training B/16, L/16, so400m and g on 1 to 1024 GPUs.

    python -m benchmarks.cost_model
    python -m benchmarks.cost_model --check

The first writes predictions to ``benchmarks/results/cost_model.json``, ``.md`` and ``.png``; the
second measures what a CPU can measure of them, see ``cost_model_check``.
"""

import json
import math
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.cost_formulas import (
    SHAPES,
    STRATEGIES,
    Parameters,
    count_parameters,
    count_saved_bytes,
    count_step_flops,
    largest_batch,
    make_config,
    static_bytes,
)
from benchmarks.cost_times import (
    GPUS,
    Assumptions,
    Epoch,
    Gpu,
    Job,
    predict_epoch,
    predict_step,
)
from benchmarks.harness import run_benchmark
from benchmarks.report import RESULTS, draw_lines, format_cell, format_table, make_panels
from siglip_flowers.base.files import write_json, write_text
from siglip_flowers.config import check_positive, check_range
from siglip_flowers.plots.theme import save_figure

MODULE = "benchmarks.cost_model"
WORLDS = [2**power for power in range(11)]
# One of each size; all take 64 images on 80 GB without checkpointing.
SCALED = ("B/16-224", "L/16-256", "so400m/14-384", "g-opt/16-256")
GPU_GIGABYTES = (24, 40, 80)
FLOWERS, MILLION = 6149, 10**6
FLOWERS_BATCH, MILLION_BATCH, LOCAL_BATCH = 64, 1024, 64
UTILIZATIONS = (0.3, 0.4, 0.5)
STORES = RESULTS / "stores_cpu.json"
NOTE = (
    "All of this is on paper: nothing here was measured on a GPU. Except where a table says "
    "otherwise: {gpu}, one network card a node of eight, {share:.0%} of the peak, bfloat16 "
    "autocast, sdpa attention, DDP, float32 weights and AdamW."
)


@dataclass
class CostOptions:
    """What is assumed, and where tables go."""

    check: bool = field(
        default=False, metadata={"help": "Measure the points that this CPU can, instead."}
    )
    utilization: float = field(
        default=0.4, metadata={"help": "Share of a GPU's peak that the products reach."}
    )
    local_batch: int = field(
        default=LOCAL_BATCH, metadata={"help": "Images a GPU where the batch grows with GPUs."}
    )
    output_dir: str = field(default=str(RESULTS), metadata={"help": "Where results are written."})

    def __post_init__(self) -> None:
        check_range("utilization", self.utilization, 0.01, 1.0)
        check_positive("local_batch", self.local_batch)


def read_cache_rate(path: Path = STORES) -> float:
    """Return the bytes a second that one process read from the pixel cache, as measured here.

    The slowest of the measured batches of 224-pixel images, whose pages are in memory.
    """
    rows = json.loads(path.read_text(encoding="utf-8"))["results"]["rows"]
    rates = [
        row["warm"]["images_per_second"] * 3 * row["image_size"] ** 2
        for row in rows
        if row["store"] == "NumPy memory map" and row["image_size"] == 224
    ]
    return min(rates)


def tabulate_models(counts: dict[str, Parameters]) -> str:
    """Return a row a model: parameters, GFLOP and saved megabytes of one image."""
    rows: list[list[Any]] = []
    for name, parameters in counts.items():
        config = make_config(name)
        depth = config.num_hidden_layers
        plain = count_step_flops(config)
        steps = [
            plain,
            count_step_flops(config, checkpointing=True),
            count_step_flops(config, trained="lora"),
            count_step_flops(config, trained="head"),
        ]
        low = count_saved_bytes(config, bf16=True)
        saved = [
            count_saved_bytes(config, bf16=False).total(depth, False),
            low.total(depth, False),
            count_saved_bytes(config, bf16=True, attention="eager").total(depth, False),
            low.total(depth, True),
        ]
        rows.append(
            [
                name,
                parameters.total / 1e6,
                plain.forward / 1e9,
                *(flops.step / 1e9 for flops in steps),
                *(count / 1e6 for count in saved),
            ]
        )
    columns = ["model", "parameters, M", "forward, GFLOP", "step", "step, checkpointing"]
    columns += ["step, LoRA", "step, head only", "saved float32, MB", "saved bfloat16"]
    return format_table([*columns, "bfloat16, eager", "bfloat16, checkpointing"], rows)


def tabulate_memory(counts: dict[str, Parameters], assumptions: Assumptions) -> str:
    """Return a row a model: GB without activations, and the largest batch by size of the GPU."""
    rows: list[list[Any]] = []
    for name, parameters in counts.items():
        config = make_config(name)
        row: list[Any] = [name]
        for strategy, ranks in (("ddp", 1), ("ddp", 8), ("zero2", 8), ("fsdp2", 8), ("fsdp2", 64)):
            row.append(sum(static_bytes(parameters, strategy, ranks)) / 1e9)
        for gigabytes in GPU_GIGABYTES:
            usable = assumptions.usable_bytes(1e9 * gigabytes)
            for strategy in ("ddp", "fsdp2"):
                batches = [
                    largest_batch(
                        usable,
                        config,
                        parameters,
                        checkpointing=checkpointing,
                        strategy=strategy,
                        ranks=8,
                    )
                    for checkpointing in (False, True)
                ]
                row.append(" / ".join(str(batch) if batch else "-" for batch in batches))
        rows.append(row)
    columns = ["model", "1 GPU, GB", "DDP", "ZeRO-2, 8", "FSDP2, 8", "FSDP2, 64"]
    columns += [
        f"{gigabytes} GB, {name}" for gigabytes in GPU_GIGABYTES for name in ("DDP", "FSDP2, 8")
    ]
    return format_table(columns, rows)


def compare_worlds(
    jobs: dict[str, Job], images: int, *, global_batch: int | None, local_batch: int
) -> dict[str, dict[int, Epoch]]:
    """Predict an epoch for every number of GPUs: with one global batch, or one batch a GPU."""
    found: dict[str, dict[int, Epoch]] = {}
    for name, job in jobs.items():
        found[name] = {}
        for ranks in WORLDS:
            if global_batch is not None and ranks > global_batch:
                break
            batch = local_batch if global_batch is None else global_batch // ranks
            if batch > local_batch:
                # Accumulated: as many updates, each of several equal parts.
                parts = math.ceil(batch / local_batch)
                step = predict_step(job, ranks, local_batch)
                epoch = predict_epoch(job, ranks, batch, images)
                hidden = (parts - 1) * max(step.compute, step.input)
                train = epoch.updates * (step.total + hidden)
                hours = ranks * (train + epoch.other_seconds) / 3600
                found[name][ranks] = Epoch(epoch.updates, train, epoch.other_seconds, hours)
            else:
                found[name][ranks] = predict_epoch(job, ranks, batch, images)
    return found


def efficiency(epochs: dict[int, Epoch], ranks: int) -> float:
    """Return the share of N times the speed of one GPU that training reaches."""
    per_gpu = epochs[ranks].train_seconds * ranks
    return epochs[1].train_seconds / per_gpu


def find_knee(epochs: dict[int, Epoch], least: float = 0.5) -> int:
    """Return the largest number of GPUs up to which half of each is used."""
    good = 1
    for ranks in epochs:
        if efficiency(epochs, ranks) < least:
            break
        good = ranks
    return good


def tabulate_worlds(found: dict[str, dict[int, Epoch]]) -> str:
    """Return a row a number of GPUs: seconds of training, efficiency and GPU hours, all models."""
    rows: list[list[Any]] = []
    for ranks in next(iter(found.values())):
        row: list[Any] = [str(ranks), next(iter(found.values()))[ranks].updates]
        for epochs in found.values():
            epoch = epochs[ranks]
            share = f"{efficiency(epochs, ranks):.0%}"
            row.append(f"{format_cell(epoch.train_seconds)} s, {share}, {epoch.gpu_hours:.2g} h")
        rows.append(row)
    return format_table(["GPUs", "updates", *found], rows)


def tabulate_price(jobs: dict[str, Job], gpu_list: tuple[Gpu, ...]) -> str:
    """Return GPU hours of an epoch on one GPU, over the range of utilisations."""
    rows: list[list[Any]] = []
    for name, job in jobs.items():
        for gpu in gpu_list:
            row: list[Any] = [f"{name}, {gpu.name.split(',')[0]}"]
            for images in (FLOWERS, MILLION):
                for share in UTILIZATIONS:
                    guess = replace(job.assumptions, utilization=share)
                    there = replace(job, gpu=gpu, assumptions=guess)
                    row.append(predict_epoch(there, 1, LOCAL_BATCH, images).gpu_hours)
            rows.append(row)
    columns = [f"{count:,}, {share:.0%}" for count in (FLOWERS, MILLION) for share in UTILIZATIONS]
    return format_table(["GPU hours an epoch", *columns], rows)


def tabulate_strategies(jobs: dict[str, Job], local_batch: int) -> str:
    """Return seconds of a step by strategy and network, with what is exposed in brackets."""
    slow = replace(GPUS[1], network_rate=GPUS[0].network_rate)
    rows: list[list[Any]] = []
    for name, job in jobs.items():
        for ranks in (8, 64, 1024):
            row: list[Any] = [f"{name}, {ranks}"]
            for gpu in (slow, GPUS[1]):
                for strategy in STRATEGIES:
                    step = predict_step(
                        replace(job, gpu=gpu, strategy=strategy), ranks, local_batch
                    )
                    row.append(f"{1e3 * step.total:.0f} ({1e3 * step.exposed:.0f})")
            rows.append(row)
    columns = [f"{name}, {rate}" for rate in (200, 400) for name in ("DDP", "ZeRO-2", "FSDP2")]
    return format_table(["step, ms (exposed)", *columns], rows)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, predict or measure, and write the tables."""
    return run_benchmark(CostOptions, MODULE, __doc__, _run, argv)


def _run(options: CostOptions, argv: list[str]) -> None:
    command = " ".join(["python", "-m", MODULE, *argv])
    directory = Path(options.output_dir)
    if options.check:
        # The cells load torch's distributed parts, which predictions do without.
        from benchmarks.cost_model_check import run_check

        run_check(directory, command)
        return
    assumptions = Assumptions(utilization=options.utilization)
    read_rate = read_cache_rate()
    counts = {name: count_parameters(make_config(name)) for name in SHAPES}
    jobs = {
        name: Job(make_config(name), counts[name], GPUS[1], assumptions, read_rate=read_rate)
        for name in SCALED
    }
    local = options.local_batch
    studies = {
        f"Flowers102 ({FLOWERS} images), {FLOWERS_BATCH} images an update": compare_worlds(
            jobs, FLOWERS, global_batch=FLOWERS_BATCH, local_batch=local
        ),
        f"1 M images, {MILLION_BATCH} an update": compare_worlds(
            jobs, MILLION, global_batch=MILLION_BATCH, local_batch=local
        ),
        f"1 M images, {local} a GPU": compare_worlds(
            jobs, MILLION, global_batch=None, local_batch=local
        ),
        f"Flowers102, {local} a GPU": compare_worlds(
            jobs, FLOWERS, global_batch=None, local_batch=local
        ),
    }
    sections = {
        "Models, one image": tabulate_models(counts),
        "Bytes without activations; largest batch of a GPU, plain / checkpointing": tabulate_memory(
            counts, assumptions
        ),
        "One GPU, by share of its peak": tabulate_price(jobs, GPUS),
        "A step by strategy and network (Gbit/s a node)": tabulate_strategies(jobs, local),
        **{title: tabulate_worlds(found) for title, found in studies.items()},
    }
    knees = {
        title: {name: find_knee(epochs) for name, epochs in found.items()}
        for title, found in studies.items()
    }
    note = NOTE.format(gpu=GPUS[1].name, share=options.utilization)
    text = f"`{command}`\n\n{note}\n"
    for title, table in sections.items():
        text += f"\n## {title}\n\n{table}\n"
        if title in knees:
            knee = ", ".join(f"{name} {ranks}" for name, ranks in knees[title].items())
            text += f"\nMost GPUs with an efficiency of at least 50 %: {knee}.\n"
    write_json(
        directory / "cost_model.json",
        {
            "benchmark": "cost_model",
            "command": command,
            "predicted": True,
            "gpus": [asdict(gpu) for gpu in GPUS],
            "assumptions": {**asdict(assumptions), "cache_read_rate": read_rate},
            "parameters": {name: asdict(count) for name, count in counts.items()},
            "studies": {
                title: {
                    name: {str(ranks): asdict(epoch) for ranks, epoch in epochs.items()}
                    for name, epochs in found.items()
                }
                for title, found in studies.items()
            },
            "most_gpus_at_half_efficiency": knees,
        },
    )
    write_text(directory / "cost_model.md", f"{text}\n![cost_model](cost_model.png)\n")
    _draw(studies, directory / "cost_model.png", options.utilization)
    print(text)


def _draw(studies: dict[str, Any], path: Path, utilization: float) -> None:
    """Draw seconds an epoch and efficiency against the number of GPUs, a study a column."""
    shown = list(studies.items())[:3]
    title = f"On paper, not measured: {GPUS[1].name} a node, {utilization:.0%} of the peak, DDP"
    figure, panels = make_panels(title, 6, columns=3)
    for number, (name, found) in enumerate(shown):
        seconds, shares = {}, {}
        for model, epochs in found.items():
            worlds = list(epochs)
            seconds[model] = (worlds, [epochs[ranks].train_seconds for ranks in worlds])
            shares[model] = (worlds, [efficiency(epochs, ranks) for ranks in worlds])
        top, below = panels[number], panels[number + 3]
        draw_lines(top, "GPUs", "training, seconds an epoch", seconds)
        drawn = [value for _, line in seconds.values() for value in line]
        top.set_ylim(0.7 * min(drawn), 1.4 * max(drawn))
        top.set_yscale("log")
        legend = top.get_legend()  # the panel below has the same
        assert legend is not None
        legend.remove()
        top.set_title(name, fontsize=9, loc="left")
        draw_lines(below, "GPUs", "efficiency", shares)
        below.set_ylim(0, 1.05)
        for axes in (top, below):
            axes.tick_params(axis="x", labelsize=7)
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
