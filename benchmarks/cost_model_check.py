"""The cost model against measured points: started by ``python -m benchmarks.cost_model --check``.

Writes ``benchmarks/results/cost_model_check_cpu.json``, ``.md`` and ``.png``. Bytes are the same on
a busy machine, seconds are not.
"""

from pathlib import Path
from typing import Any

import torch

from benchmarks.cost_formulas import (
    FLOAT32_BYTES,
    MOMENTS,
    build_on_meta,
    count_parameters,
    count_shard_elements,
    count_step_flops,
    make_config,
    peak_bytes,
    static_bytes,
)
from benchmarks.cost_model_cells import DDP_BATCH, MARK, MESSAGE_BYTES, SMALL, fit_line
from benchmarks.cost_model_cells import MODULE as CELLS
from benchmarks.cost_times import all_reduce_bytes
from benchmarks.harness import name_device, run_alone
from benchmarks.kernels import small_config
from benchmarks.report import (
    COLORS,
    MARKERS,
    format_bytes,
    format_table,
    make_axes,
    write_report,
)

# Shape, images, bfloat16, checkpointing. This CPU emulates bfloat16, which is slow.
MEMORY_POINTS = (
    ("B/16-224", 1, False, False),
    ("B/16-224", 2, False, False),
    ("B/16-224", 4, False, False),
    ("B/16-224", 8, False, False),
    ("B/16-224", 8, False, True),
    ("B/16-224", 1, True, False),
    ("L/16-256", 1, False, False),
)
# The first sets the rates at which the others are predicted.
TIME_POINTS = (("B/16-224", 4), ("B/16-224", 1), ("B/16-224", 2), ("L/16-256", 1), (SMALL, 64))
RANKS = (2, 4)

Point = dict[str, Any]


def _point(kind: str, what: str, unit: str, predicted: float, measured: float) -> Point:
    return {
        "kind": kind,
        "what": what,
        "unit": unit,
        "predicted": predicted,
        "measured": measured,
        "relative_error": predicted / measured - 1,
    }


def _run_cell(cell: str, shape: str, *options: str) -> dict[str, Any]:
    print(f"{cell}, {shape} {' '.join(options)}", flush=True)
    return run_alone(CELLS, [f"--cell={cell}", f"--shape={shape}", *options], MARK)


def check_memory() -> list[Point]:
    """Compare the peak of a training step, each in a process of its own."""
    points = []
    for shape, batch, bf16, checkpointing in MEMORY_POINTS:
        config = make_config(shape)
        parameters = count_parameters(config)
        found = _run_cell(
            "memory",
            shape,
            f"--batch_size={batch}",
            f"--bf16={bf16}",
            f"--checkpointing={checkpointing}",
        )
        what = f"{shape}, {'bfloat16' if bf16 else 'float32'}, batch {batch}"
        what += ", checkpointing" if checkpointing else ""
        predicted = peak_bytes(config, parameters, batch, bf16=bf16, checkpointing=checkpointing)
        points.append(_point("peak memory", what, "bytes", predicted, found["peak_bytes"]))
    lasting, _ = static_bytes(parameters, "ddp", 1)
    what = f"{shape}, float32: weights and moments"
    return [*points, _point("memory", what, "bytes", lasting, found["lasting_bytes"])]


def check_times() -> tuple[list[Point], float, float]:
    """Compare seconds a step: products at one rate, and the update of the parameters at another.

    Returns the points, and the FLOP/s and the parameters a second that the first step reached.
    """
    points, flop_rate, update_rate = [], 0.0, 0.0
    for shape, batch in TIME_POINTS:
        config = small_config(64) if shape == SMALL else make_config(shape)
        flops = batch * count_step_flops(config).step
        parameters = count_parameters(config).trained
        found = _run_cell("time", shape, f"--batch_size={batch}")
        if not flop_rate:
            flop_rate = flops / found["gradient_seconds"]
            update_rate = parameters / found["update_seconds"]
            continue
        predicted = flops / flop_rate + parameters / update_rate
        measured = found["gradient_seconds"] + found["update_seconds"]
        what = f"{shape}, float32, batch {batch}"
        points.append(_point("step time", what, "s", predicted, measured))
    return points, flop_rate, update_rate


