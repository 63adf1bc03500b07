"""Data in the forms that people have: image folders, tables, data sets of the Hub, few images.

Each case is a row of a table: what lies there, and what is read of it, said or refused.
"""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.prompts import FLOWER_NAMES
from siglip_flowers.config import DataArguments
from siglip_flowers.data.names import normalize_name, order_names
from siglip_flowers.data.rows import get_labels, image_ids, read_images
from siglip_flowers.data.sources.load import check_data_arguments, load_data

# How many files of a name with a number: {"train/rose/{}.png": 3}.
Files = dict[str, int]


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def draw(number: int) -> PIL.Image.Image:
    """Draw an image whose colors are far enough from those of others for lossy formats."""
    drawn = PIL.Image.new("RGB", (8, 8), (number, 0, 7))
    drawn.putpixel((number % 8, number // 8 % 8), (255, 255, 255))
    return drawn


def write_files(root: Path, files: Files) -> None:
    """Write images, no two of which are equal, and other files where the ending is another."""
    number = 0
    for name, count in files.items():
        for index in range(count):
            path = root / name.format(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            number += 1
            if path.suffix.lower() in (".png", ".jpg", ".webp", ".avif", ".tif", ".jp2"):
                draw(number).save(path, PIL.Image.registered_extensions()[path.suffix.lower()])
            else:
                path.write_bytes(b"no image")
        if not count:
            (root / name).mkdir(parents=True)


def load(path: Path, **options: Any):
    return load_data(DataArguments(data_dir=str(path), **options))


@dataclass(frozen=True)
class Folder:
    """An image folder, and what is read of it.

    Attributes:
        files: What lies in it.
        classes: The classes.
        sizes: Images in train, validation and test.
        said: A pattern of each warning.
        refused: A pattern of the error, instead.
        cut: How the splits came about.
    """

    files: Files
    classes: str = "a b"
    sizes: str = "12/4/4"
    said: tuple[str, ...] = ()
    refused: str = ""
    cut: str = "cut at random from one folder, seed 0"


TOP = {"a/{}.png": 10, "b/{}.png": 10}
SPLIT = {f"{split}/{name}/{{}}.png": 2 for split in ("train", "val", "test") for name in "ab"}
SIZES_OF_SPLIT, GIVEN = "4/4/4", "as given"
FOLDERS = {
    "class folders at the top": Folder(TOP),
    "split folders": Folder(SPLIT, sizes=SIZES_OF_SPLIT, cut=GIVEN),
    "no validation folder": Folder(
        {"train/a/{}.png": 10, "train/b/{}.png": 10, "test/a/{}.png": 2, "test/b/{}.png": 1},
        sizes="16/4/3",
        cut="validation cut at random from the train split, seed 0",
    ),
    "a level too deep": Folder(
        {f"data/images/{name}": count for name, count in TOP.items()},
        refused=r"the class folders seem to be in \S+/data/images \(a, b\). Pass --data_dir \S+/d",
    ),
    "the folder of a class": Folder({"{}.png": 3}, refused="has no class folders"),
    "one class": Folder({"a/{}.png": 9}, refused=r"all of one class \(a\).* at least two apart"),
    "folders nested in a class": Folder(
        {"a/2019/may/{}.png": 6, "a/2020/{}.png": 4, "b/{}.png": 10}
    ),
    "endings of all kinds": Folder(
        {
            "a/{}.JPG": 3,
            "a/{}.Png": 3,
            "a/{}.webp": 2,
            "a/x.avif": 1,
            "a/x.jp2": 1,
            "b/{}.png": 9,
            "b/x.TIF": 1,
        }
    ),
    "files of other formats": Folder(
        {**TOP, "a/{}.HEIC": 3, "b/Thumbs.db": 1, "b/notes": 1},
        said=(
            r"read 20 images; left out: 5 files of other formats \(3 .heic, 1 .db, "
            r"1 no extension; HEIC requires pip install pillow-heif\).$",
        ),
    ),
    "files of other formats alone": Folder(
        {"a/{}.heic": 3, "b/{}.HEIC": 3},
        refused=r"no images in .* \(a, b\), only 6 files of other formats \(6 .heic; HEIC requires",
    ),
    "hidden and system files": Folder(
        {**TOP, "a/._0.png": 1, "a/.DS_Store": 1, "b/@eaDir/{}.jpg": 2, ".git/x/{}.png": 3}
        | {"__MACOSX/a/0.png": 1},
        said=(r"read 20 images; left out: 3 hidden images.$",),
    ),
    "loose images": Folder(
        {**TOP, "{}.png": 2, "{}.heic": 1}, said=(r"3 images in \S+, outside the class folders.$",)
    ),
    "names that differ in case": Folder(
        {"Lily/{}.png": 10, "lily/{}.png": 10},
        "Lily lily",
        said=("The classes 'Lily' and 'lily' differ in case, .*; rename one if",),
    ),
    "flowers that differ in case": Folder(
        {"Rose/{}.png": 5, "rose/{}.png": 5, "azalea/{}.png": 10},
        "azalea rose",
        said=("The classes 'Rose' and 'rose' differ in case, .*; they are read as one.",),
    ),
    "a class called like a split": Folder(
        {"train/{}.png": 8, "car/{}.png": 8, "test/{}.png": 8},
        refused="has test/, train/ beside car/: they are splits with something else beside "
        "them, or classes of which one is called like a split",
    ),
    "split folders beside one without images": Folder(
        {**SPLIT, "annotations/{}.txt": 2},
        sizes=SIZES_OF_SPLIT,
        said=(r"read 12 images; left out: annotations/ beside the split folders \(no images\).$",),
        cut=GIVEN,
    ),
    "a test folder without class folders": Folder(
        {f"train/{name}": count for name, count in TOP.items()} | {"test/{}.png": 3},
        said=(r"left out: 3 images in test/, which has no class folders.$",),
    ),
    "two validation folders": Folder(
        {**SPLIT, "valid/a/{}.png": 2}, refused="has test/, train/, val/ beside valid/"
    ),
    "an empty class": Folder(
        {**TOP, "lotus": 0}, refused="No training images for 1 of 3 classes: lotus"
    ),
    "a class of the test folder alone": Folder(
        {**SPLIT, "test/c/{}.png": 2}, refused="No training images for 1 of 3 classes: c"
    ),
    "a class of one image": Folder(
        {**TOP, "c/0.png": 1},
        "a b c",
        "13/4/4",
        said=(r"Classes with fewer images than the 3 splits .*: c \(1\).$",),
    ),
    "two images per class": Folder(
        {"a/{}.png": 2, "b/{}.png": 2},
        refused="test split is missing and cannot be cut from the 4 training images: it takes a "
        "class of at least 3",
    ),
}


@pytest.mark.parametrize("case", FOLDERS.values(), ids=FOLDERS)
def test_image_folders(case, tmp_path, caplog) -> None:
    write_files(tmp_path, case.files)
    if case.refused:
        with pytest.raises(InputError, match=case.refused):
            load(tmp_path)
        return
    data = load(tmp_path)
    assert data.class_names == case.classes.split()
    assert "/".join(str(len(rows)) for rows in data.splits.values()) == case.sizes
    assert data.split_protocol == case.cut
    assert data.description == (
        f"{tmp_path.name} (image folder), splits {case.cut}, {case.sizes} images"
    )
    assert len(caplog.messages) == len(case.said)
    for message, pattern in zip(caplog.messages, case.said, strict=True):
        assert re.search(pattern, message), message
    for rows in data.splits.values():
        for name, label in zip(image_ids(rows), get_labels(rows), strict=True):
            assert normalize_name(name.split("/")[0]) == normalize_name(data.class_names[label])


def test_all_flowers_get_the_original_order_whatever_the_spelling() -> None:
    assert len({normalize_name(name) for name in FLOWER_NAMES}) == 102
    spelled = [
        name.replace(" ", "_").replace("-", "_").replace("'", "").replace("?", "").upper()
        for name in sorted(FLOWER_NAMES)
    ]
    classes, numbers = order_names(spelled)
    assert tuple(classes) == FLOWER_NAMES
    assert [numbers[name] for name in ("PASSION_FLOWER", "COLTS_FOOT")] == [76, 11]


@pytest.mark.parametrize(
    "names", [["c9", "c10", "rose"], ["8", "9" * 5000], ["-2", "0.25", "0.5", "9", "10"]]
)
def test_other_names_get_their_natural_order(names) -> None:
    assert order_names(reversed(names))[0] == names


def test_names_that_look_alike_are_shown_apart(caplog) -> None:
    order_names(["caf\u00e9", "cafe\u0301", "tea"])
    assert r"'cafe\u0301' and 'caf\xe9' differ" in caplog.text


def test_cuts_depend_on_the_seed_and_take_a_share_of_each_class(tmp_path) -> None:
    write_files(tmp_path, {"one/{:03d}.png": 20, "two/{:03d}.png": 20})
    data = load(tmp_path)
    ids = {name: image_ids(rows) for name, rows in data.splits.items()}
    assert sorted(name for part in ids.values() for name in part) == [
        f"{c}/{n:03d}" for c in ("one", "two") for n in range(20)
    ]
    counts = [np.bincount(get_labels(rows)).tolist() for rows in data.splits.values()]
    assert counts == [[14, 14], [3, 3], [3, 3]]
    assert {name: image_ids(rows) for name, rows in load(tmp_path).splits.items()} == ids
    assert image_ids(load(tmp_path, split_seed=1).splits["test"]) != ids["test"]
    quarter = load(tmp_path, validation_fraction=0.25).splits
    assert [len(rows) for rows in quarter.values()] == [20, 10, 10]


def test_one_image_per_class_is_enough_if_the_splits_are_given(tmp_path) -> None:
    write_files(tmp_path, dict.fromkeys(SPLIT, 1))
    assert [len(rows) for rows in load(tmp_path, shots=1).splits.values()] == [2, 2, 2]
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(InputError, match="The test split is missing and cannot be cut from the 2"):
        load(tmp_path, shots=1)


def test_links_are_followed_and_equal_stems_get_their_ending(tmp_path) -> None:
    write_files(tmp_path / "data", {**SPLIT, "train/a/0.jpg": 1})
    write_files(tmp_path / "elsewhere", {"{}.png": 30})
    for number in range(28):
        os.remove(tmp_path / "elsewhere" / f"{number}.png")
    (tmp_path / "data" / "train" / "c").symlink_to(tmp_path / "elsewhere")
    data = load(tmp_path / "data")
    assert image_ids(data.splits["train"]) == [
        *("a/0.jpg", "a/0.png", "a/1", "b/0", "b/1", "c/28", "c/29")
    ]


# Tables. The images of these are a0..a9 and b0..b9 in a folder "photos" beside the table.

PATHS = [f"photos/{name}{n}.png" for name in "ab" for n in range(10)]
NAMES = [name for name in "ab" for _ in range(10)]
BOTH = {"image": PATHS, "label": NAMES}


def write_table(path: Path, /, delimiter: str = ",", **columns: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.table(columns), path)
        return
    rows = list(zip(*columns.values(), strict=True))
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
        else:
            csv.writer(file, delimiter=delimiter).writerows([list(filter(None, columns)), *rows])


def encode(number: int) -> bytes:
    stream = io.BytesIO()
    draw(number).save(stream, "PNG")
    return stream.getvalue()


CONTENTS = [encode(number) for number in range(1, 21)]
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "csv": ("t.csv", BOTH),
    "csv of a spreadsheet": (
        "T.CSV",
        {
            "\ufefffile_name": [path.replace("/", "\\") for path in PATHS],
            " Target ": [f"{name} " for name in NAMES],
            "": [""] * 20,
            "delimiter": ";",
        },
    ),
    "tsv": ("t.tsv", {"filename": PATHS, "label": NAMES, "delimiter": "\t"}),
    "jsonl": ("t[1].jsonl", {"path": PATHS, "class": NAMES}),
    "parquet of paths": ("t.parquet", {**BOTH, "image": pa.array(PATHS, pa.large_string())}),
    "parquet of bytes": ("t.parquet", {"bytes": CONTENTS, "target": NAMES}),
    "parquet of views": ("t.parquet", {**BOTH, "image": pa.array(PATHS, pa.string_view())}),
    "parquet of structs": ("t.parquet", {**BOTH, "image": [{"bytes": each} for each in CONTENTS]}),
    "parquet of paths in structs": (
        "t.parquet",
        {"image": [{"path": path} for path in PATHS], "label": pa.array(NAMES, pa.large_string())},
    ),
    "parquet of large bytes": ("t.parquet", {**BOTH, "image": pa.array(CONTENTS, "large_binary")}),
    **{
        f"metadata{ending} of datasets": (f"metadata{ending}", {"file_name": PATHS, "label": NAMES})
        for ending in (".csv", ".jsonl", ".parquet")
    },
}


@pytest.mark.parametrize("case", TABLES.values(), ids=TABLES)
def test_tables(case, tmp_path, caplog, monkeypatch) -> None:
    write_files(tmp_path, dict.fromkeys(PATHS, 1))
    file, columns = case
    write_table(tmp_path / file, **columns)
    monkeypatch.chdir(tmp_path.parent)  # paths are relative to the table
    data = load(Path(tmp_path.name) / ("." if file.startswith("metadata") else file))
    assert (data.source, data.class_names) == ("table", ["a", "b"])
    assert data.split_protocol == "cut at random from one table, seed 0"
    assert [len(rows) for rows in data.splits.values()] == [12, 4, 4]
    for rows in data.splits.values():
        for image, label in zip(read_images(rows, range(len(rows))), get_labels(rows), strict=True):
            # write_files numbers its images: those of a come first.
            assert (image.getpixel((0, 0))[0] > 10) == label
    assert not caplog.messages


VALIDATION_CUT = "validation cut at random from the train split, seed 0"
# The tables, the sizes of the splits, and how they came about.
DIVIDED: dict[str, tuple[dict[str, dict[str, Any]], str, str]] = {
    "a column": (
        {"t.csv": {**BOTH, "Split": ["train", "Train", "val", "testing", "training"] * 4}},
        "12/4/4",
        "as given",
    ),
    "a column without validation": (
        {"train.jsonl": {**BOTH, "split": ["train", "test"] * 10}},
        "8/2/10",
        VALIDATION_CUT,
    ),
    "a table for each split": (
        {
            f"{name}.csv": {column: values[start::3] for column, values in BOTH.items()}
            for start, name in enumerate(("train", "valid", "test"))
        },
        "7/7/6",
        "as given",
    ),
    "metadata in split folders": (
        {
            f"{name}/metadata.csv": {
                "image": [f"../{path}" for path in PATHS[start::2]],
                "label": NAMES[start::2],
            }
            for start, name in enumerate(("train", "test"))
        },
        "8/2/10",
        VALIDATION_CUT,
    ),
    **{
        f"a test split of labels {none!r}": (
            {
                "t.csv": {
                    **BOTH,
                    "label": ["a", none, "b", none] * 5,
                    "split": ["train", "test"] * 10,
                }
            },
            "6/2/2",
            "cut at random from one table, seed 0",
        )
        for none in ("", "-1")
    },
}


@pytest.mark.parametrize("case", DIVIDED.values(), ids=DIVIDED)
def test_tables_with_splits(case, tmp_path, caplog) -> None:
    write_files(tmp_path, dict.fromkeys(PATHS, 1))
    tables, sizes, protocol = case
    for file, columns in tables.items():
        write_table(tmp_path / file, **columns)
    for name in "xy":  # other folders do not matter
        (tmp_path / name).mkdir()
    data = load(tmp_path / next(iter(tables)) if "t.csv" in tables else tmp_path)
    assert data.class_names == ["a", "b"]
    assert "/".join(str(len(rows)) for rows in data.splits.values()) == sizes
    assert data.split_protocol == protocol
    unlabeled = caplog.text.count("has no labels and is left out")
    assert unlabeled == len(caplog.messages) == (sizes == "6/2/2")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["NA", "01"], ["01", "NA"]),
        (["1", "0"], ["0", "1"]),
        ([10, 9], ["9", "10"]),
        ([True, False], ["False", "True"]),
        (["кот", 'a "b", c'], ['a "b", c', "кот"]),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_labels_of_every_kind(labels, classes, ending, tmp_path) -> None:
    write_files(tmp_path, dict.fromkeys(PATHS, 1))
    write_table(tmp_path / f"t.{ending}", image=PATHS, label=labels * 10)
    assert load(tmp_path / f"t.{ending}").class_names == classes


REFUSED_TABLES = {
    "several image columns": (
        {**BOTH, "path": PATHS},
        r"has several image columns: image, path. Choose one with --image_column_name",
    ),
    "several label columns": (
        {**BOTH, "class": NAMES},
        r"has several label columns: label, class. Choose one with --label_column_name",
    ),
    "no image column": (
        {"photo": PATHS, "label": NAMES},
        "no column of images .*only photo, label",
    ),
    "labels of no readable type": (
        {"image": PATHS, "label": [0.5] * 20},
        "different or unknown types in the column 'label'. Choose one with --label_column_name",
    ),
    "no label column": ({"kind": NAMES, "image": PATHS}, "no column of labels .*only kind, image"),
    "a split of another name": (
        {**BOTH, "split": ["train", "holdout"] * 10},
        "column split of .* has 'holdout'. Use train, validation and test",
    ),
    "no train split": ({**BOTH, "split": ["test"] * 20}, "has no train"),
    "some rows without a label": (
        {**BOTH, "label": [*NAMES[:-1], None]},
        "1 of 20 rows of the train split of .* have no label in the column 'label'",
    ),
}


@pytest.mark.parametrize("case", REFUSED_TABLES.values(), ids=REFUSED_TABLES)
def test_tables_that_are_refused(case, tmp_path) -> None:
    write_files(tmp_path, dict.fromkeys(PATHS, 1))
    columns, message = case
    write_table(tmp_path / "t.parquet", **columns)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("name", "content", "place", "message"),
    [
        ("t.csv", b"image,label\na.png\n", ".", "cannot be read .line 2 has 1 value for 2 col"),
        ("t.csv", b"image,label\n\xff.png,a\n", "t.csv", "is not UTF-8 text. Save it as UTF-8"),
        ("t.csv", b"path,label\nhttps://a.org/1.png,a\n", "t.csv", "URLs in its column of images"),
        ("t.csv", b"", "t.csv", "cannot be read .its first line names no columns"),
        ("t.csv", b"path,label, label\na,b,c\n", "t.csv", "path, label, label have the same name"),
        ("t.csv", b"image,label\n", "t.csv", "t.csv has no rows. Add one for each image."),
        ("t.parquet", b"no table", "t.parquet", "cannot be read"),
        ("t.jsonl", b"{", "t.jsonl", "cannot be read"),
        ("t.jsonl", b"", "t.jsonl", "t.jsonl has no rows"),
        ("t.xlsx", b"PK", "t.xlsx", r"neither a directory nor a table \(.csv, .tsv, "),
        ("t.csv", b"image,label\nno.png,a\nneither.png,b\n" * 9, ".", "cannot be read: .*/no.png"),
    ],
)
def test_files_that_are_no_tables(name, content, place, message, tmp_path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((InputError, RunError), match=message):
        load(tmp_path / place)


@pytest.mark.parametrize("names", [["first", "second"], ["train", "val", "valid"]])
def test_several_tables_in_a_folder_are_named(names, tmp_path) -> None:
    for name in names:
        write_table(tmp_path / f"{name}.csv", **BOTH)
    with pytest.raises(InputError, match=rf"several tables: {names[-2]}.csv, {names[-1]}.csv. Nam"):
        check_data_arguments(DataArguments(data_dir=str(tmp_path)))


# Data sets of the Hub, here local ones.


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


def save(tmp_path, **splits: Dataset) -> str:
    DatasetDict(splits).save_to_disk(tmp_path / "set")
    return str(tmp_path / "set")


def test_a_saved_data_set_without_splits(tmp_path) -> None:
    rows = make_split([0, 1] * 9, ClassLabel(names=["a", "b"]), 0)
    rows.save_to_disk(tmp_path / "set")
    assert [len(split) for split in load_named(str(tmp_path / "set")).splits.values()] == [14, 2, 2]
    with pytest.raises(InputError, match="was written by save_to_disk. Load it with --dataset_na"):
        load(tmp_path / "set")


def load_named(name: str, **options: Any):
    return load_data(DataArguments(dataset_name=name, **options))


def test_paths_in_the_tables_of_a_folder_are_relative_to_it(tmp_path) -> None:
    write_files(tmp_path, dict.fromkeys(PATHS, 1))
    write_table(tmp_path / "set/train.csv", image=[f"../{path}" for path in PATHS], label=NAMES)
    assert load_named(str(tmp_path / "set")).class_names == ["a", "b"]


def test_class_labels_are_mapped_by_name(tmp_path) -> None:
    names = sorted(FLOWER_NAMES)
    feature = ClassLabel(names=names)
    splits = {
        s: make_split([*range(102)], feature, k) for k, s in enumerate(("train", "dev", "test"))
    }
    folder = tmp_path / "set"
    folder.mkdir()
    for name, rows in splits.items():
        rows.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    data = load_named(str(folder))
    assert (data.source, data.class_names) == ("hub", list(FLOWER_NAMES))
    for key, rows in enumerate(data.splits.values()):
        assert image_ids(rows)[50] == f"{rows.split}_50"
        for row in (0, 50, 101):
            image, label = rows[row]["image"], rows[row]["label"]
            assert (image.getpixel((0, 0))[0], image.getpixel((1, 0))[0]) == (row, key)
            assert data.class_names[label] == names[row]


AB = ClassLabel(names=["a", "b"])
TEXT = Value("string")
LABELED = {"train": make_split([0, 1] * 10, AB, 0), "validation": make_split([0, 1] * 4, AB, 1)}


def many_labels(**names: Any) -> Dataset:
    rows = make_split([0, 1] * 10, AB, 0, "img", next(iter(names)))
    for name in list(names)[1:]:
        rows = rows.add_column(name, [0, 1] * 10, feature=names[name])
    return rows


MASK = {"name": "mask", "column": [None] * 20, "feature": Image()}
# The splits, options, sizes and warnings, or the error.
HUB: dict[str, tuple[dict, dict, str, str]] = {
    "an unlabeled test split": (
        {**LABELED, "test": make_split([-1] * 5, AB, 2)},
        {},
        "16/8/4",
        r"The test split of \S+ has no labels and is left out; .* --test_split_name names another",
    ),
    "numbers, -1 in the test split": (
        {
            "train": make_split([10, 9] * 10, Value("int64"), 0),
            "test": make_split([-1] * 5, Value("int64"), 2),
        },
        {},
        "12/4/4",
        "has no labels|are numbers without names",
    ),
    "another test split": (
        {**LABELED, "test": make_split([-1] * 5, AB, 2)},
        {"test_split_name": "validation", "validation_split_name": "none"},
        "16/4/8",
        "",
    ),
    "a class without rows": (
        {"train": make_split([0, 1] * 10, ClassLabel(names=["a", "b", "ant"]), 0)},
        {},
        "12/4/4",
        "^Classes without images are left out: ant.$",
    ),
    "fine_label": ({"train": many_labels(fine_label=AB)}, {}, "12/4/4", ""),
    "two label columns": (
        {"train": many_labels(fine_label=AB, coarse_label=AB)},
        {},
        "",
        "several label columns: fine_label, coarse_label. Choose one with --label_column_name",
    ),
    "columns that are named": (
        {"train": many_labels(fine_label=AB, coarse_label=AB).add_column(**MASK)},
        {"label_column_name": "fine_label", "image_column_name": "img"},
        "12/4/4",
        "",
    ),
    "two image columns": (
        {"train": many_labels(label=AB).add_column(**MASK)},
        {},
        "",
        "several image columns: img, mask",
    ),
    "an image beside its path": (
        {"train": make_split([0, 1] * 10, AB, 0).add_column("path", ["x"] * 20)},
        {},
        "12/4/4",
        "",
    ),
    "text labels and other names": (
        {
            "training": make_split(["a", "b"] * 5, TEXT, 0, "photo", "species"),
            "dev": make_split(["a", "b"], TEXT, 1, "photo", "species"),
            "final": make_split(["a", "b"] * 2, TEXT, 2, "photo", "species"),
        },
        {"label_column_name": "species", "test_split_name": "final"},
        "10/2/4",
        "",
    ),
    "an unknown split": (
        {**LABELED},
        {"test_split_name": "z"},
        "",
        "no split 'z', only train, val",
    ),
}


@pytest.mark.parametrize("case", HUB.values(), ids=HUB)
def test_data_sets_of_the_hub(case, tmp_path, caplog) -> None:
    splits, options, sizes, message = case
    name = save(tmp_path, **splits)
    if not sizes:
        with pytest.raises(InputError, match=message):
            load_named(name, **options)
        return
    data = load_named(name, **options)
    assert "/".join(str(len(rows)) for rows in data.splits.values()) == sizes
    assert len(data.class_names) == 2
    assert bool(caplog.messages) == bool(message)
    assert all(re.search(message, said) for said in caplog.messages), caplog.messages


def test_an_unreachable_hub_names_the_offline_ways() -> None:
    message = (
        "'someone/some-flowers', configuration 'big' cannot be loaded .* --data_dir .* procedural"
    )
    with pytest.raises(RunError, match=message):
        load_named("someone/some-flowers", dataset_config_name="big")
    with pytest.raises(InputError, match="./nowhere does not exist"):
        check_data_arguments(DataArguments(dataset_name="./nowhere"))
