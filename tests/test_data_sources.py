"""Which source is meant, and how options thin its splits."""

import logging
import re

import numpy as np
import PIL.Image
import pytest

from siglip_flowers.base.errors import InputError
from siglip_flowers.config import DataArguments
from siglip_flowers.data.rows import get_labels, image_ids
from siglip_flowers.data.sources.load import check_data_arguments, load_data, resolve_source


def test_the_source_follows_from_the_other_options(tmp_path) -> None:
    folder = str(tmp_path)
    assert resolve_source(DataArguments()) == "oxford"
    assert resolve_source(DataArguments(dataset_name="a/b")) == "hub"
    assert resolve_source(DataArguments(data_dir=folder)) == "folder"
    assert resolve_source(DataArguments(data_dir=folder, data_source="oxford")) == "oxford"
    (tmp_path / "setid.mat").write_bytes(b"")
    assert resolve_source(DataArguments(data_dir=folder)) == "oxford"
    assert resolve_source(DataArguments(data_source="procedural")) == "procedural"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three splits of ten classes with four noise images each."""
    root = tmp_path_factory.mktemp("folder")
    generator = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        for label in range(10):
            place = root / split / f"kind{label}"
            place.mkdir(parents=True)
            for number in range(4):
                pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                PIL.Image.fromarray(pixels).save(place / f"{number}.png")
    return root


def test_shots_and_limits_thin_the_splits_by_seed(folder) -> None:
    def load_thin(**options: object):
        return load_data(DataArguments(data_dir=str(folder), **options))

    whole = load_thin()
    thin = load_thin(shots=2, max_eval_samples=30)
    assert [len(dataset) for dataset in thin.splits.values()] == [20, 30, 30]
    assert np.bincount(get_labels(thin.splits["train"])).tolist() == [2] * 10
    assert "2 per class" in thin.description
    again = load_thin(shots=2, max_eval_samples=30)
    other = load_thin(shots=2, max_eval_samples=30, split_seed=1)
    for name, dataset in thin.splits.items():
        assert set(image_ids(dataset)) < set(image_ids(whole.splits[name]))
        assert image_ids(again.splits[name]) == image_ids(dataset)
        assert image_ids(other.splits[name]) != image_ids(dataset)


def test_a_limit_that_empties_classes_and_options_of_another_source_warn(folder, caplog) -> None:
    options = {"max_train_samples": 4, "train_split_name": "x", "oxford_url": "y"}
    with caplog.at_level(logging.WARNING, logger="siglip_flowers"):
        thin = load_data(DataArguments(data_dir=str(folder), **options))
    assert len(thin.splits["train"]) == 4
    unused, message = caplog.messages
    assert unused == "The data source folder does not use --oxford_url, --train_split_name."
    assert re.match(
        r"--max_train_samples 4 leaves no training images for [6-9] of 10 classes", message
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"data_dir": "/nowhere/at/all"}, "--data_dir /nowhere/at/all does not exist"),
        ({"data_dir": __file__}, "is neither a directory nor a table"),
        ({"data_dir": ".", "data_source": "procedural"}, "--data_source procedural does not use"),
        ({"data_dir": ".", "dataset_name": "a/b"}, "--data_source hub does not use --data_dir ."),
    ],
)
def test_contradicting_options_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        check_data_arguments(DataArguments(**options))
