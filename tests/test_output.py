"""The output directory: every promised file, and who may write there."""

import csv
import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml
from PIL import Image
from safetensors import SafetensorError
from transformers import Trainer

from siglip_flowers import __version__
from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import ADAPTER_DIR, RUN_FILES, is_finished
from siglip_flowers.commands import train as train_command
from siglip_flowers.training.output import (
    LOCK_FILE,
    check_output_dir,
    claim_output_dir,
    find_checkpoint,
    hold_output_dir,
)
from siglip_flowers.training.results import COLUMNS
from tests.small_runs import CLASSES, list_files, make_checkpoint, make_folder, small_options
from tests.test_checkpoints import make_steps

pytestmark = pytest.mark.figures

HEADER = f"# siglip_flowers {__version__}\n"
SETTINGS = f"{HEADER}learning_rate: 0.1\nseed: 1\n"


def test_the_newest_whole_checkpoint_is_taken_by_number(tmp_path):
    make_steps(tmp_path / "checkpoints", 9, 10, 100, 200)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "checkpoint-200" / "manifest.json").unlink()
    # Written last, but not furthest.
    os.utime(checkpoints / "checkpoint-9")
    assert find_checkpoint(tmp_path) == str(checkpoints / "checkpoint-100")
    assert (checkpoints / "checkpoint-200").is_dir()


def test_claiming_removes_what_is_half_written_and_nothing_else(tmp_path):
    make_steps(tmp_path / "checkpoints", 10)
    kept = ["checkpoint-10", "checkpoint-10-notes", "start"]
    for name in (*kept[1:], "checkpoint-20", ".writing", ".removed-checkpoint-7", ".start.x1"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / ".metrics.x1.json").write_text("{")
    (tmp_path / ".model.x1").mkdir()
    (tmp_path / ".mine").write_text("kept")
    (tmp_path / "config.yaml").write_text(SETTINGS)
    found = claim_output_dir(tmp_path, SETTINGS, overwrite=False)
    assert found == str(tmp_path / "checkpoints" / "checkpoint-10")
    assert sorted(os.listdir(tmp_path / "checkpoints")) == kept
    assert sorted(os.listdir(tmp_path)) == [".mine", "checkpoints", "config.yaml"]
    # Without a checkpoint, what was measured before the first step may be of other settings.
    shutil.rmtree(found)
    assert claim_output_dir(tmp_path, SETTINGS, overwrite=False) is None
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["checkpoint-10-notes"]


def test_resume_never_refuses_an_unfinished_run(tmp_path):
    make_steps(tmp_path / "checkpoints", 10)
    with pytest.raises(
        InputError, match="unfinished run up to checkpoint-10, which --resume never"
    ):
        claim_output_dir(tmp_path, SETTINGS, overwrite=False, resume=False)
    assert claim_output_dir(tmp_path, SETTINGS, overwrite=True, resume=False) is None


def test_other_settings_do_not_continue_a_run(tmp_path):
    make_steps(tmp_path / "checkpoints", 10)
    (tmp_path / "config.yaml").write_text(SETTINGS)
    before = list_files(tmp_path)
    for changed in ("learning_rate: 0.2\nseed: 1\n", "learning_rate: 0.2\nseed: 1\nshots: 3\n"):
        with pytest.raises(InputError, match=r"unfinished run with --learning_rate 0.1, not 0.2"):
            claim_output_dir(tmp_path, changed, overwrite=False)
    with pytest.raises(InputError, match=r"--shots None, not 3"):
        check_output_dir(tmp_path, SETTINGS + "shots: 3\n")
    # Those of the machine may differ.
    check_output_dir(tmp_path, SETTINGS + "dataloader_num_workers: 8\ndisable_tqdm: true\n")
    assert list_files(tmp_path) == before
    assert (tmp_path / "config.yaml").read_text() == SETTINGS


@pytest.mark.parametrize("header", ["", "# siglip_flowers 0.1.9\n"])
def test_an_unfinished_run_of_an_older_version_is_refused(tmp_path, header):
    make_steps(tmp_path / "checkpoints", 10)
    (tmp_path / "config.yaml").write_text(SETTINGS.replace(HEADER, header))
    with pytest.raises(InputError, match=r"unfinished run of siglip_flowers 0\.1.*cannot resume"):
        claim_output_dir(tmp_path, SETTINGS, overwrite=False)
    assert claim_output_dir(tmp_path, SETTINGS, overwrite=True) is None


