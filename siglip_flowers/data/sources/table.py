"""Tables of images and labels: find their columns, and read them from files.

A table is a CSV, TSV, Parquet or JSON lines file with a column of paths or of bytes; a data set of
the Hub is one as well. It is named itself, or lies in a folder: ``metadata.*`` of ``datasets``,
beside the images or in each split folder, or tables that are called after the splits. Paths are
relative to the table.
"""

import csv
import glob
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Image, Value

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.paths import is_url
from siglip_flowers.base.text import abbreviate, compose, count
from siglip_flowers.config import DataArguments
from siglip_flowers.data.names import order_names
from siglip_flowers.data.rows import get_image_paths
from siglip_flowers.data.sources.folder import list_subfolders
from siglip_flowers.data.splits import recognize_split

# Names and types that are recognized, besides columns of the types Image and ClassLabel.
COLUMN_NAMES = {
    "image": ("image", "path", "file_name", "filename", "bytes"),
    "label": ("label", "class", "target"),
}
COLUMN_TYPES = {
    "image": r"(large_)?(string|binary)(_view)?",
    "label": r"(large_)?string(_view)?|u?int\d+|bool",
}
FEATURES = {"image": Image, "label": ClassLabel}
# What datasets calls the builder of a format.
FORMATS = {
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    ".parquet": "parquet",
}
DELIMITERS = ",;\t"
SPLIT_COLUMN = "split"
# Of a DatasetDict and of a Dataset that save_to_disk wrote.
SAVED_FILES = ("dataset_dict.json", "state.json")

logger = logging.getLogger(__name__)


def _is_usable(kind: str, feature: Any) -> bool:
    """Return whether a column of this feature can hold images or labels."""
    if isinstance(feature, Value):
        return re.fullmatch(COLUMN_TYPES[kind], feature.dtype) is not None
    is_struct = isinstance(feature, dict) and feature.keys() <= {"bytes", "path"}
    return isinstance(feature, FEATURES[kind]) or (kind == "image" and is_struct)


def find_column(dataset: Dataset, kind: str, named: str | None, name: str) -> str:
    """Return the column of images or labels.

    Args:
        dataset: With any columns.
        kind: ``image`` or ``label``.
        named: The column that the user names. Without it, the column is found by its name, or
            else by its type, ``Image`` or ``ClassLabel``. Of several image columns, the one of
            type ``Image`` counts.
        name: Names the data set in messages.

    Raises:
        InputError: No such column, one of another kind, or several candidates.
    """
    features = dataset.features
    usable = [column for column in features if _is_usable(kind, features[column])]
    typed = [column for column in usable if isinstance(features[column], FEATURES[kind])]
    by_name = [column for column in usable if column.lower() in COLUMN_NAMES[kind]]
    both = [column for column in by_name if column in typed and kind == "image"]
    candidates, wanted = both or by_name or typed, ", ".join(COLUMN_NAMES[kind])
    if named is not None:
        candidates, wanted = [column for column in usable if column == named], named
    if len(candidates) == 1:
        return candidates[0]
    found = f"no column of {kind}s ({wanted}), only {abbreviate(list(features))}"
    if strange := [column for column in features if column.lower() in wanted.split(", ")]:
        found = f"values of different or unknown types in the column {strange[0]!r}"
    if candidates:
        found = f"several {kind} columns: {abbreviate(candidates)}"
    raise InputError(f"{name} has {found}. Choose one with --{kind}_column_name.")


def _read_labels(dataset: Dataset, column: str) -> list[str | None]:
    """Return the class name of every row, or None; there are none without the column."""
    if column not in dataset.features:
        return [None] * len(dataset)
    feature = dataset.features[column]
    values = dataset.select_columns(column).with_format("arrow")[:][column].to_pylist()
    if isinstance(feature, ClassLabel):
        names = dict(enumerate(feature.names))
        return [names.get(value) or None for value in values]
    # Numbers without names have no sign for "no label" but -1 in every row.
    if {str(value) for value in values if value is not None} == {"-1"}:
        return [None] * len(values)
    return [None if value in (None, "") else str(value) for value in values]


def _label_splits(
    splits: dict[str, Dataset], column: str, name: str, *, named: bool
) -> dict[str, list[str]]:
    """Read the class names of all splits; a held-out split without any is left out.

    named: Whether options name the splits, as those of a data set.
    """
    labels = {}
    for split, dataset in splits.items():
        found = _read_labels(dataset, column)
        known = [label for label in found if label is not None]
        unlabeled = len(found) - len(known)
        if unlabeled == len(found) and split != "train":
            logger.warning(
                "The %s split of %s has no labels and is left out; it is cut from the training "
                "split%s.",
                split,
                name,
                f", or --{split}_split_name names another" if named else "",
            )
        elif unlabeled:
            raise InputError(
                f"{unlabeled} of {len(found)} rows of the {split} split of {name} have no label "
                f"in the column {column!r}. Remove them, or "
                + (f"choose another split with --{split}_split_name." if named else "label them.")
            )
        else:
            labels[split] = known
    return labels


