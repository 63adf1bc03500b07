"""Cut splits and draw subsets; every draw comes from a seed and keeps the order of the rows."""

import logging
from collections.abc import Sequence

import numpy as np
from datasets import Dataset, DatasetDict

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.text import abbreviate, count
from siglip_flowers.data.rows import get_labels

SPLIT_NAMES = ("train", "validation", "test")

logger = logging.getLogger(__name__)


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


def fill_missing_splits(
    splits: dict[str, Dataset], fraction: float, seed: int
) -> tuple[DatasetDict, str]:
    """Cut missing validation and test splits from train, stratified by class.

    Returns:
        All three splits and the name of the protocol: "as given", "as given, validation cut", ...

    Raises:
        InputError: the training split is too small to be cut.
    """
    missing = [name for name in SPLIT_NAMES if name not in splits]
    if not missing:
        return DatasetDict({name: splits[name] for name in SPLIT_NAMES}), "as given"
    train = splits["train"]
    rows = cut_rows(get_labels(train), missing, fraction, seed)
    for name in missing:
        if len(rows[name]) == 0:
            raise InputError(
                f"The {name} split is missing and cannot be cut from the {len(train)} training "
                "images: no class has enough of them. Supply the split."
            )
    complete = {**splits, **{name: train.select(part) for name, part in rows.items()}}
    protocol = f"as given, {' and '.join(missing)} cut"
    return DatasetDict({name: complete[name] for name in SPLIT_NAMES}), protocol


def find_empty_classes(labels: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Return the names of the classes without rows."""
    counts = np.bincount(labels, minlength=len(class_names))
    return [name for name, count in zip(class_names, counts, strict=True) if count == 0]


def require_training_images(labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Check that every class can be learned.

    Raises:
        InputError: a class with no training image.
    """
    empty = find_empty_classes(labels, class_names)
    if empty:
        raise InputError(
            f"No training images for {len(empty)} of {count(len(class_names), 'class')}: "
            f"{abbreviate(empty)}. Add images, or remove the class from every split."
        )


def take_shots(train: Dataset, shots: int, seed: int) -> Dataset:
    """Keep ``shots`` rows of each class, drawn by ``seed``; a smaller class keeps all it has."""
    generator = np.random.default_rng([seed, 1])
    kept, short = [], 0
    for rows in _group_rows(get_labels(train)):
        kept.append(generator.permutation(rows)[:shots])
        short += len(rows) < shots
    if short:
        logger.warning(
            "%d classes have fewer than --shots %d training images; all of them are used.",
            short,
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
