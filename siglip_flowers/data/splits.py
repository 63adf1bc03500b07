"""Cut splits and draw subsets; every draw comes from a seed and keeps the order of the rows."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import SPLITS_FILE, read_json, reading
from siglip_flowers.base.text import abbreviate, count
from siglip_flowers.data.rows import get_labels, image_ids

SPLIT_NAMES = ("train", "validation", "test")
# What folders, tables and data sets call them.
SPLIT_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}

# An image in two splits: (split, id, split, id).
SharedImage = tuple[str, str, str, str]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassificationData:
    """A data set ready for use: train, validation and test with the columns image and label.

    ``description`` is one line for titles. ``skipped`` has the ids of the unreadable images
    dropped from each split, ``shared`` the accepted pairs of images that are in two splits,
    ``checked`` says what was checked.
    """

    splits: DatasetDict
    source: str
    split_protocol: str
    description: str
    skipped: dict[str, list[str]] = field(default_factory=dict)
    shared: list[SharedImage] = field(default_factory=list)
    checked: str = ""

    @property
    def class_names(self) -> list[str]:
        """The name of each class number."""
        return list(self.splits["train"].features["label"].names)


def list_ids(data: ClassificationData) -> dict[str, Any]:
    """Return what a run keeps in ``splits.json``: the protocol, the classes, each split's ids."""
    ids = {name: image_ids(rows) for name, rows in data.splits.items()}
    return {"split_protocol": data.split_protocol, "class_names": data.class_names, **ids}


def _read_ids(run: Path) -> dict[str, Any]:
    path = run / SPLITS_FILE
    with reading(path, "Remove it, and the images are not compared"):
        return dict(read_json(path)) if path.is_file() else {}


def check_unchanged(run: Path, data: ClassificationData) -> None:
    """Raise InputError unless the data are those that an unfinished run began with."""
    now, before = list_ids(data), _read_ids(run)
    changed = [name for name in now if before.get(name, now[name]) != now[name]]
    if changed:
        raise InputError(
            f"The data have changed since the unfinished run in {run} began: other "
            f"{', '.join(changed)}. Restore them, choose another --output_dir, or add "
            "--overwrite_output_dir."
        )


def check_untrained(run: Path, data: ClassificationData) -> None:
    """Raise InputError if a held-out split has images that a run was trained on.

    A run's data are cut again where they are read again; ids that two splits share say nothing.
    """
    ids = {name: set(image_ids(rows)) for name, rows in data.splits.items()}
    if len(set().union(*ids.values())) < sum(map(len, ids.values())):
        return
    trained = set(_read_ids(run).get("train", ()))
    for name in ("validation", "test"):
        if found := sorted(ids[name] & trained):
            raise InputError(
                f"The run in {run} was trained on {len(found)} images of the {name} split, such as "
                f"{found[0]}: its data have changed, or are split otherwise. Restore them, or "
                "accept this with --allow_duplicates."
            )


