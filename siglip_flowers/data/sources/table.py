"""Tables of images: CSV, TSV, Parquet or JSON lines with a column of paths or of bytes.

A table is a file, or lies in a folder: ``metadata.*`` of ``datasets``, beside the images or in
each split folder, or tables that are called after the splits. Paths are relative to the table.
"""

import csv
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.csv
from datasets import Dataset, Value

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.text import abbreviate
from siglip_flowers.config import DataArguments
from siglip_flowers.data.sources.columns import find_column, prepare_columns
from siglip_flowers.data.sources.folder import list_subfolders
from siglip_flowers.data.splits import recognize_split

# What datasets calls the builder of a format.
FORMATS = {
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    ".parquet": "parquet",
}
DELIMITERS = ",;\t"
SPLIT_COLUMN = "split"


def find_tables(data_dir: Path) -> dict[str, Path]:
    """Return the tables that ``--data_dir`` names: by split, or one as ``all``; {} if none.

    Raises:
        InputError: Several tables that are not called after the splits.
    """
    if data_dir.is_file():
        return {"all": data_dir} if data_dir.suffix.lower() in FORMATS else {}
    if not data_dir.is_dir():
        return {}
    tables = _list_tables(data_dir)
    metadata = [path for path in tables if path.stem == "metadata"]
    folders = list_subfolders(data_dir)
    if not metadata and len(folders) <= 1:
        # Of one table for each split, or of the only one; beside a folder of images at most.
        by_split = {split: path for path in tables if (split := recognize_split(path.stem))}
        if "train" in by_split or not tables:
            return by_split
        metadata = tables
    if not metadata:
        in_splits = [
            (split, path)
            for name, folder in folders.items()
            if (split := recognize_split(name))
            for path in _list_tables(folder)
        ]
        return {split: path for split, path in in_splits if path.stem == "metadata"}
    if len(metadata) > 1:
        raise InputError(
            f"{data_dir} has several tables: {abbreviate([path.name for path in metadata])}. Name "
            f"one, such as --data_dir {metadata[0]}, or load all with --dataset_name {data_dir}."
        )
    return {"all": metadata[0]}


def _list_tables(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in FORMATS and path.is_file()
    )


def _read_csv(path: Path) -> Dataset:
    """Read a table of text; every value stays as it is written, ``01`` too."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        line = file.readline()
    delimiter = max(DELIMITERS, key=line.count)
    header = next(csv.reader([line], delimiter=delimiter), [])
    table = pa.csv.read_csv(
        path,
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string())),
    )
    return Dataset(table)


def _read_table(path: Path, arguments: DataArguments) -> Dataset:
    """Return the rows of a table; paths of images are joined to its folder.

    Raises:
        InputError: The table cannot be read, or has no column of images.
    """
    kind = FORMATS[path.suffix.lower()]
    try:
        if kind == "csv":
            rows = _read_csv(path)
        else:
            rows = datasets.load_dataset(kind, data_files=str(path), split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise InputError(f"The table {path} cannot be read ({reason}). Check the file.") from error
    column = find_column(rows, "image", arguments.image_column_name, f"The table {path}")
    feature = rows.features[column]
    if isinstance(feature, Value) and "string" in feature.dtype:
        places = [None if name is None else str(path.parent / name) for name in rows[column]]
        table, number = rows.data.table, rows.column_names.index(column)
        joined = pa.array(places, table.schema.types[number])
        # Not add_column, after which datasets miscounts the rows of other columns.
        rows = Dataset(table.set_column(number, column, joined), info=rows.info)
    return rows


def _divide(rows: Dataset, path: Path) -> dict[str, Dataset]:
    """Divide a table by its column of splits, if it has one.

    Raises:
        InputError: A value of the column names no split, or none is train.
    """
    if SPLIT_COLUMN not in rows.column_names:
        return {"train": rows}
    names = [str(value).strip() for value in rows[SPLIT_COLUMN]]
    found = {name: recognize_split(name) for name in dict.fromkeys(names)}
    unknown = [repr(name) for name, split in found.items() if split is None]
    if unknown or "train" not in found.values():
        problem = f"has {abbreviate(unknown)}" if unknown else "has no train"
        raise InputError(
            f"The column {SPLIT_COLUMN} of {path} {problem}. Use train, validation and test."
        )
    numbers: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        numbers.setdefault(str(found[name]), []).append(row)
    return {split: rows.select(chosen) for split, chosen in numbers.items()}


def load_table(tables: dict[str, Path], arguments: DataArguments) -> dict[str, Dataset]:
    """Load tables as data sets with the columns image and label.

    Args:
        tables: From :func:`find_tables`.
        arguments: The names of the columns, unless they are to be found.

    Returns:
        The train split and, if the tables have them with labels, validation and test.

    Raises:
        InputError: A table cannot be read; otherwise as ``prepare_columns``.
    """
    read = {split: _read_table(path, arguments) for split, path in tables.items()}
    splits = _divide(read["all"], tables["all"]) if "all" in read else read
    if "train" not in splits:
        raise InputError(f"{arguments.data_dir} has no table of the train split. Add one.")
    name = str(next(iter(tables.values())) if len(tables) == 1 else arguments.data_dir)
    return prepare_columns(splits, arguments, name)
