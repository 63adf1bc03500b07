"""Which store for decoded pixels: a NumPy memory map, or Arrow through ``datasets`` or pyarrow.

    python -m benchmarks.stores

Every store holds the same images and returns the same batches: (B, 3, S, S) uint8 tensors of
random rows. Writes ``benchmarks/results/stores_<device>.json``, ``.md`` and ``.png``.
"""

import gc
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from benchmarks.harness import Sample, alternate, run_benchmark, summarize
from benchmarks.pixel_stores import STORES, Reader, Store
from benchmarks.report import (
    COLORS,
    RESULTS,
    TEXT_COLOR,
    format_bytes,
    format_table,
    make_panels,
    write_report,
)
from siglip_flowers.config import check_positive

MODULE = "benchmarks.stores"
COLD_REPEATS = 3


@dataclass
class StoreOptions:
    """Which batches are read, of what."""

    sizes: list[int] = field(
        default_factory=lambda: [64, 224], metadata={"help": "Sides of the images in pixels."}
    )
    batch_sizes: list[int] = field(
        default_factory=lambda: [64, 256], metadata={"help": "Images that are read at once."}
    )
    megabytes: int = field(default=150, metadata={"help": "Decoded pixels of each size."})
    batches: int = field(default=8, metadata={"help": "Batches a round."})
    rounds: int = field(default=7, metadata={"help": "Rounds after the warm-up."})
    work_dir: str | None = field(
        default=None, metadata={"help": "Where stores are built; default: a temporary folder."}
    )
    output_dir: str = field(default=str(RESULTS), metadata={"help": "Where results are written."})

    def __post_init__(self) -> None:
        for name in ("megabytes", "batches", "rounds"):
            check_positive(name, getattr(self, name))


