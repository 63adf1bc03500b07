"""Runs fit their machine: threads, memory, and what they say about their speed."""

import json
import multiprocessing
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from siglip_flowers.commands.train import main
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.data.pixels.tensors import PixelBatch, PixelDataset, PixelForm
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.runtime import memory
from siglip_flowers.runtime.devices import set_cpu_threads
from siglip_flowers.training import build
from siglip_flowers.training.attempts import TooLittleMemoryError, shrink_batch
from siglip_flowers.training.callbacks import Throughput
from siglip_flowers.training.trainer import SiglipTrainer
from tests.small_runs import small_options

MORE_THAN_ANY_MACHINE_HAS = 10**15


@pytest.fixture
def run(small, tmp_path):
    def run(name, *more):
        checkpoint, folder = small
        code = main(small_options(checkpoint, folder, tmp_path / name, *more))
        return code, tmp_path / name

    return run


@pytest.fixture
def little_memory(monkeypatch):
    """Make batches of more than four images run out of memory, with torch's own error."""
    calls = []
    whole = SiglipTrainer.compute_loss

    def compute_loss(self, model, inputs, *more, **options):
        calls.append((len(inputs["labels"]), self.state.global_step))
        if calls[-1][0] > 4 and calls[-1][1] >= 1:
            torch.empty(MORE_THAN_ANY_MACHINE_HAS, dtype=torch.uint8)
        return whole(self, model, inputs, *more, **options)

    monkeypatch.setattr(SiglipTrainer, "compute_loss", compute_loss)
    return calls


def test_a_batch_that_is_too_large_is_halved_and_the_weights_are_those_of_small_ones(
    run, little_memory
):
    expected_code, expected = run(
        "small", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"
    )
    little_memory.clear()
    code, found = run("found", "--auto_find_batch_size", "true")
    assert (expected_code, code) == (0, 0)
    assert [size for size, _ in little_memory[:3]] == [8, 8, 4]
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (found, expected))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)
    state = next((found / "checkpoints").glob("*/trainer_state.json"))
    rows = [row for row in json.loads(state.read_text())["log_history"] if "loss" in row]
    assert rows
    assert all(row["images_per_second"] > 0 and 0 <= row["data_wait"] <= 1 for row in rows)


def test_without_leave_to_shrink_the_error_names_the_remedy(run, little_memory, capsys):
    code, _ = run("whole")
    assert code == 1
    message = capsys.readouterr().err
    assert "--per_device_train_batch_size 4 --gradient_accumulation_steps 2, or" in message
    assert "by itself with --auto_find_batch_size true" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("size", "processes", "message"),
    [
        (1, 1, "size 1. Use --gradient_checkpointing true"),
        # The others wait for it in a step, so that it cannot continue with another batch.
        (8, 2, "size 8. Use .*_size 4 --gradient_accumulation_steps 6"),
        (7, 2, "size 7. Use .*_size 3 --gradient_accumulation_steps 6"),
    ],
)
def test_a_batch_that_cannot_be_halved_is_an_error(tmp_path, size, processes, message):
    training = SiglipTrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=3,
        auto_find_batch_size=True,
    )
    with pytest.raises(TooLittleMemoryError, match=message):
        shrink_batch(training, processes)


def test_an_evaluation_that_runs_out_of_memory_names_its_batch(run, monkeypatch, capsys):
    whole = SiglipClassifier.forward

    def forward(self, pixel_values, **more):
        if not self.training:
            torch.empty(MORE_THAN_ANY_MACHINE_HAS, dtype=torch.uint8)
        return whole(self, pixel_values, **more)

    monkeypatch.setattr(SiglipClassifier, "forward", forward)
    # Loaders whose workers persist end with the run all the same.
    workers = ("--dataloader_num_workers", "1", "--dataloader_persistent_workers", "true")
    code, _ = run("large", "--per_device_eval_batch_size", "12", *workers)
    assert code == 1
    assert "evaluate 12 images at once; lower --per_device_eval_batch" in capsys.readouterr().err
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    "omp, ranks, option, expected",
    [("1", "1", None, 6), ("1", "2", None, 3), ("1", "99", None, 1), ("4", "1", None, None),
     ("1", "1", 5, 5)],
)  # fmt: skip
def test_threads_are_the_option_or_the_share_of_the_cores_that_accelerate_left_idle(
    monkeypatch, omp, ranks, option, expected
):
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr("siglip_flowers.runtime.devices.count_cores", lambda: 6)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("OMP_NUM_THREADS", omp)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    set_cpu_threads(option)
    assert given == ([] if expected is None else [expected])
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    set_cpu_threads(None)  # not launched: what the user set is kept
    assert len(given) <= 1


