"""Image folders: classes by name, splits as given or cut."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.prompts import FLOWER_NAMES
from siglip_flowers.config import DataArguments
from siglip_flowers.data import check_data_arguments, image_ids, load_data
from siglip_flowers.data.names import normalize_name, order_names
from siglip_flowers.data.rows import get_labels


def write_images(folder: Path, count: int, key: int = 0) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        generator = np.random.default_rng([sum(map(ord, str(folder))), key, number])
        pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number:03d}.png")


def load(folder: Path, **options: object):
    return load_data(DataArguments(data_dir=str(folder), **options))


def test_all_102_flowers_get_the_original_order_whatever_the_spelling() -> None:
    spelled = [
        name.replace(" ", "_").replace("-", "_").replace("'", "").replace("?", "").upper()
        for name in sorted(FLOWER_NAMES)
    ]
    classes, numbers = order_names(spelled)
    assert tuple(classes) == FLOWER_NAMES
    assert numbers["PASSION_FLOWER"] == 76
    assert numbers["COLTS_FOOT"] == 11
    assert numbers["PINK_YELLOW_DAHLIA"] == 59


def test_foreign_names_keep_their_own_natural_order() -> None:
    assert order_names(["c10", "c9", "rose"])[0] == ["c9", "c10", "rose"]
    assert order_names(str(n) for n in range(12))[0] == [str(n) for n in range(12)]
    assert order_names(["10", "-2", "0.5", "0.25", "9"])[0] == ["-2", "0.25", "0.5", "9", "10"]
    assert order_names(["9" * 5000, "8"])[0] == ["8", "9" * 5000]


def test_an_alphabetical_folder_is_mapped_by_name(tmp_path) -> None:
    for split in ("train", "val", "test"):
        for name in ("azalea", "Passion_Flower", "tiger-lily"):
            write_images(tmp_path / split / name, 2)
    data = load(tmp_path)
    assert data.source == "folder"
    assert data.split_protocol == "as given"
    assert data.class_names == ["tiger lily", "azalea", "passion flower"]  # 6, 72, 77
    for dataset in data.splits.values():
        assert dataset.column_names == ["image", "label"]
        for name, label in zip(image_ids(dataset), get_labels(dataset), strict=True):
            assert normalize_name(name.split("/")[0]) == data.class_names[label]


def test_one_folder_a_class_is_cut_by_seed_and_stratified(tmp_path) -> None:
    for name in ("one", "two"):
        write_images(tmp_path / name, 20)
    data = load(tmp_path)
    assert data.split_protocol == "as given, validation and test cut"
    ids = {name: image_ids(dataset) for name, dataset in data.splits.items()}
    assert sorted(name for part in ids.values() for name in part) == [
        f"{c}/{n:03d}" for c in ("one", "two") for n in range(20)
    ]
    counts = [np.bincount(get_labels(rows)).tolist() for rows in data.splits.values()]
    assert counts == [[14, 14], [3, 3], [3, 3]]
    assert {name: image_ids(d) for name, d in load(tmp_path).splits.items()} == ids
    assert image_ids(load(tmp_path, split_seed=1).splits["test"]) != ids["test"]


def test_an_empty_class_is_named(tmp_path) -> None:
    write_images(tmp_path / "train" / "rose", 2)
    (tmp_path / "train" / "lotus").mkdir()
    with pytest.raises(InputError, match="No training images for 1 of 2 classes: lotus"):
        check_data_arguments(DataArguments(data_dir=str(tmp_path)))


def test_folders_that_are_no_image_folder(tmp_path) -> None:
    def check(message: str) -> None:
        with pytest.raises(InputError, match=message):
            check_data_arguments(DataArguments(data_dir=str(tmp_path)))

    PIL.Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    check("has no class folders")
    write_images(tmp_path / "test", 1)
    check("has no class folders")
    write_images(tmp_path / "test" / "x", 1)
    check("has test but no train folder")
    (tmp_path / "train" / "x").mkdir(parents=True)
    check("no images in the class folders of the train split")
    (tmp_path / "valid").mkdir()
    (tmp_path / "val").mkdir()
    check("two validation folders")


def test_what_is_left_out_is_said_in_one_line(tmp_path, caplog) -> None:
    write_images(tmp_path / "train" / "a", 3)
    write_images(tmp_path / "train" / "a" / "2019" / "may", 4, key=1)
    write_images(tmp_path / "train" / "b", 5)
    write_images(tmp_path / "test", 2)  # no class folders: no labels
    write_images(tmp_path / "other" / "c", 1)
    write_images(tmp_path / "train" / "loose", 1)
    (tmp_path / "train" / "loose" / "000.png").rename(tmp_path / "train" / "loose.png")
    (tmp_path / "train" / "loose").rmdir()
    for number in range(3):
        (tmp_path / "train" / "b" / f"{number}.HEIC").write_bytes(b"x")
    (tmp_path / "train" / "b" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "train" / "b" / ".hidden.png").write_bytes(b"")
    data = load(tmp_path)
    assert data.split_protocol == "as given, validation and test cut"
    assert sum(map(len, data.splits.values())) == 12
    names = {name for rows in data.splits.values() for name in image_ids(rows)}
    assert {"a/000", "a/2019/may/000", "b/004"} <= names
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}: read 12 images; left out: ")
    for part in (
        f"1 image in {tmp_path / 'train'}, outside the class folders",
        "test/ has no class folders, so it has no labels",
        "other/ beside the split folders",
        "4 files of other formats (3 .heic, 1 .db)",
    ):
        assert part in message


def test_classes_may_have_the_names_of_splits(tmp_path) -> None:
    for name in ("train", "car", "test"):
        write_images(tmp_path / name, 8)
    data = load(tmp_path)
    assert data.class_names == ["car", "test", "train"]


def test_names_that_differ_in_case_only_are_named(tmp_path, caplog) -> None:
    assert order_names(["Fern", "fern"])[0] == ["Fern", "fern"]
    assert len(order_names(["caf\u00e9", "cafe\u0301"])[0]) == 2
    first, second = caplog.messages
    assert "'Fern' and 'fern' differ in case" in first
    assert r"'cafe\u0301' and 'caf\xe9' differ" in second
    # The original names bring any spelling together.
    assert order_names(["Rose", "rose"])[0] == ["rose"]


def test_too_few_images_to_cut(tmp_path) -> None:
    write_images(tmp_path / "a", 1)
    write_images(tmp_path / "b", 1)
    with pytest.raises(InputError, match="validation split is missing and cannot be cut"):
        load(tmp_path)
