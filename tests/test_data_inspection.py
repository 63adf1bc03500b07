"""Every image is looked at once: broken ones and shared ones are found."""

import logging
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.config import DataArguments
from siglip_flowers.data.pixels.tensors import PixelForm
from siglip_flowers.data.rows import image_ids
from siglip_flowers.data.sources.load import load_data


def draw_noise(*key: int, size: int = 48) -> PIL.Image.Image:
    pixels = np.random.default_rng(key).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path) -> Path:
    for number, split in enumerate(("train", "validation", "test")):
        for label, name in enumerate(("a", "b")):
            path = tmp_path / split / name
            path.mkdir(parents=True)
            for image in range(4):
                draw_noise(number, label, image).save(path / f"{image}.png")
    return tmp_path


def load(folder: Path, **options: object):
    """Load as training does, which decodes every image."""
    forms = dict.fromkeys(("train", "validation", "test"), PixelForm(16, 3))
    return load_data(DataArguments(data_dir=str(folder), **options), forms)


def break_images(folder: Path) -> None:
    (folder / "train" / "a" / "0.png").write_bytes(b"")
    (folder / "train" / "b" / "1.png").write_text("<html>not found</html>")
    path = folder / "test" / "a" / "2.png"
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize("workers", [1, 3])
def test_unreadable_images_stop_with_the_list(folder, workers) -> None:
    break_images(folder)
    with pytest.raises(RunError, match="3 of 24 images cannot be read") as caught:
        load(folder, image_workers=workers)
    message = str(caught.value)
    assert f"{folder / 'train' / 'a' / '0.png'} (not an image)" in message
    assert f"{folder / 'train' / 'b' / '1.png'} (not an image)" in message
    assert str(folder / "test" / "a" / "2.png") in message
    assert "--skip_corrupt_images" in message


def test_unreadable_images_are_dropped_and_counted_when_asked(folder, caplog) -> None:
    break_images(folder)
    with caplog.at_level(logging.WARNING, logger="siglip_flowers"):
        data = load(folder, skip_corrupt_images=True)
    assert data.skipped == {"train": ["a/0", "b/1"], "validation": [], "test": ["a/2"]}
    assert [len(dataset) for dataset in data.splits.values()] == [6, 8, 7]
    assert not {"a/0", "b/1"} & set(image_ids(data.splits["train"]))
    assert all(row["image"].size == (48, 48) for row in data.splits["train"])
    assert ["Dropped 3 of 24" in message for message in caplog.messages] == [True]


def test_a_class_whose_images_are_all_broken_has_no_training_image(folder) -> None:
    for path in (folder / "train" / "b").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(InputError, match="No training images for 1 of 2 classes: b"):
        load(folder, skip_corrupt_images=True)


def test_a_split_whose_images_are_all_broken_is_refused(folder) -> None:
    for path in (folder / "test").rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(InputError, match="No image of the test split can be read"):
        load(folder, skip_corrupt_images=True)


def test_the_same_pixels_in_two_splits_are_refused_across_file_formats(folder) -> None:
    draw_noise(0, 0, 1).save(folder / "test" / "b" / "copy.bmp")
    draw_noise(1, 1, 3).convert("RGBA").save(folder / "test" / "a" / "copy.png")
    with pytest.raises(InputError, match="2 images are in two splits") as caught:
        load(folder)
    assert "train/a/1 = test/b/copy" in str(caught.value)
    assert "validation/b/3 = test/a/copy" in str(caught.value)
    assert "--allow_duplicates" in str(caught.value)


def test_shared_images_are_reported_when_allowed(folder, caplog) -> None:
    draw_noise(0, 0, 1).save(folder / "test" / "b" / "copy.bmp")
    with caplog.at_level(logging.WARNING, logger="siglip_flowers"):
        data = load(folder, allow_duplicates=True)
    assert data.shared == [("train", "a/1", "test", "b/copy")]
    assert len(data.splits["test"]) == 9
    assert ["1 image in two splits" in message for message in caplog.messages] == [True]


def test_equal_bytes_of_another_shape_are_another_image(folder) -> None:
    PIL.Image.new("RGB", (2, 8)).save(folder / "train" / "a" / "tall.png")
    PIL.Image.new("RGB", (8, 2)).save(folder / "test" / "a" / "wide.png")
    assert load(folder).shared == []