def _find_image(folder: str, name: str) -> str:
    """Return the path of an image of a table, which another system may have written.

    Windows separates folders by backslashes, and macOS spells accents with code points of their
    own.
    """
    slashed = name.replace("\\", "/")
    forms = (compose(slashed), unicodedata.normalize("NFD", slashed))
    places = [os.path.join(folder, spelled) for spelled in dict.fromkeys((name, slashed, *forms))]
    found = filter(os.path.exists, places if len(places) > 1 else ())
    return next(found, places[0])


def _join_paths(images: Dataset, folder: str, name: str) -> Dataset:
    """Join the paths in a column image to a folder, unless the column holds images themselves."""
    column = images.data.column("image")
    if pc.struct_field(column, "bytes").null_count < len(column):
        return images
    paths = get_image_paths(images)
    if any(map(is_url, paths)):
        raise InputError(
            f"{name} has URLs in its column of images. Download the images, and give their paths "
            "instead."
        )
    places = [None if path is None else _find_image(folder, path) for path in paths]
    table = pa.table({"image": pa.array(places, pa.string())})
    return Dataset(table, split=images.split).cast_column("image", Image())


def prepare_columns(
    splits: dict[str, Dataset], arguments: DataArguments, name: str, folders: Mapping[str, str]
) -> dict[str, Dataset]:
    """Bring data sets to the columns image and label.

    Labels are matched by name (see ``order_names``); names that no row uses are dropped.
    Whole-number labels have no names: their numbers become the class names.

    Args:
        splits: The train split, and validation and test if there are any.
        arguments: The names of the columns, unless they are to be found.
        name: Names the data in messages.
        folders: The folder that the paths of images in each split are relative to, or "".

    Returns:
        The train split and those of the others that have labels.

    Raises:
        InputError: See :func:`find_column`; rows without a label, a name that is not text, or URLs
            instead of images.
    """
    train = splits["train"]
    image_column = find_column(train, "image", arguments.image_column_name, name)
    label_column = find_column(train, "label", arguments.label_column_name, name)
    labels = _label_splits(splits, label_column, name, named=arguments.dataset_name is not None)
    used = {label for names in labels.values() for label in names}
    unused = set(getattr(train.features[label_column], "names", ())) - used
    if unused:
        logger.warning("Classes without images are left out: %s.", abbreviate(sorted(unused)))
    class_names, numbers = order_names(used)
    feature, prepared = ClassLabel(names=class_names), {}
    for split, names in labels.items():
        find_column(splits[split], "image", image_column, f"The {split} split of {name}")
        images = splits[split].select_columns(image_column).rename_columns({image_column: "image"})
        if view := re.fullmatch(
            "(string|binary)_view", getattr(images.features["image"], "dtype", "")
        ):
            images = images.cast_column("image", Value(f"large_{view[1]}"))
        # cast_column, unlike cast, does not write the images to the cache a second time.
        images = _join_paths(images.cast_column("image", Image()), folders[split], name)
        column = [numbers[label] for label in names]
        prepared[split] = images.add_column("label", column, feature=feature)
    return prepared


def is_saved(folder: Path) -> bool:
    """Return whether ``save_to_disk`` wrote a folder."""
    return any((folder / file).is_file() for file in SAVED_FILES)


def find_tables(data_dir: Path) -> dict[str, Path]:
    """Return the tables that ``--data_dir`` names: by split, or one as ``all``; {} if none.

    Raises:
        InputError: Several tables that are not called after the splits.
    """
    if data_dir.is_file():
        return {"all": data_dir} if data_dir.suffix.lower() in FORMATS else {}
    if not data_dir.is_dir():
        return {}
    if is_saved(data_dir):
        raise InputError(
            f"--data_dir {data_dir} was written by save_to_disk. Load it with --dataset_name."
        )
    tables, folders = _list_tables(data_dir), list_subfolders(data_dir)
    whole = [path for path in tables if path.stem == "metadata"]
    found = _sort_by_split((path.stem, path) for path in tables)
    if whole or found.keys() == {"train"}:
        found = {"all": whole or found["train"]}
    elif "train" not in found and tables and len(folders) <= 1:
        # The only one, beside a folder of images at most.
        found = {"all": tables}
    elif "train" not in found:
        inner = {name: folder for name, folder in folders.items() if recognize_split(name)}
        found = _sort_by_split(
            (name, path)
            for name, folder in inner.items()
            for path in _list_tables(folder)
            if path.stem == "metadata"
        )
    for paths in found.values():
        if len(paths) > 1:
            raise InputError(
                f"{data_dir} has several tables: {abbreviate([path.name for path in paths])}. Name "
                f"one, such as --data_dir {paths[0]}, or load all with --dataset_name {data_dir}."
            )
    return {split: paths[0] for split, paths in found.items()}