def check_communication() -> tuple[list[Point], dict[str, Any]]:
    """Compare bytes on the loopback and seconds of all-reduces and of DDP's step."""
    shape = "B/16-224"
    points, lines = [], {}
    for ranks in RANKS:
        found = _run_cell("ddp", shape, f"--ranks={ranks}")["ranks"]
        first = found[0]
        size = FLOAT32_BYTES * first["parameters"]
        wire = ranks * all_reduce_bytes(size, ranks)
        name = f"{shape}, DDP, {ranks} ranks"
        points.append(_point("wire", f"{name}: all ranks", "bytes", wire, first["loopback_bytes"]))
        seconds = [
            max(row["reduce_seconds"][n] for row in found) for n in range(len(MESSAGE_BYTES))
        ]
        # The longest message is predicted from the shorter ones.
        start, rate = fit_line(MESSAGE_BYTES[:-1], seconds[:-1])
        lines[str(ranks)] = {"start_seconds": start, "bytes_per_second": rate}
        what = f"all-reduce of {format_bytes(MESSAGE_BYTES[-1])}, {ranks} ranks"
        predicted = start + MESSAGE_BYTES[-1] / rate
        points.append(_point("all-reduce time", what, "s", predicted, seconds[-1]))
        if "alone_seconds" in first:
            alone, together = (
                max(row[key] for row in found) for key in ("alone_seconds", "together_seconds")
            )
            # Every core computes: nothing travels for free.
            what = f"{name}, batch {DDP_BATCH} each: step"
            points.append(_point("step time", what, "s", alone + size / rate, together))
    return points, lines


def check_shards() -> list[Point]:
    """Compare what each rank of FSDP2 holds."""
    shape = "B/16-224"
    shapes = [
        tuple(parameter.shape) for parameter in build_on_meta(make_config(shape)).parameters()
    ]
    points = []
    for ranks in RANKS:
        found = _run_cell("fsdp", shape, f"--ranks={ranks}")["ranks"]
        for rank in (0, ranks - 1):
            held = FLOAT32_BYTES * count_shard_elements(shapes, ranks, rank)
            what = f"{shape}, FSDP2, rank {rank} of {ranks}: parameters and moments"
            measured = found[rank]["parameter_bytes"] + found[rank]["moment_bytes"]
            points.append(_point("shard", what, "bytes", (1 + MOMENTS) * held, measured))
    return points


def run_check(directory: Path, command: str) -> None:
    """Measure every point, print and write the comparison."""
    shards = check_shards()
    wire, lines = check_communication()
    times, flop_rate, update_rate = check_times()
    points = [*check_memory(), *shards, *wire, *times]

    def show(value: float, unit: str) -> Any:
        return format_bytes(round(value)) if unit == "bytes" else f"{value:.3g} s"

    table = format_table(
        ["measured point", "", "on paper", "measured", "error"],
        [
            [
                point["what"],
                point["kind"],
                show(point["predicted"], point["unit"]),
                show(point["measured"], point["unit"]),
                f"{point['relative_error']:+.1%}",
            ]
            for point in points
        ],
    )
    table += (
        f"\n\nStep times are predicted at {flop_rate / 1e9:.0f} GFLOP/s and "
        f"{update_rate / 1e6:.0f} M parameters updated a second, which {TIME_POINTS[0][0]} reached "
        f"with {TIME_POINTS[0][1]} images a step. gloo on the loopback: "
    )
    table += "; ".join(
        f"{ranks} ranks {line['bytes_per_second'] / 1e9:.2f} GB/s and "
        f"{1e3 * line['start_seconds']:.2f} ms a message"
        for ranks, line in lines.items()
    )
    device = torch.device("cpu")
    figure, axes = make_axes(f"On paper against measured, {name_device(device)}")
    kinds = list(dict.fromkeys(point["kind"] for point in points))
    for number, kind in enumerate(kinds):
        shown = [point for point in points if point["kind"] == kind]
        axes.plot(
            [point["measured"] for point in shown],
            [100 * point["relative_error"] for point in shown],
            MARKERS[number],
            color=COLORS[number],
            label=kind,
        )
    axes.axhline(0, color="#999999", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("measured, seconds or bytes")
    axes.set_ylabel("error of the prediction, %")
    axes.legend(frameon=False, fontsize=9)
    path = write_report(
        "cost_model_check",
        device,
        command,
        {"memory_points": MEMORY_POINTS, "time_points": TIME_POINTS, "ranks": RANKS},
        {"points": points, "flop_rate": flop_rate, "update_rate": update_rate, "gloo": lines},
        table + ".",
        figure,
        directory,
    )
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
