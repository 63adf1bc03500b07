"""What a run promises when it is killed, asked to stop, out of disk, or fed a bad step."""

import csv
import importlib
import json
import math
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from siglip_flowers.base.errors import explain_write_failure, is_lost_process
from siglip_flowers.commands import train as train_command
from siglip_flowers.runtime.preemption import (
    EXIT_PREEMPTED,
    Preempted,
    defer_signals,
    stop_on_signals,
)
from siglip_flowers.training import objectives, run
from siglip_flowers.training.checkpoints import list_checkpoints
from siglip_flowers.training.objectives import build_classification
from siglip_flowers.training.output import hold_output_dir
from tests.conftest import REPOSITORY
from tests.small_runs import make_checkpoint, make_folder, small_options, start_script
from tests.small_trainers import list_changed

pytestmark = pytest.mark.usefixtures("_unset_determinism")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tiny checkpoint, and 33 training images: epochs of 9 steps. All tests use one thread."""
    root, threads = tmp_path_factory.mktemp("inputs"), torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_checkpoint(root / "checkpoint"), make_folder(root / "images", train=11)
    torch.set_num_threads(threads)


def write_options(inputs, output_dir, *more):
    """Options of a run of 18 steps with a checkpoint every third."""
    return small_options(
        *inputs,
        output_dir,
        *("--per_device_train_batch_size", "4", "--full_determinism", "true"),
        *("--save_strategy", "steps", "--save_steps", "3", "--eval_strategy", "steps"),
        *("--eval_steps", "3", "--save_total_limit", "20", "--logging_steps", "4"),
        *more,
    )


@pytest.fixture
def options(inputs, tmp_path):
    return lambda name="run", *more: write_options(inputs, tmp_path / name, *more)


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """The directory of a run that nothing happened to."""
    before, directory = dict(os.environ), tmp_path_factory.mktemp("undisturbed") / "run"
    assert train_command.main(write_options(inputs, directory)) == 0
    os.environ.clear()
    os.environ.update(before)
    return directory


@pytest.fixture
def disturb(monkeypatch):
    """Let a function of the step (from 1) and the loss replace the loss of training batches."""

    def disturb(change):
        def build_objective(*arguments):
            objective = build_classification(*arguments)

            def disturbed(model, batch):
                loss, logits = objective(model, batch)
                return change(batch.step + 1, loss), logits

            return disturbed

        monkeypatch.setattr(objectives, "build_classification", build_objective)

    return disturb


def list_steps(run: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in list_checkpoints(run / "checkpoints")]


def check_same(one: Path, other: Path) -> None:
    """Assert that two runs ended with the same weights, figures and curve, bit for bit."""
    weights = [load_file(run / "model" / "model.safetensors") for run in (one, other)]
    assert not list_changed(*weights)
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, other)]
    assert metrics[0]["splits"] == metrics[1]["splits"]
    assert metrics[0]["training"]["steps"] == metrics[1]["training"]["steps"]


def test_a_run_that_is_killed_in_a_step_resumes_bit_identically(
    options, disturb, tmp_path, undisturbed
):
    def strike(step, loss):
        if step == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    disturb(strike)
    child = os.fork()
    if not child:
        train_command.main(options())
        os._exit(70)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list_steps(tmp_path / "run") == [3, 6]
    disturb(lambda step, loss: loss)
    assert train_command.main(options()) == 0
    check_same(tmp_path / "run", undisturbed)


def test_a_second_run_into_the_same_directory_is_refused(options, tmp_path, capsys):
    with hold_output_dir(tmp_path / "run", "", overwrite=False, resume=True):
        assert train_command.main(options()) == 2
    message = capsys.readouterr().err
    assert f"Another run writes to --output_dir {tmp_path / 'run'}: process {os.getpid()} on" in (
        message
    )
    assert os.listdir(tmp_path / "run") == ["config.yaml"]


def test_a_signal_ends_training_after_its_step_and_the_same_command_resumes(
    options, disturb, tmp_path, capsys, undisturbed
):
    def strike(step, loss):
        if step == 5 and not (tmp_path / "run" / "struck").exists():
            (tmp_path / "run" / "struck").touch()
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)  # the launcher's, for the same reason
        return loss

    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1)]
    disturb(strike)
    assert train_command.main(options()) == EXIT_PREEMPTED == 143
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        r"siglip-flowers train: stopped by a signal after step 5; .* from .*checkpoint-5\.", said
    )
    assert list_steps(tmp_path / "run") == [3, 5]
    assert not (tmp_path / "run" / "model").exists()
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    assert train_command.main(options("run", "--resume", "never")) == 2
    assert "--resume never" in capsys.readouterr().err
    assert train_command.main(options()) == 0
    assert f"output: {tmp_path / 'run'}, resumed from step 5; " in capsys.readouterr().out
    check_same(tmp_path / "run", undisturbed)


def test_a_signal_in_the_last_step_of_an_epoch_waits_for_its_evaluation(options, disturb, tmp_path):
    """The checkpoint of the step itself is replaced by one that knows the evaluation."""

    def strike(step, loss):
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    disturb(strike)
    epochs = ("--eval_strategy", "epoch", "--load_best_model_at_end", "false")
    assert train_command.main(options("run", *epochs)) == 143
    state = tmp_path / "run" / "checkpoints" / "checkpoint-9" / "trainer_state.json"
    rows = json.loads(state.read_text())["log_history"]
    assert [row["step"] for row in rows if "eval_validation_loss" in row] == [9]


def test_a_signal_to_the_processes_that_load_data_too_lets_the_step_finish(
    options, disturb, tmp_path
):
    def strike(step, loss):
        if step == 5:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    disturb(strike)
    workers = ("--dataloader_num_workers", "1", "--dataloader_persistent_workers", "true")
    assert train_command.main(options("run", *workers)) == 143
    assert list_steps(tmp_path / "run") == [3, 5]
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_signal_after_training_ends_at_once_and_nothing_is_trained_twice(
    options, disturb, tmp_path, monkeypatch
):
    steps = []
    disturb(lambda step, loss: steps.append(step) or loss)
    real = run.evaluate_split

    def strike(*arguments, **named):
        if len(steps) == 18:
            steps.append(0)
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **named)

    monkeypatch.setattr(run, "evaluate_split", strike)
    assert train_command.main(options()) == 143
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert train_command.main(options()) == 0
    assert steps == [*range(1, 19), 0]


def test_a_loss_that_is_not_finite_stops_and_resumes_past_the_step_when_told_to(
    options, disturb, tmp_path, capsys
):
    disturb(lambda step, loss: loss * math.nan if step == 8 else loss)
    # Logged every 4 steps and saved at 9: by then the weights are spoilt.
    assert train_command.main(options("run", "--logging_steps", "50")) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    found = re.match(
        r".* train: error: The loss is not finite in step 8 \(images (.*)\); the run stops there, "
        r"and .*/checkpoint-6 is the last good checkpoint\. .* --on_nan skip\.",
        message,
    )
    assert found is not None, message
    names = found[1].split(", ")
    assert len(names) == 4
    assert all(re.fullmatch(r"(aster|borage|clover)/\d+", name) for name in names)
    assert list_steps(tmp_path / "run") == [3, 6]
    assert train_command.main(options("run", "--logging_steps", "50", "--on_nan", "skip")) == 0
    assert train_command.main(options("skip", "--logging_steps", "50", "--on_nan", "skip")) == 0
    check_same(tmp_path / "run", tmp_path / "skip")


def test_a_skipped_step_changes_nothing(options, disturb, tmp_path, caplog):
    # In the first step all gradients are checked, too.
    disturb(lambda step, loss: loss * math.nan if step in (1, 8) else loss)
    every = ("--save_steps", "1", "--eval_steps", "1", "--ema", "0.9", "--max_steps", "9")
    assert train_command.main(options("skip", *every, "--on_nan", "skip")) == 0
    assert "The loss is not finite in step 8 (images" in caplog.text
    before, after, later = (
        tmp_path / "skip" / "checkpoints" / f"checkpoint-{step}" for step in (7, 8, 9)
    )
    weights = [load_file(path / "model.safetensors") for path in (before, after, later)]
    assert not list_changed(weights[0], weights[1])
    assert list_changed(weights[1], weights[2])
    states = [torch.load(path / "optimizer.pt")["state"] for path in (before, after)]
    assert not any(list_changed(states[0][number], states[1][number]) for number in states[0])
    metrics = json.loads((tmp_path / "skip" / "metrics.json").read_text())
    assert metrics["training"]["skipped_steps"] == [1, 8]
    with (tmp_path / "skip" / "history.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    assert len(losses) == 9
    assert np.isfinite(losses).all()


@pytest.mark.slow
def test_bad_steps_are_left_out_a_bounded_number_of_times(options, disturb, tmp_path, capsys):
    disturb(lambda step, loss: loss * math.nan if step >= 8 else loss)
    limited = options("run", "--on_nan", "skip", "--max_bad_steps", "2")
    assert train_command.main(limited) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "in step 10" in message
    assert "after 2 skipped steps" in message
    assert max(list_steps(tmp_path / "run")) <= 9


def test_a_full_disk_costs_no_checkpoint(options, disturb, tmp_path, capfd, undisturbed):
    """A limit on the size of a file fails at the same place, in the same way, as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(step, loss):
        if step == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        return loss

    disturb(limit)
    try:
        assert train_command.main(options()) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    message = capfd.readouterr().err.splitlines()[-1]
    assert re.search(
        r"The checkpoint of step 9 could not be written to .*/checkpoints \(.*\): it needs about "
        r"\d+\.\d MB and \d+\.\d MB are free\. Make room .* resumes from checkpoint-6\.",
        message,
    ), message
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["checkpoint-3", "checkpoint-6"]
    disturb(lambda step, loss: loss)
    assert train_command.main(options()) == 0
    check_same(tmp_path / "run", undisturbed)


