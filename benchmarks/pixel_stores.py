"""The stores that ``benchmarks.stores`` compares: how each is written, and how rows are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets.arrow_writer import ArrowWriter

WRITTEN_ROWS = 256

# Returns (B, 3, S, S) uint8 of the rows asked for.
Reader = Callable[[np.ndarray], torch.Tensor]


def build_memmap(pixels: np.ndarray, path: Path) -> None:
    """Write one .npy file."""
    stored = np.lib.format.open_memmap(
        path / "array.npy", mode="w+", dtype=np.uint8, shape=pixels.shape
    )
    for start in range(0, len(pixels), WRITTEN_ROWS):
        stored[start : start + WRITTEN_ROWS] = pixels[start : start + WRITTEN_ROWS]
    stored.flush()


def open_memmap(path: Path, shape: tuple[int, ...]) -> Reader:
    """Gather rows of the memory map."""
    stored = np.load(path / "array.npy", mmap_mode="r")
    return lambda rows: torch.from_numpy(stored[rows])


def build_array3d(pixels: np.ndarray, path: Path) -> None:
    """Write a data set with a column of arrays."""
    features = datasets.Features({"pixels": datasets.Array3D(pixels.shape[1:], "uint8")})
    _write_dataset(pixels, path, features, lambda part: list(part))


def build_binary(pixels: np.ndarray, path: Path) -> None:
    """Write a data set with a column of bytes."""
    features = datasets.Features({"pixels": datasets.Value("large_binary")})
    _write_dataset(pixels, path, features, lambda part: [row.tobytes() for row in part])


def _write_dataset(
    pixels: np.ndarray,
    path: Path,
    features: datasets.Features,
    encode: Callable[[np.ndarray], list[Any]],
) -> None:
    with ArrowWriter(
        features=features, path=str(path / "data.arrow"), writer_batch_size=WRITTEN_ROWS
    ) as writer:
        for start in range(0, len(pixels), WRITTEN_ROWS):
            writer.write_batch({"pixels": encode(pixels[start : start + WRITTEN_ROWS])})
        writer.finalize()


def open_array3d_numpy(path: Path, shape: tuple[int, ...]) -> Reader:
    """Read through ``with_format("numpy")``."""
    rows_of = datasets.Dataset.from_file(str(path / "data.arrow")).with_format(
        "numpy", dtype=np.uint8
    )
    return lambda rows: torch.from_numpy(np.asarray(rows_of[rows.tolist()]["pixels"]))


def open_array3d_torch(path: Path, shape: tuple[int, ...]) -> Reader:
    """Read through ``with_format("torch")``."""
    rows_of = datasets.Dataset.from_file(str(path / "data.arrow")).with_format(
        "torch", dtype=torch.uint8
    )
    return lambda rows: rows_of[rows.tolist()]["pixels"]


def open_binary(path: Path, shape: tuple[int, ...]) -> Reader:
    """Read bytes row by row and stack them."""
    rows_of = datasets.Dataset.from_file(str(path / "data.arrow"))

    def read(rows: np.ndarray) -> torch.Tensor:
        found = rows_of[rows.tolist()]["pixels"]
        return torch.from_numpy(
            np.stack([np.frombuffer(row, np.uint8).reshape(shape[1:]) for row in found])
        )

    return read


def build_fixed(pixels: np.ndarray, path: Path) -> None:
    """Write an Arrow file with one record batch of fixed-size binary, which datasets lacks."""
    flat = pixels.reshape(len(pixels), -1)
    kind = pa.binary(flat.shape[1])
    column = pa.FixedSizeBinaryArray.from_buffers(kind, len(flat), [None, pa.py_buffer(flat)])
    batch = pa.record_batch([column], names=["pixels"])
    with (
        pa.OSFile(str(path / "data.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def open_fixed(path: Path, shape: tuple[int, ...]) -> Reader:
    """Gather rows of Arrow's own buffer, seen as one array."""
    table = pa.ipc.open_file(pa.memory_map(str(path / "data.arrow"))).read_all()
    (chunk,) = table.column("pixels").chunks
    stored = np.frombuffer(chunk.buffers()[1], np.uint8).reshape(shape)
    return lambda rows: torch.from_numpy(stored[rows])


# Folder, builder, opener.
Store = tuple[str, Callable[[np.ndarray, Path], None], Callable[..., Reader]]
STORES: dict[str, Store] = {
    "NumPy memory map": ("memmap", build_memmap, open_memmap),
    "pyarrow, fixed-size binary, raw buffer": ("fixed", build_fixed, open_fixed),
    "datasets, binary": ("binary", build_binary, open_binary),
    "datasets, Array3D, numpy": ("array3d", build_array3d, open_array3d_numpy),
    "datasets, Array3D, torch": ("array3d", build_array3d, open_array3d_torch),
}
