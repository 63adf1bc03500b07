"""The original distribution: right names, right splits, checked files."""

import hashlib
import http.server
import io
import logging
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import scipy.io
from datasets import DatasetDict

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.prompts import FLOWER_NAMES
from siglip_flowers.config import DataArguments
from siglip_flowers.data.rows import get_labels, image_ids
from siglip_flowers.data.sources import oxford
from siglip_flowers.data.sources.load import check_data_arguments, load_data

# Looked at, one by one: what these photographs show.
SEEN = {
    1: "passion flower",
    3997: "colt's foot",
    5852: "black-eyed susan",
    6817: "red ginger",
    8189: "japanese anemone",
}
ARCHIVE = "102flowers.tgz"
SIZES = {"swapped": (6149, 1020, 1020), "official": (1020, 1020, 6149)}


@pytest.fixture(scope="module")
def cache_root(tmp_path_factory) -> Iterator[Path]:
    """A private cache of ``datasets`` for this module."""
    root = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root)
        yield root


@pytest.fixture(scope="module")
def swapped(flowers_dir, cache_root) -> DatasetDict:
    return oxford.load_oxford(str(flowers_dir), "", "swapped")


@pytest.fixture
def images(swapped, cache_root) -> Path:
    return next(cache_root.glob("siglip_flowers_oxford/*/jpg"))


def map_names(splits: DatasetDict) -> dict[int, str]:
    return {
        int(name.removeprefix("image_")): FLOWER_NAMES[label]
        for dataset in splits.values()
        for name, label in zip(image_ids(dataset), get_labels(dataset), strict=True)
    }


def test_fixed_photographs_have_the_names_of_what_they_show(swapped) -> None:
    names = map_names(swapped)
    assert {number: names[number] for number in SEEN} == SEEN
    assert swapped["train"].features["label"].names == list(FLOWER_NAMES)


@pytest.mark.parametrize("protocol", ["swapped", "official"])
def test_protocol_has_the_original_ids_and_labels(flowers_dir, images, protocol) -> None:
    splits = oxford.load_oxford(str(flowers_dir), "", protocol)
    assert tuple(len(dataset) for dataset in splits.values()) == SIZES[protocol]
    labels = scipy.io.loadmat(flowers_dir / "imagelabels.mat")["labels"].ravel()
    ids = scipy.io.loadmat(flowers_dir / "setid.mat")
    keys = ["trnid", "valid", "tstid"]
    for split, key in zip(splits, keys[::-1] if protocol == "swapped" else keys, strict=True):
        expected = sorted(ids[key].ravel().tolist())
        dataset = splits[split]
        assert dataset.column_names == ["image", "label"]
        assert image_ids(dataset) == [f"image_{number:05d}" for number in expected]
        assert get_labels(dataset).tolist() == [int(labels[number - 1]) - 1 for number in expected]


@pytest.mark.slow
def test_images_the_data_set_itself_repeats_are_reported_not_refused(flowers_dir, images) -> None:
    data = load_data(DataArguments(data_dir=str(flowers_dir)))
    assert (data.source, data.split_protocol) == ("oxford", "swapped")
    assert {frozenset((pair[1], pair[3])) for pair in data.shared} == oxford.KNOWN_SHARED
    assert all(pair[0] != pair[2] for pair in data.shared)


def test_another_checksum_is_one_warning(flowers_dir, cache_root, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="siglip_flowers"):
        oxford.load_oxford(str(flowers_dir), "", "swapped")
    [message] = caplog.messages
    assert "102flowers.tgz has the MD5 sum 53db234241c10758405438e5f8767ed5" in message


@pytest.fixture
def unpacked(tmp_path, flowers_dir, images) -> Path:
    for name in ("imagelabels.mat", "setid.mat"):
        shutil.copy(flowers_dir / name, tmp_path)
        (tmp_path / name).chmod(0o644)
    (tmp_path / "jpg").symlink_to(images)
    return tmp_path