def test_where_open_files_cannot_be_removed_the_next_run_has_the_directory(tmp_path, monkeypatch):
    # As on Windows.
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path.name == LOCK_FILE:
            raise PermissionError(13, "in use")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    for _ in range(2):
        with hold_output_dir(tmp_path, SETTINGS, overwrite=False, resume=True):
            assert (tmp_path / LOCK_FILE).is_file()


def test_a_finished_run_is_kept_unless_overwritten(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "metrics.json").write_text("{}")
    make_steps(tmp_path / "checkpoints", 3)
    (tmp_path / "notes.txt").write_text("mine")
    assert is_finished(tmp_path)
    with pytest.raises(InputError, match="already holds a finished run.*--overwrite_output_dir"):
        claim_output_dir(tmp_path, SETTINGS, overwrite=False)
    assert claim_output_dir(tmp_path, SETTINGS, overwrite=True) is None
    assert list_files(tmp_path) == ["config.yaml", "notes.txt"]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A finished run in a directory whose name has a space and letters of other scripts."""
    root = tmp_path_factory.mktemp("small")
    out = root / "мой run – 花"
    argv = small_options(
        make_checkpoint(root / "checkpoint"),
        make_folder(root / "images"),
        out,
        *("--num_train_epochs", "3", "--seed", "7"),
    )
    assert train_command.main(argv) == 0
    return out


def test_a_run_leaves_every_promised_file_and_no_other(small_run):
    assert set(os.listdir(small_run)) == set(RUN_FILES) - {ADAPTER_DIR}
    assert is_finished(small_run)
    assert set(os.listdir(small_run / "model")) == {
        *("config.json", "model.safetensors", "preprocessor_config.json"),
        *("calibration.json", "open_set.json"),
    }


def test_the_images_open(small_run):
    for name in ("loss_plot", "accuracy_plot", "examples", *(f"example{n}" for n in range(1, 6))):
        with Image.open(small_run / f"{name}.png") as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 100
            assert len(set(image.convert("L").getdata())) > 10


def test_the_curve_covers_every_epoch(small_run):
    with (small_run / "history.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [int(row["step"]) for row in rows if row["validation_accuracy"]] == [3, 6, 9]
    assert [int(row["step"]) for row in rows if row["loss"]] == [2, 3, 4, 6, 8, 9]
    for row in rows:
        if row["validation_accuracy"]:
            assert 0 <= float(row["validation_accuracy"]) <= 1
            assert 0 < float(row["train_loss"]) < 10


def test_the_metrics_are_those_of_the_best_epoch_and_say_what_they_hold_for(small_run):
    metrics = json.loads((small_run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["data"]["source"] == "folder"
    assert metrics["data"]["description"] in metrics["title"]
    assert metrics["training"]["seed"] == 7
    assert yaml.safe_load((small_run / "config.yaml").read_text(encoding="utf-8"))["seed"] == 7
    assert metrics["training"]["steps"] == 9
    assert "torch" in metrics["environment"]["packages"]
    sizes = {name: split["n"] for name, split in metrics["splits"].items()}
    assert sizes == {"train": 24, "validation": 12, "test": 12}
    assert [row["name"] for row in metrics["splits"]["test"]["per_class"]] == list(CLASSES)
    with (small_run / "history.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["validation_accuracy"]]
    best = max(rows, key=lambda row: float(row["validation_accuracy"]))
    assert metrics["training"]["best_step"] == int(best["step"])
    validation = metrics["splits"]["validation"]
    assert validation["accuracy"] == pytest.approx(float(best["validation_accuracy"]), abs=1e-12)
    assert validation["loss"] == pytest.approx(float(best["validation_loss"]), abs=1e-5)
    predictions = pyarrow.parquet.read_table(small_run / "predictions_test.parquet").to_pylist()
    ids = json.loads((small_run / "splits.json").read_text(encoding="utf-8"))
    assert [row["image_id"] for row in predictions] == ids["test"]
    right = [row["label"] == row["top_labels"][0] for row in predictions]
    assert sum(right) / 12 == pytest.approx(metrics["splits"]["test"]["accuracy"], abs=1e-12)


@pytest.mark.parametrize("error", [SafetensorError("invalid header"), RuntimeError("a bug")])
def test_a_defect_of_ours_keeps_its_traceback(tmp_path, monkeypatch, error):
    argv = small_options(
        make_checkpoint(tmp_path / "checkpoint"), make_folder(tmp_path / "images"), tmp_path / "out"
    )

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(Trainer, "_save", fail)
    with pytest.raises(type(error), match=str(error)):
        train_command.main(argv)