def _sort_by_split(named: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    """Return the paths under each split that something is called after."""
    found: dict[str, list[Path]] = {}
    for name, path in named:
        if split := recognize_split(name):
            found.setdefault(split, []).append(path)
    return found


def _list_tables(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in FORMATS and path.is_file()
    )


def _read_csv(path: Path) -> Dataset:
    """Read a table of text; values stay as they are written, ``01`` too, but for outer spaces."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = max(DELIMITERS, key=file.readline().count)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter)
        names = [name.strip() for name in next(reader, [])]
        # Spreadsheets add columns without a name, rows without a value and commas at the end.
        named = {name: number for number, name in enumerate(names) if name}
        if not named:
            raise ValueError("its first line names no columns")
        if len(named) + names.count("") < len(names):
            raise ValueError(f"two of the columns {', '.join(names)} have the same name")
        columns: dict[str, list[str]] = {name: [] for name in named}
        for row in reader:
            values = [value.strip() for value in row]
            if not any(values):
                continue
            if any(values[len(names) :]) or len(values) <= max(named.values()):
                raise ValueError(
                    f"line {reader.line_num} has {count(len(row), 'value')} for "
                    f"{count(len(names), 'column')}"
                )
            for name, number in named.items():
                columns[name].append(values[number])
    return Dataset(pa.table(columns))


def _read_table(path: Path) -> Dataset:
    """Return the rows of a table.

    Raises:
        InputError: The table cannot be read, or has no rows.
    """
    kind = FORMATS[path.suffix.lower()]
    no_rows = InputError(f"The table {path} has no rows. Add one for each image.")
    try:
        if kind == "csv":
            rows = _read_csv(path)
        else:
            rows = datasets.load_dataset(kind, data_files=glob.escape(str(path)), split="train")
    # The loader of JSON lines raises StopIteration if there are none.
    except (
        *(OSError, ValueError, StopIteration, csv.Error),
        datasets.exceptions.DatasetsError,
    ) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        if re.search(r"utf-?8", reason, re.IGNORECASE):
            raise InputError(f"The table {path} is not UTF-8 text. Save it as UTF-8.") from error
        if not reason or "no data" in reason:
            raise no_rows from error
        raise InputError(f"The table {path} cannot be read ({reason}). Check the file.") from error
    if not len(rows):
        raise no_rows
    return rows


def _divide(rows: Dataset, path: Path) -> dict[str, Dataset]:
    """Divide a table by its column of splits, if it has one.

    Raises:
        InputError: A value of the column names no split, or none is train.
    """
    columns = [name for name in rows.column_names if name.strip().lower() == SPLIT_COLUMN]
    if not columns:
        return {"train": rows}
    values = rows.data.column(columns[0]).to_pylist()
    names = [str(value).strip() for value in values]
    found = {name: recognize_split(name) for name in dict.fromkeys(names)}
    unknown = [repr(name) for name, split in found.items() if split is None]
    if unknown or "train" not in found.values():
        problem = f"has {abbreviate(unknown)}" if unknown else "has no train"
        raise InputError(
            f"The column {SPLIT_COLUMN} of {path} {problem}. Use train, validation and test."
        )
    return {
        split: rows.select([row for row, name in enumerate(names) if found[name] == split])
        for split in dict.fromkeys(filter(None, found.values()))
    }


def load_table(data_dir: Path, arguments: DataArguments) -> dict[str, Dataset]:
    """Load tables as data sets with the columns image and label.

    Args:
        data_dir: Where :func:`find_tables` finds them.
        arguments: The names of the columns, unless they are to be found.

    Returns:
        The train split and, if the tables have them with labels, validation and test.

    Raises:
        InputError: A table cannot be read; otherwise as ``prepare_columns``.
    """
    tables = find_tables(data_dir)
    if data_dir.is_dir() and next(iter(tables.values())).parent != data_dir:
        left = [n for n in list_subfolders(data_dir) if recognize_split(n) not in (None, *tables)]
        if left:
            logger.warning("Folders without metadata are left out: %s.", ", ".join(left))
    read = {split: _read_table(path) for split, path in tables.items()}
    splits = _divide(read["all"], tables["all"]) if "all" in read else read
    if "train" not in splits:
        raise InputError(f"{data_dir} has no table of the train split. Add one.")
    name = str(next(iter(tables.values())) if len(tables) == 1 else data_dir)
    folders = {split: str((tables.get("all") or tables[split]).parent) for split in splits}
    return prepare_columns(splits, arguments, name, folders)