def _group_rows(labels: np.ndarray) -> list[np.ndarray]:
    """Return the rows of every class that has any, ordered by class; rows ascend."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(labels) else []


def cut_rows(
    labels: np.ndarray, cuts: Sequence[str], fraction: float, seed: int
) -> dict[str, np.ndarray]:
    """Divide the rows of a training split, class by class, into train and the ``cuts``.

    Every cut gets ``fraction`` of each class, rounded but at least one row, as long as one row of
    the class remains for training. Depends on the labels, the fraction and the seed only.

    Args:
        labels: class numbers, shape (rows,).

    Returns:
        Ascending row numbers under "train" and each name in ``cuts``; together all rows, each once.
    """
    generator = np.random.default_rng([seed, 0])
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("train", *cuts)}
    for rows in _group_rows(labels):
        shuffled = generator.permutation(rows)
        share = max(1, round(len(rows) * fraction))
        for name in cuts:
            taken = min(share, len(shuffled) - 1)
            parts[name].append(shuffled[:taken])
            shuffled = shuffled[taken:]
        parts["train"].append(shuffled)
    return {
        name: np.sort(np.concatenate(pieces)) if pieces else np.empty(0, dtype=np.int64)
        for name, pieces in parts.items()
    }


def recognize_split(name: str) -> str | None:
    """Return the split that a folder, a table or a value of a column is called after."""
    return next((split for split, names in SPLIT_ALIASES.items() if name.lower() in names), None)


def fill_missing_splits(
    splits: dict[str, Dataset], fraction: float, seed: int, origin: str = "the train split"
) -> tuple[DatasetDict, str]:
    """Cut missing validation and test splits from train, stratified by class.

    Args:
        splits: The train split, and others if there are any.
        fraction: Share of each class that a missing split gets.
        seed: Seed of the cut.
        origin: Names what the images were in, if no split was given but train.

    Returns:
        All three splits and how they came about: "as given", "cut at random from one folder, seed
        0", "validation cut at random from the train split, seed 0".

    Raises:
        InputError: The training split is too small to be cut.
    """
    missing = [name for name in SPLIT_NAMES if name not in splits]
    if not missing:
        return DatasetDict({name: splits[name] for name in SPLIT_NAMES}), "as given"
    train = splits["train"]
    labels = get_labels(train)
    rows = cut_rows(labels, missing, fraction, seed)
    needed = 1 + len(missing)
    for name in missing:
        if len(rows[name]) == 0:
            raise InputError(
                f"The {name} split is missing and cannot be cut from the {len(train)} training "
                f"images: it takes a class of at least {needed}. Add images, or supply the split."
            )
    sizes = np.bincount(labels)
    small = [
        f"{name} ({size})"
        for name, size in zip(train.features["label"].names, sizes, strict=False)
        if 0 < size < needed
    ]
    if small:
        logger.warning(
            "Classes with fewer images than the %d splits that they are cut into are missing from "
            "some: %s.",
            needed,
            abbreviate(small),
        )
    complete = {**splits, **{name: train.select(part) for name, part in rows.items()}}
    cut = f"cut at random from {origin if len(missing) == 2 else 'the train split'}, seed {seed}"
    how = cut if len(missing) == 2 else f"{missing[0]} {cut}"
    return DatasetDict({name: complete[name] for name in SPLIT_NAMES}), how


def require_training_images(train: Dataset, limit: int | None = None) -> None:
    """Check that there are classes to tell apart, and that each can be learned.

    Args:
        train: The training split.
        limit: If it was cut to so many images, classes may be without any: a warning.

    Raises:
        InputError: Fewer than two classes, or a class with no training image.
    """
    names = train.features["label"].names
    if len(names) < 2:
        raise InputError(
            f"The images are all of one class ({abbreviate(names)}), but a classifier tells "
            "at least two apart. Name the folder that holds the class folders, or add a class."
        )
    sizes = np.bincount(get_labels(train), minlength=len(names))
    empty = [name for name, size in zip(names, sizes, strict=True) if size == 0]
    if not empty:
        return
    found = f"{len(empty)} of {count(len(names), 'class')}: {abbreviate(empty)}"
    if limit is None:
        raise InputError(
            f"No training images for {found}. Add images, or remove the class from every split."
        )
    logger.warning("--max_train_samples %d leaves no training images for %s.", limit, found)


def take_shots(train: Dataset, shots: int, seed: int) -> Dataset:
    """Keep ``shots`` rows of each class, drawn by ``seed``; a smaller class keeps all it has."""
    generator = np.random.default_rng([seed, 1])
    groups = _group_rows(get_labels(train))
    kept = [generator.permutation(rows)[:shots] for rows in groups]
    short = sum(len(rows) < shots for rows in groups)
    if short:
        logger.warning(
            "%s of fewer than --shots %d training images: all are used.",
            count(short, "class"),
            shots,
        )
    return train.select(np.sort(np.concatenate(kept))) if kept else train


def draw_rows(dataset: Dataset, limit: int | None, seed: int, split: str) -> Dataset:
    """Keep at most ``limit`` rows, drawn by ``seed``, independently for each split."""
    if limit is None or limit >= len(dataset):
        return dataset
    generator = np.random.default_rng([seed, 2, SPLIT_NAMES.index(split)])
    return dataset.select(np.sort(generator.choice(len(dataset), limit, replace=False)))


def draw_every_class(dataset: Dataset, limit: int, seed: int) -> Dataset:
    """Keep ``limit`` rows, drawn by ``seed``, at least one of each class."""
    order = np.random.default_rng([seed, 2]).permutation(len(dataset))
    _, first = np.unique(get_labels(dataset)[order], return_index=True)
    chosen = np.concatenate([order[first], np.delete(order, first)])[: max(limit, len(first))]
    return dataset.select(np.sort(chosen))
