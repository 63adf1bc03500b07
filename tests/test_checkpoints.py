"""Checkpoints: whole or absent at every moment, and removed only when they may be."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from siglip_flowers.training.checkpoints import (
    clear_leftovers,
    is_whole,
    list_checkpoints,
    publish_checkpoint,
    rotate_checkpoints,
    write_manifest,
)


def write_files(directory: Path, content: str = "weights") -> Path:
    (directory / "part").mkdir(parents=True)
    (directory / "part" / "model.safetensors").write_text(content)
    (directory / "trainer_state.json").write_text("{}")
    return directory


def make_steps(directory: Path, *steps: int) -> None:
    for step in steps:
        write_manifest(write_files(directory / f"checkpoint-{step}"))


def list_steps(directory: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in list_checkpoints(directory)]


def test_a_checkpoint_lacking_any_file_or_byte_is_not_whole(tmp_path):
    for name in ("part/model.safetensors", "trainer_state.json", "manifest.json"):
        path = write_files(tmp_path / name.replace("/", "-"))
        write_manifest(path)
        assert is_whole(path)
        text = (path / name).read_text().rstrip()
        (path / name).write_text(text[:-1])
        assert not is_whole(path)
        (path / name).unlink()
        assert not is_whole(path)


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    make_steps(tmp_path, 2, 4, 10, 12)
    copy = shutil.copytree(tmp_path / "checkpoint-12", tmp_path / "checkpoint-12-copy")
    rotate_checkpoints(tmp_path, None, None)
    assert list_steps(tmp_path) == [2, 4, 10, 12]
    rotate_checkpoints(tmp_path, 3, str(tmp_path / "checkpoint-2"))
    assert list_steps(tmp_path) == [2, 10, 12]
    rotate_checkpoints(tmp_path, 1, str(tmp_path / "checkpoint-2"))
    assert list_steps(tmp_path) == [2, 12]
    rotate_checkpoints(tmp_path, 1, None)
    assert list_steps(tmp_path) == [12]
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-12", copy.name]


@pytest.mark.parametrize("moment", range(1, 8))
def test_replacing_a_checkpoint_leaves_one_of_the_two_at_every_moment(
    tmp_path, monkeypatch, moment
):
    make_steps(tmp_path, 3)
    staged = write_files(tmp_path / ".writing" / "checkpoint-3", "new weights")
    count = 0

    def die_in(function):
        def counted(*arguments, **named):
            nonlocal count
            count += 1
            if count == moment:
                raise KeyboardInterrupt
            return function(*arguments, **named)

        return counted

    for name in ("rename", "replace", "fsync", "rmdir", "unlink"):
        monkeypatch.setattr(os, name, die_in(getattr(os, name)))
    with contextlib.suppress(KeyboardInterrupt):
        publish_checkpoint(staged, tmp_path / "checkpoint-3")
    monkeypatch.undo()
    clear_leftovers(tmp_path)
    assert list_steps(tmp_path) == [3]
    content = (tmp_path / "checkpoint-3" / "part" / "model.safetensors").read_text()
    assert content in ("weights", "new weights")
    assert os.listdir(tmp_path) == ["checkpoint-3"]
