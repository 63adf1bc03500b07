"""The original distribution: right names, right splits, checked files."""

import errno
import functools
import hashlib
import http.server
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import scipy.io

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.labels import FLOWER_NAMES
from siglip_flowers.config import DataArguments
from siglip_flowers.data import ClassificationData, check_data_arguments, image_ids, load_data
from siglip_flowers.data.sources import oxford
from siglip_flowers.data.splits import get_labels

# Looked at, one by one: what these photographs show.
SEEN = {
    1: "passion flower",
    5402: "sunflower",
    950: "wallflower",
    3997: "colt's foot",
    1146: "rose",
    1830: "lotus",
    449: "cyclamen",
    3287: "bird of paradise",
    7896: "blanket flower",
    7089: "globe thistle",
    5747: "king protea",
    7307: "foxglove",
    5852: "black-eyed susan",
    8003: "blackberry lily",
    6817: "red ginger",
    8189: "japanese anemone",
}
SIZES = {"swapped": (6149, 1020, 1020), "official": (1020, 1020, 6149)}


@pytest.fixture(scope="module")
def cache_root(tmp_path_factory) -> Iterator[Path]:
    """A private cache of ``datasets`` for this module."""
    root = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root)
        patch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", root / "downloads")
        yield root


@pytest.fixture(scope="module")
def swapped(flowers_dir, cache_root) -> ClassificationData:
    return load_data(DataArguments(data_dir=str(flowers_dir)))


@pytest.fixture
def images(swapped, cache_root) -> Path:
    return next(cache_root.glob("siglip_flowers_oxford/*/jpg"))


def map_names(data: ClassificationData) -> dict[int, str]:
    return {
        int(name.removeprefix("image_")): data.class_names[label]
        for dataset in data.splits.values()
        for name, label in zip(image_ids(dataset), get_labels(dataset), strict=True)
    }


def test_fixed_photographs_have_the_names_of_what_they_show(swapped) -> None:
    names = map_names(swapped)
    assert {number: names[number] for number in SEEN} == SEEN
    assert swapped.class_names == list(FLOWER_NAMES)


@pytest.mark.parametrize("protocol", ["swapped", "official"])
def test_protocol_has_the_original_ids_and_labels(flowers_dir, swapped, protocol) -> None:
    data = (
        swapped
        if protocol == "swapped"
        else load_data(DataArguments(data_dir=str(flowers_dir), split_protocol=protocol))
    )
    assert (data.source, data.split_protocol) == ("oxford", protocol)
    assert tuple(len(dataset) for dataset in data.splits.values()) == SIZES[protocol]
    labels = scipy.io.loadmat(flowers_dir / "imagelabels.mat")["labels"].ravel()
    ids = scipy.io.loadmat(flowers_dir / "setid.mat")
    keys = ["trnid", "valid", "tstid"]
    for split, key in zip(data.splits, keys[::-1] if protocol == "swapped" else keys, strict=True):
        expected = sorted(ids[key].ravel().tolist())
        dataset = data.splits[split]
        assert dataset.column_names == ["image", "label"]
        assert image_ids(dataset) == [f"image_{number:05d}" for number in expected]
        assert get_labels(dataset).tolist() == [int(labels[number - 1]) - 1 for number in expected]


@pytest.mark.parametrize("split, row", [("train", 4000), ("validation", 17), ("test", 1019)])
def test_a_row_shows_the_file_of_its_id(swapped, images, split, row) -> None:
    dataset = swapped.splits[split]
    with PIL.Image.open(images / f"{image_ids(dataset)[row]}.jpg") as image:
        expected = np.asarray(image)
    assert expected.shape == (64, 64, 3)
    np.testing.assert_array_equal(np.asarray(dataset[row]["image"]), expected)


def test_images_the_data_set_itself_repeats_are_reported_not_refused(swapped) -> None:
    assert {frozenset((pair[1], pair[3])) for pair in swapped.shared} == oxford.KNOWN_SHARED
    assert all(pair[0] != pair[2] for pair in swapped.shared)


def test_another_checksum_is_one_warning(flowers_dir, cache_root, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="siglip_flowers"):
        oxford.load_oxford(str(flowers_dir), "", "swapped")
    [message] = caplog.messages
    assert "102flowers.tgz (53db234241c10758405438e5f8767ed5)" in message
    assert "imagelabels.mat" not in message


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


def test_an_incomplete_unpacked_folder_is_refused(unpacked, images) -> None:
    (unpacked / "jpg").unlink()
    (unpacked / "jpg").mkdir()
    shutil.copy(images / "image_00001.jpg", unpacked / "jpg")
    with pytest.raises(InputError, match="jpg is incomplete"):
        check_data_arguments(DataArguments(data_dir=str(unpacked)))


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"wrong": np.ones((1, 8189))}, "has no variable 'labels', only wrong"),
        ({"labels": np.ones((1, 8188))}, r"shape \(1, 8188\), not \(1, 8189\)"),
        ({"labels": np.zeros((1, 8189), np.uint8)}, "whole numbers from 1 to 102"),
        ({"labels": np.full((1, 8189), 103)}, "whole numbers from 1 to 102"),
        ({"labels": np.full((1, 8189), 1.5)}, "whole numbers from 1 to 102"),
        ({"labels": np.array([["a" * 8189]])}, "is a char, not numbers"),
    ],
)
def test_wrong_labels_are_refused(unpacked, variables, message) -> None:
    scipy.io.savemat(unpacked / "imagelabels.mat", variables)
    with pytest.raises(InputError, match=message):
        check_data_arguments(DataArguments(data_dir=str(unpacked)))