def test_the_unpacked_folder_serves_as_well_and_silently(unpacked, images, caplog) -> None:
    arguments = DataArguments(data_dir=str(unpacked))
    check_data_arguments(arguments)
    splits = oxford.load_oxford(str(unpacked), "", "official")
    assert [len(dataset) for dataset in splits.values()] == [1020, 1020, 6149]
    assert splits["train"][0]["image"].size == (64, 64)
    assert caplog.messages == []


def test_another_mat_file_is_refused(unpacked) -> None:
    path = unpacked / "setid.mat"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"lacks the original setid.mat \(MD5 sum a5357"):
        check_data_arguments(DataArguments(data_dir=str(unpacked)))


def test_a_missing_part_is_named(unpacked, images) -> None:
    (unpacked / "jpg").unlink()
    (unpacked / "jpg").mkdir()
    shutil.copy(images / "image_00001.jpg", unpacked / "jpg")
    (unpacked / "setid.mat").unlink()
    with pytest.raises(InputError, match=r"setid\.mat \(.*\) and 102flowers\.tgz \(or jpg/ with"):
        check_data_arguments(DataArguments(data_dir=str(unpacked)))


# Archives, here of two images


@pytest.fixture
def two_images(monkeypatch) -> None:
    monkeypatch.setattr(oxford, "IMAGE_NAMES", ("image_00001.jpg", "image_00002.jpg"))


def write_archive(path: Path, *extra: tarfile.TarInfo, prefix: str = "", size: int = 5000) -> Path:
    generator = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as tar:
        for member in extra:
            tar.addfile(member)
        for name in ("image_00001.jpg", "image_00002.jpg"):
            member = tarfile.TarInfo(f"{prefix}jpg/{name}")
            member.size = size
            tar.addfile(member, io.BytesIO(generator.bytes(size)))
    return path


def list_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.parametrize("prefix", ["", "./"])
def test_images_are_unpacked(tmp_path, two_images, prefix) -> None:
    archive = write_archive(tmp_path / "a.tgz", tarfile.TarInfo("README"), prefix=prefix)
    oxford._unpack(archive, tmp_path / "cache")
    assert list_files(tmp_path / "cache" / "jpg") == ["image_00001.jpg", "image_00002.jpg"]


