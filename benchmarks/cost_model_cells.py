"""One measured point of the cost model, in processes of its own: memory, time, wire or shards.

    python -m benchmarks.cost_model_cells --cell memory --batch_size 4

``python -m benchmarks.cost_model --check`` runs them all and compares. The CPU and the loopback are
measured; ``trace_step`` counts what torch would do, without doing it.
"""

import ctypes
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cost_formulas import CLASSES, FLOAT32_BYTES, make_config
from benchmarks.harness import MemoryMeter, run_benchmark
from benchmarks.kernels import small_config
from siglip_flowers.config import check_choice, check_positive
from siglip_flowers.model.classifier import SiglipClassifier, SiglipClassifierConfig
from siglip_flowers.runtime.devices import count_cores

MODULE = "benchmarks.cost_model_cells"
MARK = "cell: "
CELLS = ("memory", "time", "ddp", "fsdp")
SMALL = "8 layers x 192, 64 px"
MESSAGE_BYTES = [2**18, 2**20, 2**22, 2**24, 2**26]
REPEATS = 5
DDP_BATCH = 2
# glibc's mallopt: blocks of at least so many bytes go back to the system when they are freed.
M_MMAP_THRESHOLD, RETURNED_BYTES = -3, 2**16


@dataclass
class CellOptions:
    """One measured point."""

    cell: str = field(default="memory", metadata={"help": f"One of {', '.join(CELLS)}."})
    shape: str = field(default="B/16-224", metadata={"help": "The model, by its published name."})
    batch_size: int = field(default=1, metadata={"help": "Images a step."})
    bf16: bool = field(default=False, metadata={"help": "bfloat16 autocast."})
    checkpointing: bool = field(default=False, metadata={"help": "Recompute the layers."})
    ranks: int = field(default=2, metadata={"help": "Processes, of ddp and fsdp."})

    def __post_init__(self) -> None:
        check_choice("cell", self.cell, CELLS)
        check_positive("batch_size", self.batch_size)
        check_positive("ranks", self.ranks)


# Counted without computing ------------------------------------------------------------------------


@dataclass(frozen=True)
class Trace:
    """What torch itself counts in one step: bytes saved for the backward pass, products."""

    saved_bytes: int
    forward_flops: int
    step_flops: int


def trace_step(
    model: SiglipClassifier,
    batch: int,
    *,
    bf16: bool = False,
    attention: str = "eager",
    checkpointing: bool = False,
) -> Trace:
    """Run one step of a model on the meta device with tensors that have no contents.

    torch's counter of products knows no CPU kernel of sdpa: count them with eager attention.
    """
    model.set_attn_implementation(attention)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    config = model.config.vision_config
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        kept: dict[int, Any] = {}
        own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage
            return tensor

        pixels = torch.empty(batch, config.num_channels, config.image_size, config.image_size)
        labels = torch.zeros(batch, dtype=torch.long)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, FlopCounterMode(display=False) as flops:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = nn.functional.cross_entropy(model(pixel_values=pixels).logits, labels)
            forward = flops.get_total_flops()
            saved = sum(storage.nbytes() for storage in kept.values())
            loss.backward()
        return Trace(saved, forward, flops.get_total_flops())


# Measured -----------------------------------------------------------------------------------------


def build_classifier(shape: str) -> SiglipClassifier:
    """Build a model with fresh weights, sdpa attention, ready to train."""
    config = small_config(64) if shape == SMALL else make_config(shape)
    names = {n: str(n) for n in range(CLASSES)}
    model = SiglipClassifier(SiglipClassifierConfig(vision_config=config, id2label=names))
    model.set_attn_implementation("sdpa")
    return model.train()


def make_step(model: nn.Module, side: int, batch: int, bf16: bool = False) -> Callable[[], None]:
    """Return a function that computes the gradients of one batch."""
    pixels, labels = torch.randn(batch, 3, side, side), torch.arange(batch) % CLASSES

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(model(pixel_values=pixels).logits, labels)
        loss.backward()

    return step


def start_moments(model: nn.Module) -> torch.optim.AdamW:
    """Return AdamW with its moments there, as after a first step, and without gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def read_peak(reset: bool = False) -> int:
    """Return the highest resident size since the last reset."""
    if reset:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    peak = MemoryMeter(torch.device("cpu")).read()["resident_bytes"]
    assert peak is not None
    return peak


def measure_memory_cell(options: CellOptions) -> dict[str, Any]:
    """Return the peak of one training step above what the process had before the model.

    Freed blocks return to the system at once, so that the resident size is that of live tensors.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, RETURNED_BYTES)
    # Libraries set themselves up at their first use.
    small = build_classifier(SMALL)
    make_step(small, 64, 1, options.bf16)()
    start_moments(small)
    del small
    base = read_peak(reset=True)
    model = build_classifier(options.shape)
    if options.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = start_moments(model)
    config = model.config.vision_config
    step = make_step(model, config.image_size, options.batch_size, options.bf16)
    lasting = read_peak(reset=True) - base
    step()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return {"lasting_bytes": lasting, "peak_bytes": read_peak() - base}