def test_overlapping_split_ids_are_refused(unpacked) -> None:
    ids = scipy.io.loadmat(unpacked / "setid.mat")
    ids["trnid"][0, 0] = 5
    ids["valid"][0, 0] = 5
    scipy.io.savemat(
        unpacked / "setid.mat", {name: ids[name] for name in ("trnid", "valid", "tstid")}
    )
    with pytest.raises(InputError, match="lists image 5 more than once"):
        check_data_arguments(DataArguments(data_dir=str(unpacked)))


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>" * 20, None], ids=["empty", "html", "cut"]
)
@pytest.mark.parametrize("name", ["imagelabels.mat", "setid.mat"])
def test_a_broken_mat_file_is_refused(unpacked, name, content) -> None:
    path = unpacked / name
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(InputError, match=f"{name} is not a readable .mat file"):
        check_data_arguments(DataArguments(data_dir=str(unpacked)))


def test_a_missing_part_is_named(unpacked) -> None:
    (unpacked / "jpg").unlink()
    with pytest.raises(InputError, match=r"lacks 102flowers\.tgz, and there is no jpg/"):
        check_data_arguments(DataArguments(data_dir=str(unpacked)))
    (unpacked / "setid.mat").unlink()
    with pytest.raises(InputError, match=r"lacks setid\.mat"):
        check_data_arguments(DataArguments(data_dir=str(unpacked)))


@pytest.mark.parametrize("content, kind", [(b"", "empty"), (b"PK\3\4", "not a gzip archive")])
def test_an_archive_that_cannot_be_one_is_refused_early(unpacked, content, kind) -> None:
    (unpacked / "jpg").unlink()
    (unpacked / "102flowers.tgz").write_bytes(content)
    with pytest.raises(RunError, match=f"102flowers.tgz is {kind}"):
        check_data_arguments(DataArguments(data_dir=str(unpacked)))


class _CountingHandler(http.server.SimpleHTTPRequestHandler):
    requests: list[str]

    def log_message(self, format: str, *args: object) -> None:
        type(self).requests.append(self.path)


@pytest.fixture
def mirror(flowers_dir, tmp_path, monkeypatch) -> Iterator[tuple[str, list[str]]]:
    """A web server with the 64-pixel files, and the list of what was asked of it."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "downloads")
    handler = type("Handler", (_CountingHandler,), {"requests": []})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(flowers_dir))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler.requests
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_download_with_another_checksum_is_refused_and_forgotten(mirror, tmp_path) -> None:
    url, _ = mirror
    with pytest.raises(RunError, match="--data_dir") as caught:
        oxford.load_oxford(None, url, "swapped")
    for part in (
        "102flowers.tgz",
        "53db234241c10758405438e5f8767ed5",
        oxford.MD5_SUMS["102flowers.tgz"],
    ):
        assert part in str(caught.value)
    sizes = [path.stat().st_size for path in (tmp_path / "downloads").iterdir()]
    assert max(sizes) < 100_000  # the wrong archive is not kept
    assert not (tmp_path / "datasets").exists()


def test_a_download_is_cached(mirror, flowers_dir, monkeypatch, caplog) -> None:
    url, requests = mirror
    md5 = hashlib.md5((flowers_dir / "102flowers.tgz").read_bytes()).hexdigest()
    monkeypatch.setitem(oxford.MD5_SUMS, "102flowers.tgz", md5)
    splits = oxford.load_oxford(None, url + "/", "swapped")
    assert [len(dataset) for dataset in splits.values()] == [6149, 1020, 1020]
    assert caplog.messages == []
    assert requests
    requests.clear()
    again = oxford.load_oxford(None, url, "swapped")
    assert requests == []
    assert image_ids(again["test"]) == image_ids(splits["test"])


def test_an_unreachable_server_names_the_offline_ways(mirror) -> None:
    with pytest.raises(RunError, match="--data_dir, or use --data_source procedural") as caught:
        oxford.load_oxford(None, "http://127.0.0.1:9", "swapped")
    assert "http://127.0.0.1:9/imagelabels.mat" in str(caught.value)


def test_a_missing_remote_file_is_a_run_error(mirror) -> None:
    url, _ = mirror
    with pytest.raises(RunError, match=r"Cannot download .*/nowhere/imagelabels.mat"):
        oxford.load_oxford(None, f"{url}/nowhere", "swapped")


def test_a_full_disk_during_the_download_says_what_was_needed(mirror, monkeypatch) -> None:
    def fail(self: datasets.DownloadManager, url: str) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets.DownloadManager, "download", fail)
    with pytest.raises(RunError, match=r"disk is full: .* 700 MB under .*downloads"):
        oxford.load_oxford(None, mirror[0], "swapped")