def test_failures_of_the_machine_are_told_apart_from_defects():
    assert is_lost_process(RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed"))
    assert not is_lost_process(RuntimeError("shapes do not match"))
    assert not is_lost_process(ConnectionResetError("Connection reset by peer"))
    assert explain_write_failure(RuntimeError("shapes do not match")) is None


@pytest.mark.slow
def test_the_script_ends_with_the_code_of_a_preemption(options, tmp_path):
    process = start_script("train.py", *options("run", "--num_train_epochs", "60"))
    deadline = time.monotonic() + 240
    while not list_steps(tmp_path / "run"):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "Traceback" not in said
    assert "train.py: stopped by a signal after step" in said


def test_a_signal_during_an_import_waits_for_its_end(tmp_path, monkeypatch):
    # An exception inside the initialization of an extension would abort the process.
    (tmp_path / "module_that_is_hit.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGUSR1)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    imported = []

    def command():
        with stop_on_signals(), defer_signals():
            imported.append(importlib.import_module("module_that_is_hit"))

    with pytest.raises(Preempted):
        command()
    assert imported[0].whole


@pytest.mark.slow
def test_killed_again_and_again_runs_end_as_if_they_had_not_been():
    """A short soak: one process and two, three recipes, SIGKILL, SIGTERM and SIGUSR1."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.soak", "--rounds", "4", "--seed", "1"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert report["counts"]["bit-identical"] == report["counts"]["rounds"] == 4
    assert report["counts"]["SIGKILL"] >= 1
    assert report["counts"]["resumed from a checkpoint"] >= 1
    assert done.returncode == 0