def measure_time_cell(options: CellOptions) -> dict[str, Any]:
    """Return the seconds of gradients and of the update; the shortest of two after a warm-up."""
    model = build_classifier(options.shape)
    optimizer = start_moments(model)
    step = make_step(model, model.config.vision_config.image_size, options.batch_size)
    rounds = []
    for _ in range(3):
        optimizer.zero_grad()
        start = time.perf_counter()
        step()
        middle = time.perf_counter()
        optimizer.step()
        rounds.append((middle - start, time.perf_counter() - middle))
    gradients, update = (min(times) for times in zip(*rounds[1:], strict=True))
    return {"gradient_seconds": gradients, "update_seconds": update}


def _time_shortest(step: Callable[[], Any], repeats: int = REPEATS) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _read_loopback() -> int:
    """Return the bytes that the loopback device has carried, with the headers of packets."""
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    raise AssertionError("no loopback device")


def _join(rank: int, ranks: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    torch.manual_seed(0)


def _run_ddp(rank: int, ranks: int, folder: str, shape: str) -> None:
    _join(rank, ranks, f"{folder}/store")
    reduce = []
    for size in MESSAGE_BYTES:
        message = torch.zeros(size // FLOAT32_BYTES)
        times = []
        for _ in range(REPEATS + 1):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(message)
            times.append(time.perf_counter() - start)
        reduce.append(min(times[1:]))
    model = build_classifier(shape)
    wrapped = DistributedDataParallel(model)
    step = make_step(wrapped, model.config.vision_config.image_size, DDP_BATCH)
    step()  # DDP orders its buckets anew after the first
    dist.barrier()
    before = _read_loopback()
    step()
    dist.barrier()
    sent = _read_loopback() - before

    def alone() -> None:
        dist.barrier()
        with wrapped.no_sync():
            step()

    def together() -> None:
        dist.barrier()
        step()

    figures: dict[str, Any] = {
        "reduce_seconds": reduce,
        "loopback_bytes": sent,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    # More processes than cores compute in turns, and their times tell nothing.
    if ranks <= count_cores():
        figures["alone_seconds"] = _time_shortest(alone, 2)
        figures["together_seconds"] = _time_shortest(together, 2)
    _finish(rank, folder, figures)


def _run_fsdp(rank: int, ranks: int, folder: str, shape: str) -> None:
    from torch.distributed.fsdp import fully_shard

    _join(rank, ranks, f"{folder}/store")
    model = build_classifier(shape)
    for layer in model.vision_model.encoder.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = start_moments(model)
    parameters: list[Any] = list(model.parameters())
    held = sum(parameter.to_local().numel() for parameter in parameters)
    moments = sum(
        state[name].to_local().numel()
        for state in optimizer.state.values()
        for name in ("exp_avg", "exp_avg_sq")
    )
    figures = {"parameter_bytes": held * FLOAT32_BYTES, "moment_bytes": moments * FLOAT32_BYTES}
    _finish(rank, folder, figures)


def _finish(rank: int, folder: str, figures: dict[str, Any]) -> None:
    Path(folder, f"{rank}.json").write_text(json.dumps(figures), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def measure_ranks(worker: Callable[..., None], options: CellOptions) -> dict[str, Any]:
    """Run a worker in several processes joined by gloo on the loopback; return what each found."""
    with tempfile.TemporaryDirectory(prefix="cost_model_") as folder:
        mp.spawn(worker, (options.ranks, folder, options.shape), nprocs=options.ranks)
        found = [
            json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8"))
            for rank in range(options.ranks)
        ]
    return {"ranks": found}


def fit_line(sizes: list[int], seconds: list[float]) -> tuple[float, float]:
    """Fit seconds = start + size / rate with equal RELATIVE weights; return start and rate."""
    weights = 1 / np.asarray(seconds)
    design = np.stack([np.ones(len(sizes)), np.asarray(sizes, dtype=float)], axis=1)
    start, slope = np.linalg.lstsq(design * weights[:, None], np.ones(len(sizes)), rcond=None)[0]
    return float(max(start, 0.0)), float(1 / slope)


def main(argv: list[str] | None = None) -> int:
    """Measure one point and print it as JSON."""
    return run_benchmark(CellOptions, MODULE, __doc__, _run, argv)


def _run(options: CellOptions, argv: list[str]) -> None:
    cells: dict[str, Callable[[CellOptions], dict[str, Any]]] = {
        "memory": measure_memory_cell,
        "time": measure_time_cell,
        "ddp": partial(measure_ranks, _run_ddp),
        "fsdp": partial(measure_ranks, _run_fsdp),
    }
    print(MARK + json.dumps(cells[options.cell](options)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
