"""Pixels from the cache against pixels decoded on the spot and against the image processor."""

import os
import pickle
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.config import DataArguments
from siglip_flowers.data.inspection import examine_images
from siglip_flowers.data.pixels import tensors
from siglip_flowers.data.pixels.tensors import PixelDataset, PixelForm, open_pixels
from siglip_flowers.data.rows import fingerprint_images
from siglip_flowers.data.sources.load import load_data
from tests.small_flowers import build_flowers, make_rows
from tests.small_runs import draw_image, make_folder

BICUBIC = Image.Resampling.BICUBIC
FORM = PixelForm(64, BICUBIC)


@pytest.fixture(scope="module")
def rows(flowers_dir):
    return build_flowers(flowers_dir, train=40).splits["train"]


def test_cached_items_equal_decoded_ones_one_by_one_and_in_batches(rows, tmp_path):
    cached = open_pixels(rows, FORM, DataArguments(cache_dir=str(tmp_path)))
    decoded = PixelDataset(rows, FORM)
    assert cached.cached is not None
    assert len(cached) == len(decoded)
    ours, theirs = cached.__getitems__([5, 0, 17]), decoded.__getitems__([5, 0, 17])
    for key in theirs:
        assert np.array_equal(ours[key], theirs[key])
    # Writing into a batch must not reach the shared pages.
    ours["pixel_values"].zero_()
    assert torch.equal(cached.__getitems__([5, 0, 17])["pixel_values"], theirs["pixel_values"])


def test_images_are_decoded_once(rows, tmp_path, monkeypatch):
    arguments = DataArguments(cache_dir=str(tmp_path))
    first = open_pixels(rows, FORM, arguments)
    monkeypatch.setattr(PixelDataset, "decode", None)
    second = open_pixels(rows, FORM, arguments)
    assert np.array_equal(first.cached, second.cached)
    with pytest.raises(TypeError):
        open_pixels(rows, FORM.scale(1.2), arguments)


def test_without_a_cache_images_are_decoded_when_asked_for(rows, tmp_path):
    arguments = DataArguments(pixel_cache=False, cache_dir=str(tmp_path))
    assert open_pixels(rows, FORM, arguments).cached is None
    (tmp_path / "file").write_text("")
    unusable = DataArguments(cache_dir=str(tmp_path / "file" / "cache"))
    assert open_pixels(rows, FORM, unusable).cached is None


def load_folder(directory):
    return load_data(DataArguments(data_dir=str(directory), pixel_cache=False)).splits["train"]


def test_fingerprint_follows_files_that_change(tmp_path):
    folder = make_folder(tmp_path / "data")
    changed = folder / "train" / "aster" / "0.png"
    seen = {fingerprint_images(load_folder(folder)) for _ in range(2)}
    assert len(seen) == 1
    draw_image(changed, "clover", seed=9)
    seen.add(fingerprint_images(load_folder(folder)))
    os.utime(changed, ns=(1, 1))
    seen.add(fingerprint_images(load_folder(folder)))
    assert len(seen) == 3


def test_fingerprint_follows_embedded_images_and_their_order():
    def embed(*values):
        return make_rows([Image.new("RGB", (8, 8), (value, 0, 0)) for value in values])

    assert fingerprint_images(embed(1, 2)) == fingerprint_images(embed(1, 2))
    digests = {
        fingerprint_images(rows)
        for rows in (embed(1, 2), embed(2, 1), embed(1, 3), embed(1), embed(1, 2).select([1, 0]))
    }
    # A selection of rows counts as the rows it selects.
    assert len(digests) == 4


@pytest.mark.parametrize("decode", [True, False])
def test_good_splits_are_examined_once_and_bad_ones_every_time(tmp_path, monkeypatch, decode):
    folder = make_folder(tmp_path / "data")
    train = load_folder(folder)
    options = {"workers": 1, "decode": decode}
    cached = {"cache_dir": tmp_path / "cache", **options}
    first, problems = examine_images(train, **cached)
    assert first.any(axis=1).all()
    assert not problems
    assert np.array_equal(first, examine_images(train, **options)[0])
    with monkeypatch.context() as patch:
        patch.setattr("siglip_flowers.data.inspection.read_image", None)
        patch.setattr("siglip_flowers.data.inspection.digest_file", None)
        assert np.array_equal(examine_images(train, **cached)[0], first)
    (folder / "train" / "aster" / "0.png").write_bytes(b"no image")
    for _ in range(2):
        assert examine_images(train, **cached)[1] == {0: "not an image"}