def drop_from_memory(path: Path) -> None:
    """Ask the system to forget the files' pages, so that the next read comes from the disk."""
    for file in path.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_size(size: int, options: StoreOptions, work_dir: Path) -> list[dict[str, Any]]:
    """Build every store of images of one size and read it; returns a row a store and batch."""
    count = max(max(options.batch_sizes), options.megabytes * 1_000_000 // (3 * size * size))
    generator = np.random.default_rng(size)
    pixels = generator.integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    built: dict[str, tuple[Path, float, int]] = {}
    for folder, build, _ in STORES.values():
        if folder not in built:
            path = work_dir / f"{folder}_{size}"
            path.mkdir(parents=True)
            start = time.perf_counter()
            build(pixels, path)
            seconds = time.perf_counter() - start
            used = sum(file.stat().st_size for file in path.iterdir())
            built[folder] = (path, seconds, used)
    rows = []
    for batch_size in options.batch_sizes:
        cold = {
            label: measure_cold(store, built[store[0]][0], pixels, batch_size, options.batches)
            for label, store in STORES.items()
        }
        readers = {
            label: open_store(built[folder][0], pixels.shape)
            for label, (folder, _, open_store) in STORES.items()
        }
        arms = {
            label: partial(_read_round, reader, generator, pixels, batch_size, options.batches)
            for label, reader in readers.items()
        }
        samples = alternate(arms, options.rounds)
        for label, reader in readers.items():
            check_reader(label, reader, pixels)
        # A mapped page cannot be dropped before the next reading from disk.
        arms.clear()
        readers.clear()
        del reader
        for label, (folder, _, _) in STORES.items():
            _, seconds, used = built[folder]
            rows.append(
                {
                    "store": label,
                    "image_size": size,
                    "batch_size": batch_size,
                    "images": count,
                    "warm": summarize(samples[label]),
                    "cold_images_per_second": cold[label],
                    "build_seconds": seconds,
                    "bytes_on_disk": used,
                    "bytes_over_pixels": used / pixels.nbytes,
                }
            )
    return rows


def measure_cold(
    store: Store, path: Path, pixels: np.ndarray, batch_size: int, batches: int
) -> float:
    """Return the median images/s of a first reading: pages dropped, opening included."""
    rates = []
    for repeat in range(COLD_REPEATS):
        gc.collect()
        drop_from_memory(path)
        generator = np.random.default_rng(repeat)
        # Opened inside: Arrow asks the system to read the whole file ahead.
        start = time.perf_counter()
        reader = store[2](path, pixels.shape)
        _read_round(reader, generator, pixels, batch_size, batches)
        rates.append(batches * batch_size / (time.perf_counter() - start))
        del reader
    return statistics.median(rates)


def check_reader(label: str, reader: Reader, pixels: np.ndarray) -> None:
    """Raise AssertionError unless a store returns the pixels that were put in."""
    rows = np.array([len(pixels) - 1, 0, len(pixels) // 2])
    read = reader(rows)
    assert read.dtype == torch.uint8, label
    assert np.array_equal(read.numpy(), pixels[rows]), label


def _read_round(
    reader: Reader,
    generator: np.random.Generator,
    pixels: np.ndarray,
    batch_size: int,
    batches: int,
) -> Sample:
    drawn = [generator.choice(len(pixels), batch_size, replace=False) for _ in range(batches)]
    start = time.perf_counter()
    for rows in drawn:
        reader(rows)
    return Sample(batches * batch_size, time.perf_counter() - start)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, measure, and write the results."""
    return run_benchmark(StoreOptions, MODULE, __doc__, _run, argv)


def _run(options: StoreOptions, argv: list[str]) -> None:
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="stores_", dir=options.work_dir) as work_dir:
        rows: list[dict[str, Any]] = []
        for size in options.sizes:
            rows += measure_size(size, options, Path(work_dir))
    fastest = next(iter(STORES))
    base = {
        (row["image_size"], row["batch_size"]): row["warm"]["images_per_second"]
        for row in rows
        if row["store"] == fastest
    }
    for row in rows:
        reference = base[row["image_size"], row["batch_size"]]
        row["memmap_over_this"] = reference / row["warm"]["images_per_second"]
    table = format_table(
        [
            "store",
            "pixels",
            "batch",
            "images/s, in memory",
            "memory map is faster by",
            "images/s, first reading",
            "building, s",
            "on disk",
        ],
        [
            [
                row["store"],
                row["image_size"],
                row["batch_size"],
                row["warm"]["images_per_second"],
                f"{row['memmap_over_this']:.2f}x",
                row["cold_images_per_second"],
                row["build_seconds"],
                format_bytes(row["bytes_on_disk"]),
            ]
            for row in rows
        ],
    )
    command = " ".join(["python", "-m", MODULE, *argv])
    path = write_report(
        "stores",
        torch.device("cpu"),
        command,
        {
            "sizes": options.sizes,
            "batch_sizes": options.batch_sizes,
            "batches": options.batches,
            "rounds": options.rounds,
            "megabytes": options.megabytes,
        },
        {"rows": rows},
        table,
        draw_stores(rows),
        Path(options.output_dir),
    )
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


def draw_stores(rows: list[dict[str, Any]]) -> Any:
    """Draw a panel for each image size and batch: reading speed from memory and from disk."""
    speeds = [row["warm"]["images_per_second"] for row in rows]
    speeds += [row["cold_images_per_second"] for row in rows]
    lowest, highest = min(speeds), max(speeds)
    cells = sorted({(row["image_size"], row["batch_size"]) for row in rows})
    figure, panels = make_panels("Reading random batches of decoded pixels", len(cells))
    for panel, (size, batch_size) in zip(panels, cells, strict=True):
        cell = (size, batch_size)
        shown = [row for row in rows if (row["image_size"], row["batch_size"]) == cell]
        places = list(range(len(shown)))
        warm = [row["warm"]["images_per_second"] for row in shown]
        cold = [row["cold_images_per_second"] for row in shown]
        panel.hlines(places, cold, warm, color="#BBBBBB", linewidth=2)
        panel.plot(warm, places, "o", color=COLORS[0], markersize=8, label="in memory")
        panel.plot(cold, places, "s", color=COLORS[4], markersize=7, label="first reading")
        panel.set_yticks(places, [row["store"] for row in shown], fontsize=8)
        panel.set_ylim(len(shown) - 0.5, -0.5)
        panel.set_xscale("log")
        panel.set_xlim(lowest / 2, highest * 2)
        panel.minorticks_off()
        panel.set_title(f"{size} px, batch {batch_size}", loc="left", fontsize=10)
        panel.set_xlabel("images/s (logarithmic)", color=TEXT_COLOR)
        panel.grid(True, axis="x", color="#E3E3E3", linewidth=0.8)
    panels[0].legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    sys.exit(main())
