"""Files are whole or absent, and readable by others."""

import json
import os
import stat

import pytest

from siglip_flowers.base.files import atomic_directory, atomic_path, write_json, write_text
from tests.small_runs import list_files


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_file_is_written_with_missing_folders_and_usual_rights(tmp_path, umask):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "ü\n")
    assert path.read_bytes() == "ü\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list_files(tmp_path) == ["a", "a/b.txt"]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"n": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"n": float("nan")})

    def stop_half_way():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert json.loads(path.read_text()) == {"n": 1}
    assert list_files(tmp_path) == ["x.json"]


def test_a_directory_replaces_the_old_one_whole(tmp_path, umask):
    path = tmp_path / "model"
    for content in ("old", "new"):
        with atomic_directory(path) as directory:
            (directory / content).write_text(content)
            (directory / content).chmod(0o600)
    assert list_files(tmp_path) == ["model", "model/new"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert stat.S_IMODE((path / "new").stat().st_mode) == 0o644


def test_a_failed_directory_keeps_the_old_one(tmp_path):
    path = tmp_path / "model"
    with atomic_directory(path) as directory:
        (directory / "old").touch()

    def fail_half_way():
        with atomic_directory(path) as directory:
            (directory / "new").touch()
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail_half_way()
    assert list_files(tmp_path) == ["model", "model/old"]
