"""Archives are unpacked safely: all the images or nothing."""

import errno
import io
import tarfile
from pathlib import Path

import pytest

from siglip_flowers.base.errors import RunError
from siglip_flowers.data.sources.archive import unpack_images

NAMES = ("image_00001.jpg", "image_00002.jpg")


def add_file(tar: tarfile.TarFile, name: str, content: bytes = b"image") -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_archive(path: Path, *extra: tarfile.TarInfo, prefix: str = "") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        folder = tarfile.TarInfo(f"{prefix}jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in NAMES:
            add_file(tar, f"{prefix}jpg/{name}", name.encode())
        for member in extra:
            tar.addfile(member)
    return path


def make_entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def assert_nothing_left(cache: Path) -> None:
    assert [path for path in cache.rglob("*") if path.suffix != ".lock"] == []


@pytest.mark.parametrize("prefix", ["", "./"])
def test_images_are_unpacked_and_other_files_left_out(tmp_path, cache, prefix) -> None:
    archive = write_archive(
        tmp_path / "a.tgz", make_entry(f"{prefix}README"), make_entry("jpg/._x"), prefix=prefix
    )
    folder = unpack_images(archive, cache, "sum", NAMES)
    assert folder == cache / "sum" / "jpg"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: name.encode() for name in NAMES
    }
    assert sorted(path.name for path in cache.iterdir()) == ["sum", "sum.lock"]


def test_a_second_call_reads_no_archive(tmp_path, cache) -> None:
    archive = write_archive(tmp_path / "a.tgz")
    folder = unpack_images(archive, cache, "sum", NAMES)
    archive.unlink()
    assert unpack_images(archive, cache, "sum", NAMES) == folder


def test_a_folder_that_lost_a_image_is_replaced(tmp_path, cache) -> None:
    archive = write_archive(tmp_path / "a.tgz")
    folder = unpack_images(archive, cache, "sum", NAMES)
    (folder / NAMES[0]).unlink()
    unpack_images(archive, cache, "sum", NAMES)
    assert sorted(path.name for path in folder.iterdir()) == list(NAMES)


@pytest.mark.parametrize(
    "entry, problem",
    [
        (make_entry("../evil.jpg"), "'../evil.jpg' points outside"),
        (make_entry("jpg/../../evil.jpg"), "'jpg/../../evil.jpg' points outside"),
        (make_entry("/tmp/image_00001.jpg"), "'/tmp/image_00001.jpg' points outside"),
        (make_entry("jpg\\..\\evil.jpg"), "points outside"),
        (make_entry("jpg/image_00003.jpg", tarfile.SYMTYPE, "/etc/passwd"), "is a link"),
        (make_entry("jpg/image_00003.jpg", tarfile.LNKTYPE, "jpg/image_00001.jpg"), "is a link"),
        (make_entry("jpg", tarfile.SYMTYPE, "/tmp"), "'jpg' is a link"),
        (make_entry("jpg/image_00003.jpg", tarfile.CHRTYPE), "is not a regular file"),
        (make_entry("jpg/image_00003.jpg", tarfile.BLKTYPE), "is not a regular file"),
        (make_entry("jpg/image_00003.jpg", tarfile.FIFOTYPE), "is not a regular file"),
        (make_entry("jpg/image_00003.jpg"), "beyond the 2 expected"),
        (make_entry("jpg/image_00001.jpg"), "twice"),
    ],
)
def test_a_hostile_entry_stops_everything(tmp_path, cache, entry, problem) -> None:
    archive = write_archive(tmp_path / "a.tgz", entry)
    with pytest.raises(RunError, match=r"download 102flowers\.tgz again") as caught:
        unpack_images(archive, cache, "sum", NAMES)
    assert problem in str(caught.value)
    assert_nothing_left(cache)
    assert not (tmp_path / "evil.jpg").exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_archive_leaves_nothing(tmp_path, cache, share) -> None:
    archive = tmp_path / "a.tgz"
    noise = bytes((n * n * 31 + n // 7) % 256 for n in range(60_000))
    with tarfile.open(archive, "w:gz") as tar:
        for name in NAMES:
            add_file(tar, f"jpg/{name}", noise)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(RunError, match="truncated or damaged"):
        unpack_images(archive, cache, "sum", NAMES)
    assert_nothing_left(cache)


def test_a_damaged_byte_is_noticed(tmp_path, cache) -> None:
    archive = write_archive(tmp_path / "a.tgz")
    content = bytearray(archive.read_bytes())
    content[-6] ^= 0xFF  # the CRC of the gzip stream
    archive.write_bytes(content)
    with pytest.raises(RunError, match="truncated or damaged"):
        unpack_images(archive, cache, "sum", NAMES)
    assert_nothing_left(cache)


def test_something_else_than_an_archive(tmp_path, cache) -> None:
    archive = tmp_path / "a.tgz"
    archive.write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(RunError, match="truncated or damaged"):
        unpack_images(archive, cache, "sum", NAMES)


def test_an_incomplete_archive_names_a_missing_image(tmp_path, cache) -> None:
    archive = write_archive(tmp_path / "a.tgz")
    with pytest.raises(RunError, match=r"lacks 1 of 3 images, image_00009\.jpg"):
        unpack_images(archive, cache, "sum", (*NAMES, "image_00009.jpg"))
    assert_nothing_left(cache)


@pytest.mark.parametrize("name", ["jpg/image_00001.jpg", "README"])
def test_a_small_archive_that_unpacks_to_too_much(tmp_path, cache, name) -> None:
    archive = tmp_path / "a.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        add_file(tar, name, bytes(20 << 20))
    assert archive.stat().st_size < 100_000
    with pytest.raises(RunError, match="unpacks to more than 4 MB"):
        unpack_images(archive, cache, "sum", NAMES, limit=4 << 20)
    assert_nothing_left(cache)


def test_a_full_disk_says_what_was_needed(tmp_path, cache, monkeypatch) -> None:
    archive = write_archive(tmp_path / "a.tgz")

    def fail(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(RunError, match=r"disk is full: .* need about 1 MB under .*cache"):
        unpack_images(archive, cache, "sum", NAMES)
    assert_nothing_left(cache)


def test_a_cache_that_is_a_file(tmp_path) -> None:
    archive = write_archive(tmp_path / "a.tgz")
    (tmp_path / "cache").write_text("")
    with pytest.raises(RunError, match="set HF_DATASETS_CACHE to a writable directory"):
        unpack_images(archive, tmp_path / "cache", "sum", NAMES)
