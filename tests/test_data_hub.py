"""Hub data sets, here local ones: columns, splits and labels by name."""

from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.prompts import FLOWER_NAMES
from siglip_flowers.config import DataArguments
from siglip_flowers.data import check_data_arguments, image_ids, load_data, read_images
from siglip_flowers.data.rows import get_labels

ALPHABETICAL = sorted(FLOWER_NAMES)


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def make_split(labels, feature, key: int, image: str = "image", label: str = "label") -> Dataset:
    """The first pixel of an image holds its row, the second the number of the split."""
    images = []
    for row in range(len(labels)):
        drawn = PIL.Image.new("RGB", (3, 3))
        drawn.putpixel((0, 0), (row % 256, row // 256, 0))
        drawn.putpixel((1, 0), (key, 0, 0))
        images.append(drawn)
    return Dataset.from_dict(
        {image: images, label: labels}, features=Features({image: Image(), label: feature})
    )


def write(tmp_path, **splits: Dataset) -> str:
    folder = tmp_path / "set"
    folder.mkdir()
    for name, dataset in splits.items():
        dataset.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return str(folder)


def load(name: str, **options: object):
    return load_data(DataArguments(dataset_name=name, **options))


def test_alphabetical_class_labels_are_mapped_by_name(tmp_path) -> None:
    feature = ClassLabel(names=ALPHABETICAL)
    codes = [*range(102)] * 2
    name = write(
        tmp_path,
        train=make_split(codes, feature, 0),
        validation=make_split(codes, feature, 1),
        test=make_split(codes, feature, 2),
    )
    data = load(name)
    assert (data.source, data.split_protocol) == ("hub", "as given")
    assert data.class_names == list(FLOWER_NAMES)
    for key, dataset in enumerate(data.splits.values()):
        assert dataset.column_names == ["image", "label"]
        assert isinstance(dataset.features["label"], ClassLabel)
        for row in (0, 50, 101, 203):
            item = dataset[row]
            assert item["image"].getpixel((0, 0))[0] == row
            assert item["image"].getpixel((1, 0))[0] == key
            assert data.class_names[item["label"]] == ALPHABETICAL[row % 102]


def test_string_labels_other_columns_and_split_names(tmp_path) -> None:
    labels = ["wild_pansy", "rose", "Sunflower"] * 2
    names = {"image": "photo", "label": "species"}
    name = write(
        tmp_path,
        training=make_split(labels, Value("string"), 0, **names),
        dev=make_split(labels, Value("string"), 1, **names),
        final=make_split(labels, Value("string"), 2, **names),
    )
    (tmp_path / "set" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: {s}-*\n" for s in ("training", "dev", "final"))
        + "---\n"
    )
    data = load(
        name,
        image_column_name="photo",
        label_column_name="species",
        train_split_name="training",
        test_split_name="final",
    )
    assert data.class_names == ["wild pansy", "sunflower", "rose"]  # 52, 54, 74
    assert get_labels(data.splits["validation"]).tolist() == [0, 2, 1, 0, 2, 1]
    assert data.split_protocol == "as given"


def test_a_missing_validation_split_is_cut_from_train(tmp_path) -> None:
    name = write(
        tmp_path,
        train=make_split(["a", "b"] * 20, Value("string"), 0),
        test=make_split(["a", "b"] * 2, Value("string"), 1),
    )
    data = load(name, validation_fraction=0.2, split_seed=3)
    assert data.split_protocol == "as given, validation cut"
    assert np.bincount(get_labels(data.splits["validation"])).tolist() == [4, 4]
    assert len(data.splits["train"]) == 32
    assert len(data.splits["test"]) == 4
    ids = image_ids(data.splits["validation"])
    assert len(set(ids) | set(image_ids(data.splits["train"]))) == 40
    row = int(data.splits["validation"][0]["image"].getpixel((0, 0))[0])
    assert ids[0] == f"train_{row}"  # the row of the file it was cut from


def test_numbers_without_names_keep_their_numeric_order(tmp_path) -> None:
    name = write(tmp_path, train=make_split([10, 9, 2] * 10, Value("int64"), 0))
    data = load(name)
    assert data.class_names == ["2", "9", "10"]


def test_missing_columns_are_listed(tmp_path) -> None:
    name = write(tmp_path, train=make_split(["a"] * 9, Value("string"), 0, "img", "y"))
    with pytest.raises(InputError, match="no column 'label', only img, y"):
        load(name)


def test_unlabeled_rows_are_refused(tmp_path) -> None:
    feature = ClassLabel(names=["a", "b"])
    name = write(
        tmp_path,
        train=make_split([0, 1] * 10, feature, 0),
        test=make_split([-1, -1, 0], feature, 1),
    )
    with pytest.raises(InputError, match="2 of 3 rows of the test split have no label"):
        load(name)


def test_unknown_split_names_are_answered_with_the_known_ones(tmp_path) -> None:
    name = write(tmp_path, train=make_split(["a", "b"] * 9, Value("string"), 0))
    with pytest.raises(InputError, match="no split 'trian', only train"):
        load(name, train_split_name="trian")
    with pytest.raises(InputError, match="no split 'holdout', only train"):
        load(name, test_split_name="holdout")


def test_a_declared_class_without_rows_is_dropped(tmp_path, caplog) -> None:
    feature = ClassLabel(names=["rose", "lotus", "azalea"])
    name = write(tmp_path, train=make_split([0, 1] * 9, feature, 0))
    assert load(name).class_names == ["rose", "lotus"]
    assert caplog.messages == ["Classes without images are left out: azalea."]


def test_a_split_without_labels_is_left_out_and_can_be_replaced(tmp_path, caplog) -> None:
    feature = ClassLabel(names=["a", "b"])
    name = write(
        tmp_path,
        train=make_split([0, 1] * 10, feature, 0),
        validation=make_split([0, 1] * 4, feature, 1),
        test=make_split([-1] * 5, feature, 2),
    )
    data = load(name)
    assert data.split_protocol == "as given, test cut"
    assert [len(rows) for rows in data.splits.values()] == [16, 8, 4]
    (message,) = caplog.messages
    assert "The test split of" in message
    assert "has no labels and is left out" in message
    with pytest.raises(InputError, match="none cuts a split from the training"):
        load(name, test_split_name="validation")
    data = load(name, test_split_name="validation", validation_split_name="none")
    assert data.split_protocol == "as given, validation cut"
    assert [len(rows) for rows in data.splits.values()] == [16, 4, 8]


@pytest.mark.parametrize("kind", ["large_string", "large_binary", "bytes"])
def test_columns_of_every_kind_are_read_as_images(tmp_path, kind) -> None:
    paths = []
    for number in range(20):
        paths.append(str(tmp_path / f"{number}.png"))
        PIL.Image.new("RGB", (3, 3), (number, 0, 0)).save(paths[-1])
    contents = [Path(path).read_bytes() for path in paths]
    column = {
        "large_string": lambda: pa.array(paths, pa.large_string()),
        "large_binary": lambda: pa.array(contents, pa.large_binary()),
        "bytes": lambda: pa.array([{"bytes": content} for content in contents]),
    }[kind]()
    (tmp_path / "set").mkdir()
    labels = pa.array(["a", "b"] * 10, pa.large_string())
    table = pa.table({"image": column, "label": labels})
    pyarrow.parquet.write_table(table, tmp_path / "set" / "train.parquet")
    data = load(str(tmp_path / "set"))
    shown = [image.getpixel((0, 0))[0] for image in read_images(data.splits["train"], range(12))]
    assert len(set(shown)) == 12
    assert [number % 2 for number in shown] == get_labels(data.splits["train"]).tolist()


def test_an_unreachable_hub_names_the_offline_ways() -> None:
    with pytest.raises(RunError, match=r"--data_dir .* --data_source procedural") as caught:
        load("someone/some-flowers", dataset_config_name="big")
    assert "'someone/some-flowers', configuration 'big'" in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dataset_name": "./nowhere"}, "./nowhere does not exist"),
        ({"dataset_name": "a/b", "test_split_name": "train"}, "must differ"),
    ],
)
def test_bad_options_are_noticed_without_the_network(options, message) -> None:
    with pytest.raises(InputError, match=message):
        check_data_arguments(DataArguments(**options))
