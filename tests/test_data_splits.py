"""Draws: right sizes, by seed, in the order of the rows."""

import logging

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from hypothesis import given
from hypothesis import strategies as st

from siglip_flowers.data.rows import get_labels, image_ids
from siglip_flowers.data.splits import cut_rows, draw_rows, take_shots
from tests import small_flowers


def make_rows(counts: list[int]) -> Dataset:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    shuffled = np.random.default_rng(5).permutation(labels)
    names = [f"c{label}" for label in range(len(counts))]
    return Dataset.from_dict(
        {"image": [f"/p/{row:04d}.jpg" for row in range(len(labels))], "label": shuffled},
        features=Features(image=Image(), label=ClassLabel(names=names)),
    )


@given(
    labels=st.lists(st.integers(0, 4), max_size=80),
    cuts=st.sampled_from([(), ("validation",), ("validation", "test")]),
    fraction=st.floats(0.01, 0.49),
    seed=st.integers(0, 3),
)
def test_a_cut_is_a_partition_that_leaves_every_class_to_train(
    labels, cuts, fraction, seed
) -> None:
    array = np.array(labels, dtype=np.int64)
    parts = cut_rows(array, cuts, fraction, seed)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(labels)))
    assert set(array[parts["train"]]) == set(labels)
    for name, rows in parts.items():
        assert (np.diff(rows) > 0).all()
        if name != "train":
            for label in set(labels):
                share = max(1, round(labels.count(label) * fraction))
                assert np.sum(array[rows] == label) <= share
                if labels.count(label) > 2 * share:
                    assert np.sum(array[rows] == label) == share
    again = cut_rows(array, cuts, fraction, seed)
    assert all((parts[name] == again[name]).all() for name in parts)


def test_shots_take_k_of_each_class_and_warn_once(caplog) -> None:
    rows = make_rows([10, 2, 6, 1])
    with caplog.at_level(logging.WARNING, logger="siglip_flowers"):
        few = take_shots(rows, 3, seed=0)
    assert np.bincount(get_labels(few)).tolist() == [3, 2, 3, 1]
    assert caplog.messages == ["2 classes of fewer than --shots 3 training images: all are used."]
    ids = image_ids(few)
    assert ids == sorted(ids)
    assert image_ids(take_shots(rows, 3, seed=0)) == ids
    assert image_ids(take_shots(rows, 3, seed=1)) != ids


def test_draws_differ_between_seeds_and_splits_only() -> None:
    rows = make_rows([50, 50])
    ids = image_ids(draw_rows(rows, 20, 0, "test"))
    assert len(ids) == 20
    assert ids == sorted(ids)
    assert image_ids(draw_rows(rows, 20, 0, "test")) == ids
    assert image_ids(draw_rows(rows, 20, 1, "test")) != ids
    assert image_ids(draw_rows(rows, 20, 0, "validation")) != ids


def test_ids_without_paths_name_the_row_of_the_source() -> None:
    rows = small_flowers.make_rows([{"bytes": b"x", "path": None}] * 4)
    assert image_ids(rows) == ["row_0", "row_1", "row_2", "row_3"]
    assert image_ids(rows.select([3, 1])) == ["row_3", "row_1"]


def test_equal_file_names_get_the_row_number() -> None:
    rows = small_flowers.make_rows(["/x/1.jpg", "/y/1.jpg", "/y/2.jpg"])
    assert image_ids(rows) == ["1.jpg_0", "1.jpg_1", "2"]
