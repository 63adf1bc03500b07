"""The messages of docs/troubleshooting.md are those that the commands print."""

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from siglip_flowers.commands.main import main
from siglip_flowers.training.trainer import SiglipTrainer
from tests.conftest import REPOSITORY
from tests.small_runs import make_checkpoint, make_folder

SAVED = REPOSITORY / "tests" / "saved_models"
TRAIN = "train --model_name_or_path checkpoint --data_dir images --report_to none --output_dir out"


def list_messages(page: str) -> list[str]:
    """Return the first column of a page's table; ``…`` stands for any words."""
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def share_an_image(here: Path, patch: pytest.MonkeyPatch) -> None:
    shutil.copy(here / "images/train/aster/0.png", here / "images/test/aster/copy.png")


def break_an_image(here: Path, patch: pytest.MonkeyPatch) -> None:
    (here / "images/train/aster/0.png").write_bytes(b"not an image")


def leave_one_class(here: Path, patch: pytest.MonkeyPatch) -> None:
    for folder in (*here.glob("images/*/borage"), *here.glob("images/*/clover")):
        shutil.rmtree(folder)


def write_another_model(here: Path, patch: pytest.MonkeyPatch) -> None:
    (here / "checkpoint/config.json").write_text(json.dumps({"model_type": "vit"}))


def remove_the_weights(here: Path, patch: pytest.MonkeyPatch) -> None:
    (here / "checkpoint/model.safetensors").unlink()


def hide_gradio(here: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(importlib.util, "find_spec", lambda name: None)


def finish_a_run(here: Path, patch: pytest.MonkeyPatch) -> None:
    shutil.copytree(SAVED / "mean", here / "out")
    (here / "out/metrics.json").write_text("{}")


def run_out_of_memory(here: Path, patch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    patch.setattr(SiglipTrainer, "training_step", refuse)


# What a user types, and what is wrong where; in the order of the page.
CASES: list[tuple[str, Callable[[Path, pytest.MonkeyPatch], None] | None]] = [
    ("train --lerning_rate 1e-5", None),
    ("train --config run.yaml", None),
    (f"{TRAIN} --fp16 true --bf16 true", None),
    (f"{TRAIN} --data_dir ./nowhere", None),
    (TRAIN, leave_one_class),
    (f"{TRAIN} --data_dir images/train/aster", None),
    (TRAIN, break_an_image),
    (TRAIN, share_an_image),
    (f"{TRAIN} --model_name_or_path google/siglip2-base-patch16-224", None),
    (TRAIN, write_another_model),
    (TRAIN, remove_the_weights),
    (f"{TRAIN} --image_size 20", None),
    (f"{TRAIN} --head_init text", None),
    (TRAIN, finish_a_run),
    (f"{TRAIN} --learning_rate 1e20 --max_grad_norm 0 --bf16 false", None),
    (TRAIN, run_out_of_memory),
    ("eval --data_dir images", None),
    ("predict images --model checkpoint", None),
    ("predict broken.jpg --model saved/mean", None),
    ("export --model saved/linear --format safetensors_native --output native", None),
    ("demo --model saved/mean", hide_gradio),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with images, a checkpoint and saved models, where commands are typed."""
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "checkpoint")
    make_folder(tmp_path / "images", train=2, held_out=1)
    (tmp_path / "run.yaml").write_text("lerning_rate: 1.0e-5\n")
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    (tmp_path / "saved").symlink_to(SAVED)
    return tmp_path


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_documented_message_is_what_the_command_prints(number, here, monkeypatch, capsys):
    command, change = CASES[number]
    if change is not None:
        change(here, monkeypatch)
    assert main(command.split()) in (1, 2)
    message = list_messages("troubleshooting.md")[number]
    pattern = re.escape(message).replace("…", ".*")
    assert re.search(pattern, capsys.readouterr().err), message


def test_the_same_messages_in_both_languages():
    assert len(list_messages("troubleshooting.md")) == len(CASES)
    assert list_messages("ru/troubleshooting.md") == list_messages("troubleshooting.md")