@pytest.mark.parametrize(
    "name, kind, target",
    [
        ("../evil.jpg", tarfile.REGTYPE, ""),
        ("jpg/x.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        ("jpg", tarfile.SYMTYPE, "../.."),
        ("jpg/x.jpg", tarfile.FIFOTYPE, ""),
    ],
)
def test_an_archive_that_leads_elsewhere_is_refused(tmp_path, two_images, name, kind, target):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    archive = write_archive(tmp_path / "a.tgz", member)
    with pytest.raises(RunError, match="is damaged"):
        oxford._unpack(archive, tmp_path / "cache" / "images")
    assert list_files(tmp_path) == ["a.tgz"]


@pytest.mark.parametrize("content", [None, b"<html>not found</html>" * 9], ids=["cut", "html"])
def test_a_damaged_archive_leaves_nothing(tmp_path, two_images, content) -> None:
    archive = write_archive(tmp_path / "a.tgz", size=200_000)
    archive.write_bytes(archive.read_bytes()[:200_000] if content is None else content)
    with pytest.raises(RunError, match="is damaged"):
        oxford._unpack(archive, tmp_path / "cache" / "images")
    assert list((tmp_path / "cache").iterdir()) == []


# Downloads, from a server on loopback


class Mirror:
    """A web server with the files of a directory.

    Attributes:
        requests: What was asked for: path and Range.
        limit: After so many bytes of a body the server breaks the connection.
    """

    def __init__(self, directory: Path) -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.limit: int | None = None
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers["Range"]
                mirror.requests.append((self.path, asked))
                path = directory / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                content = path.read_bytes()
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start:][: mirror.limit])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Iterator[Mirror]:
    """A mirror of small files in the place of the original ones."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    directory = tmp_path / "mirror"
    directory.mkdir()
    write_archive(directory / ARCHIVE, size=200_000)
    for name in ("imagelabels.mat", "setid.mat"):
        (directory / name).write_bytes(np.random.default_rng(len(name)).bytes(9000))
    for name in oxford.MD5_SUMS:
        md5 = hashlib.md5((directory / name).read_bytes()).hexdigest()
        monkeypatch.setitem(oxford.MD5_SUMS, name, md5)
    server = Mirror(directory)
    yield server
    server.close()


def test_a_download_with_another_checksum_is_refused_and_forgotten(
    mirror, tmp_path, monkeypatch
) -> None:
    found = oxford.MD5_SUMS[ARCHIVE]
    monkeypatch.setitem(oxford.MD5_SUMS, ARCHIVE, "0" * 32)
    with pytest.raises(RunError, match=f"{ARCHIVE} has the MD5 sum {found}, expected 0+"):
        oxford.load_oxford(None, mirror.url, "swapped")
    kept = {path.name for path in (tmp_path / "datasets").rglob("*.*")}
    assert kept == {"imagelabels.mat", "setid.mat", "download.lock"}


def test_a_download_that_breaks_off_is_resumed_and_cached(mirror, two_images, tmp_path) -> None:
    mirror.limit = 150_000
    for _ in range(2):
        with pytest.raises(RunError, match="The same command resumes it"):
            oxford.prepare_download(mirror.url)
    folder, images = oxford.prepare_download(mirror.url + "/")
    assert list_files(images) == ["image_00001.jpg", "image_00002.jpg"]
    ranges = [asked for path, asked in mirror.requests if path.endswith(ARCHIVE)]
    assert ranges == ["bytes=0-", "bytes=150000-", "bytes=300000-"]
    mirror.requests.clear()
    assert oxford.prepare_download(mirror.url) == (folder, images)
    assert mirror.requests == []
    assert not list(tmp_path.rglob("*.part")) + list(folder.rglob(ARCHIVE))


def test_a_complete_download_is_not_fetched_again(mirror, tmp_path) -> None:
    content = (tmp_path / "mirror" / "setid.mat").read_bytes()
    (tmp_path / "setid.mat.part").write_bytes(content)
    oxford._download_file(mirror.url, tmp_path / "setid.mat")
    assert (tmp_path / "setid.mat").read_bytes() == content
    assert mirror.requests == [("/setid.mat", f"bytes={len(content)}-")]


def test_a_part_of_another_longer_file_is_forgotten(mirror, tmp_path) -> None:
    (tmp_path / "setid.mat.part").write_bytes(bytes(9001))
    with pytest.raises(RunError, match="MD5 sum"):
        oxford._download_file(mirror.url, tmp_path / "setid.mat")
    oxford._download_file(mirror.url, tmp_path / "setid.mat")


def test_a_cache_that_cannot_be_written_is_named_with_its_variable(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(RunError, match=r"to \S+/file/.*; set HF_DATASETS_CACHE"):
        oxford.load_oxford(None, "http://127.0.0.1:9", "swapped")


@pytest.mark.parametrize(
    "url, reason",
    [("http://127.0.0.1:9", "refused"), ("{}/nowhere", "HTTP Error 404"), ("http://[", r".+")],
)
def test_a_download_that_fails_says_why_and_names_the_offline_ways(mirror, url, reason) -> None:
    url = url.format(mirror.url)
    with pytest.raises(
        RunError, match=rf"{re.escape(url)}/imagelabels.mat \(.*{reason}.*\)"
    ) as caught:
        oxford.load_oxford(None, url, "swapped")
    assert "--data_dir" in str(caught.value)
    assert "--data_source procedural" in str(caught.value)