def test_the_check_keeps_the_pixels_that_training_asks_for(tmp_path, monkeypatch):
    """No image is decoded twice, and the pixels are those of a decoding of their own."""
    folder, arguments = make_folder(tmp_path / "data"), {"cache_dir": str(tmp_path / "cache")}
    forms = {"train": PixelForm(12, BICUBIC), "validation": PixelForm(8, BICUBIC)}
    forms["test"] = forms["validation"]
    data = load_data(DataArguments(data_dir=str(folder), **arguments), forms)
    assert data.checked == "all images decoded"
    monkeypatch.setattr(PixelDataset, "decode", None)
    monkeypatch.setattr("siglip_flowers.data.inspection.read_image", None)
    load_data(DataArguments(data_dir=str(folder), **arguments), forms)
    kept = {
        name: open_pixels(data.splits[name], form, DataArguments(**arguments))
        for name, form in forms.items()
    }
    monkeypatch.undo()
    for name, form in forms.items():
        order = range(len(kept[name]))
        decoded = PixelDataset(data.splits[name], form)
        pixels = [images.__getitems__(order)["pixel_values"] for images in (kept[name], decoded)]
        assert torch.equal(*pixels)


def test_without_room_for_the_pixels_files_are_compared_instead(tmp_path, monkeypatch, caplog):
    folder = make_folder(tmp_path / "data")
    forms = dict.fromkeys(("train", "validation", "test"), PixelForm(8, BICUBIC))
    monkeypatch.setattr("siglip_flowers.data.inspection.measure_free_bytes", lambda path: 2**20)
    monkeypatch.setattr("siglip_flowers.data.inspection.read_image", None)
    options = {"data_dir": str(folder), "cache_dir": str(tmp_path / "cache")}
    data = load_data(DataArguments(**options), forms)
    assert data.checked == "files compared, decoded while training"
    assert "0.0 GB free; images are decoded in every epoch" in caplog.text
    # Nor if there is room, but decoding would take long.
    monkeypatch.undo()
    monkeypatch.setattr("siglip_flowers.data.inspection.LONGEST_SECONDS", -1.0)
    monkeypatch.setattr("siglip_flowers.data.inspection.read_image", None)
    data = load_data(DataArguments(**options), forms)
    assert data.checked == "files compared, decoded while training"
    assert "they are decoded while training, and kept" in caplog.text
    for name, form in forms.items():
        open_pixels(data.splits[name], form, DataArguments(**options))
    caplog.clear()
    load_data(DataArguments(**options), forms)
    assert not caplog.records
    shutil.copy(folder / "train" / "aster" / "0.png", folder / "test" / "aster" / "copy.png")
    with pytest.raises(InputError, match="train/aster/0 = test/aster/copy"):
        load_data(DataArguments(**options), forms)
    monkeypatch.setattr("siglip_flowers.data.inspection.digest_file", None)
    accepted = load_data(DataArguments(allow_duplicates=True, **options), forms)
    assert accepted.checked == "files not checked"


def test_pixels_that_take_long_to_decode_are_kept_as_they_are_used(rows, tmp_path, monkeypatch):
    """A run that is killed leaves its rows; damaged ones are decoded again."""
    monkeypatch.setattr(tensors, "SAMPLED_SHARE", 1.0)
    monkeypatch.setattr(tensors, "LONGEST_SECONDS", 0.0)
    arguments, order = DataArguments(cache_dir=str(tmp_path)), list(range(len(rows)))
    expected = PixelDataset(rows, FORM).__getitems__(order)["pixel_values"]
    first = open_pixels(rows, FORM, arguments)
    first.threads = 2
    for batch in ([5, 0, 17], [17, 3], [0]):
        assert torch.equal(first.__getitems__(batch)["pixel_values"], expected[batch])
    (part,) = tmp_path.glob("pixels-*.part")
    np.load(part / "array.npy", mmap_mode="r+")[0] += 1
    decoded, decode = [], PixelDataset.decode
    second = pickle.loads(pickle.dumps(open_pixels(rows, FORM, arguments)))
    monkeypatch.setattr(PixelDataset, "decode", lambda *args: decoded.append(args) or decode(*args))
    assert torch.equal(second.__getitems__(order)["pixel_values"], expected)
    assert len(decoded) == len(rows) - 3
    monkeypatch.setattr(PixelDataset, "decode", None)
    # Neither the end of a process in between nor a damaged entry loses them.
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_pixels(rows, FORM, arguments)
    (tmp_path / part.stem).mkdir()
    (tmp_path / part.stem / "array.npy").write_bytes(b"x")
    assert np.array_equal(open_pixels(rows, FORM, arguments).cached, expected)
    assert not list(tmp_path.glob("*.part"))


def test_every_broken_image_is_named_when_pixels_are_decoded(tmp_path):
    folder = make_folder(tmp_path / "data")
    rows = load_folder(folder)
    path = folder / "train" / "aster" / "1.png"
    path.write_bytes(path.read_bytes()[:-40])
    path.with_name("2.png").unlink()
    with pytest.raises(
        RunError, match=r"2 of 24 images cannot be read: .*1\.png .*2\.png "
    ) as caught:
        open_pixels(rows, PixelForm(8, BICUBIC), DataArguments(cache_dir=str(tmp_path / "cache")))
    assert "--skip_corrupt_images" in str(caught.value)
