"""Arrays on disk: built once, whole or absent, and never taken for something else."""

import multiprocessing
import os
import re
from pathlib import Path

import numpy as np
import pytest

from siglip_flowers.commands.cache import main as cache_command
from siglip_flowers.config import DataArguments
from siglip_flowers.data.pixels.array_cache import ArrayEntry, locate_cache, open_array

ENTRY = ArrayEntry("pixels", {"images": "abc", "size": 4}, (10, 3, 4, 4), "uint8")


def fill(array: np.ndarray) -> None:
    array[:] = np.arange(array.size, dtype=array.dtype).reshape(array.shape)


class Builder:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, array: np.ndarray) -> None:
        self.calls += 1
        fill(array)


def expected() -> np.ndarray:
    array = np.empty(ENTRY.shape, dtype=ENTRY.dtype)
    fill(array)
    return array


def find_file(directory: Path, name: str) -> Path:
    return directory / ENTRY.name / name


def test_array_is_built_once_and_then_mapped(tmp_path):
    build = Builder()
    first = open_array(tmp_path, ENTRY, build)
    second = open_array(tmp_path, ENTRY, build)
    assert build.calls == 1
    for array in (first, second):
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable
        assert np.array_equal(array, expected())


@pytest.mark.parametrize(
    "other",
    [
        ArrayEntry("pixels", {"images": "abd", "size": 4}, (10, 3, 4, 4), "uint8"),
        ArrayEntry("pixels", {"images": "abc", "size": 4}, (9, 3, 4, 4), "uint8"),
        ArrayEntry("features", {"images": "abc", "size": 4}, (10, 3, 4, 4), "uint8"),
    ],
)
def test_whatever_the_content_depends_on_leads_to_another_entry(tmp_path, other):
    open_array(tmp_path, ENTRY, fill)
    build = Builder()
    open_array(tmp_path, other, build)
    assert build.calls == 1
    assert np.array_equal(open_array(tmp_path, ENTRY, build), expected())
    assert build.calls == 1


def truncate(directory: Path) -> None:
    file = find_file(directory, "array.npy")
    os.truncate(file, file.stat().st_size - 7)


def change_a_row(directory: Path) -> None:
    file = find_file(directory, "array.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def put_pickled_objects(directory: Path) -> None:
    np.save(find_file(directory, "array.npy"), np.array([{}] * 10), allow_pickle=True)


def remove_description(directory: Path) -> None:
    find_file(directory, "entry.json").unlink()


@pytest.mark.parametrize(
    "damage", [truncate, change_a_row, put_pickled_objects, remove_description]
)
def test_damaged_or_foreign_entry_is_rebuilt(tmp_path, damage):
    open_array(tmp_path, ENTRY, fill)
    damage(tmp_path)
    build = Builder()
    assert np.array_equal(open_array(tmp_path, ENTRY, build), expected())
    assert build.calls == 1
    assert np.array_equal(open_array(tmp_path, ENTRY, build), expected())
    assert build.calls == 1


def test_nothing_is_left_of_an_array_that_could_not_be_built(tmp_path):
    def fail(array: np.ndarray) -> None:
        array[0] = 1
        raise ValueError("a broken image")

    with pytest.raises(ValueError, match="a broken image"):
        open_array(tmp_path, ENTRY, fail)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def build_and_count(directory: Path, barrier, calls, sums) -> None:
    def build(array: np.ndarray) -> None:
        calls.put(os.getpid())
        fill(array)

    barrier.wait()
    array = open_array(directory, ENTRY, build)
    sums.put(int(array.sum()))


def test_processes_that_start_together_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, calls, sums = context.Barrier(4), context.Queue(), context.Queue()
    workers = [
        context.Process(target=build_and_count, args=(tmp_path, barrier, calls, sums))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    found = [sums.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join()
    assert found == [int(expected().sum())] * 4
    assert calls.qsize() == 1


def test_cache_directory_is_the_option_the_variable_or_that_of_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGLIP_FLOWERS_CACHE", str(tmp_path / "variable"))
    assert locate_cache(DataArguments(cache_dir=str(tmp_path))) == tmp_path
    assert locate_cache(DataArguments()) == tmp_path / "variable"
    monkeypatch.delenv("SIGLIP_FLOWERS_CACHE")
    assert locate_cache(DataArguments()).name == "siglip_flowers_arrays"


def test_the_command_lists_entries_and_removes_those_named_or_unused(tmp_path, capsys):
    other = ArrayEntry("features", {"images": "abc"}, (10, 2, 8), "float32")
    for entry in (ENTRY, other):
        open_array(tmp_path, entry, fill)
    month = 30 * 86400
    past = find_file(tmp_path, "entry.json").stat().st_mtime - month
    os.utime(find_file(tmp_path, "entry.json"), (past, past))
    options = ["--cache_dir", str(tmp_path)]
    assert cache_command(options) == 0
    first, second, total = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{ENTRY.name} +0\.0 MB +used 30 days ago", first)
    assert second.startswith(other.name)
    assert total == f"{tmp_path}: 2 entries, 0.0 MB"
    open_array(tmp_path, ENTRY, fill)  # which uses it
    assert cache_command([*options, "--remove_unused", "29"]) == 0
    assert "removed" not in capsys.readouterr().out
    os.utime(find_file(tmp_path, "entry.json"), (past, past))
    assert cache_command([*options, "--remove_unused", "29"]) == 0
    assert "removed 1 entry" in capsys.readouterr().out
    assert cache_command([*options, "--remove", "pixels-0"]) == 2
    assert "has no entry 'pixels-0'" in capsys.readouterr().err
    assert cache_command([*options, "--remove", other.name]) == 0
    assert not list(tmp_path.iterdir())