@pytest.mark.parametrize(
    ("cuda", "cached", "asked", "batches_free", "expected"),
    [
        (True, False, {}, 99, (6, True)),
        (True, True, {}, 99, (0, False)),
        (False, False, {}, 99, (0, False)),
        (False, True, {"num_workers": 2}, 99, (2, False)),
        (False, False, {"num_workers": 2, "persistent_workers": True}, 99, (2, True)),
        (True, False, {"persistent_workers": False}, 99, (6, False)),
        # Taken from a run on a GPU, for example.
        (False, True, {"persistent_workers": True}, 99, (0, False)),
        # Each prepares 2 batches; the Trainer holds two of training, and four are of evaluation.
        (True, False, {}, 9, (1, True)),
        (False, False, {"num_workers": 8, "prefetch_factor": 3}, 9, (1, False)),
        (False, False, {"num_workers": 8, "prefetch_factor": 8}, 9, (0, False)),
    ],
)
def test_workers_follow_the_cores_the_cache_and_the_shared_memory(
    monkeypatch, caplog, cuda, cached, asked, batches_free, expected
):
    sizes = {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 12}
    options = {f"dataloader_{name}": value for name, value in asked.items()}
    training = SiglipTrainingArguments(use_cpu=True, **sizes, **options)
    monkeypatch.setattr(type(training), "device", torch.device("cuda" if cuda else "cpu"))
    monkeypatch.setattr(build, "count_cores", lambda: 6)
    monkeypatch.setattr(memory, "shutil", FakeDisk(batches_free * 16 * 3 * 8 * 8))
    pixels = object.__new__(PixelDataset)
    pixels.cached = object() if cached else None
    forms = dict.fromkeys(("train", "validation"), PixelForm(8, 2))
    copied = build.copy_for_trainer(training, pixels, forms)
    workers = copied.dataloader_num_workers
    assert (workers, copied.dataloader_persistent_workers) == expected
    assert copied.dataloader_prefetch_factor == (asked.get("prefetch_factor") if workers else None)
    assert ("has 0 MB free, which is too little for" in caplog.text) == (batches_free < 99)


class FakeDisk:
    def __init__(self, free):
        self.free = free

    def disk_usage(self, path):
        assert path == Path("/dev/shm")
        return self


def test_a_run_whose_workers_find_no_room_trains_without_them(run, monkeypatch, caplog):
    monkeypatch.setattr(memory, "shutil", FakeDisk(20_000))
    code, _ = run("little", "--dataloader_num_workers", "8", "--pixel_cache", "false")
    assert code == 0
    # In training 8 images of 3 * 16 * 16 bytes, in evaluation 32.
    assert "too little for 8 processes that prepare 2 batches of 0 MB each; 0 start" in caplog.text
    assert not multiprocessing.active_children()


def test_throughput_counts_images_waiting_and_no_pauses():
    throughput = Throughput()
    throughput.start()
    throughput.count(30, waited=0.05)
    time.sleep(0.2)
    with throughput.paused(), throughput.paused():
        time.sleep(0.5)
    figures = throughput.close_window()
    # A busy machine may oversleep, never undersleep.
    assert 30 / 0.5 < figures["images_per_second"] <= 30 / 0.2
    assert 0.1 < figures["data_wait"] < 0.5
    assert throughput.close_window() == {}


def test_batch_keeps_row_numbers_in_main_memory():
    batch = PixelBatch(
        pixel_values=torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        labels=torch.tensor([1, 0]),
        index=torch.tensor([5, 7]).numpy(),
    )
    moved = batch.to("meta")
    assert isinstance(moved, PixelBatch)
    assert moved["pixel_values"].device.type == moved["labels"].device.type == "meta"
    assert moved["index"].tolist() == [5, 7]
