"""The search: its space, its study, trials that are interrupted, pruned or run in parallel."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from filelock import FileLock
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from siglip_flowers.commands import train as train_command
from siglip_flowers.search import command as search_command
from siglip_flowers.search.study import FileStorage, read_search
from siglip_flowers.search.trials import find_start
from tests.conftest import REPOSITORY
from tests.small_runs import small_options, start_script

SPACE = {
    "learning_rate": {"low": "1e-4", "high": "1e-2", "log": True},
    "pooling": ["mean", "map"],
    "per_device_train_batch_size": {"low": 4, "high": 8, "step": 4},
}


def make_argv(small, output_dir: Path, *more: str, space: Any = None) -> list[str]:
    """A search scored by the loss, which hardly two trials have in common."""
    return [
        *small_options(*small, output_dir, "--num_train_epochs", "1", "--n_trials", "2"),
        *("--metric_for_best_model", "validation_loss"),
        *("--search_space", json.dumps(space or SPACE), "--full_determinism", "true", *more),
    ]


def list_trials(output_dir: Path) -> list[optuna.trial.FrozenTrial]:
    with contextlib.chdir(output_dir):
        return optuna.load_study(study_name="search", storage="sqlite:///study.db").get_trials()


def wait_for(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """A search of two trials that nothing disturbed."""
    output_dir = tmp_path_factory.mktemp("finished") / "50% of {these}?"
    before = dict(os.environ)
    assert search_command.main(make_argv(small, output_dir)) == 0
    yield output_dir
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.slow
@pytest.mark.usefixtures("_unset_determinism")
def test_the_best_configuration_trains_to_the_value_of_its_trial(finished, tmp_path):
    trials = list_trials(finished)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    # The first trial is the configuration itself.
    assert trials[0].params["learning_rate"] == 1e-3
    with (finished / "trials.csv").open(newline="") as file:
        assert [float(row["value"]) for row in csv.DictReader(file)] == [
            trial.value for trial in trials
        ]
    assert not (finished / "trials").exists()

    best = min(trials, key=lambda trial: trial.value)
    config = yaml.safe_load((finished / "best.yaml").read_text())
    assert {name: config[name] for name in SPACE} == best.params
    argv = ["--config", str(finished / "best.yaml"), "--output_dir", str(tmp_path / "run")]
    assert train_command.main(argv) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["splits"]["validation"]["loss"] == pytest.approx(best.value, rel=1e-5)


@pytest.mark.usefixtures("_unset_determinism")
def test_a_finished_search_is_not_repeated_and_refuses_other_settings(small, finished, capsys):
    database = (finished / "study.db").read_bytes()
    assert search_command.main(make_argv(small, finished, "--workers", "2")) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 trials are already finished" in printed
    assert "[1/2]" not in printed
    assert (finished / "study.db").read_bytes() == database
    for other, named in (
        (make_argv(small, finished, space={"pooling": ["mean", "map"]}), "--search_space"),
        (make_argv(small, finished, "--weight_decay", "0.3"), "--weight_decay 0.05, not 0.3"),
    ):
        assert search_command.main(other) == 2
        message = capsys.readouterr().err
        assert named in message
        assert "--overwrite_output_dir" in message


@pytest.mark.slow
def test_a_search_that_is_stopped_and_killed_resumes_its_trials(small, tmp_path):
    argv = make_argv(small, tmp_path / "out", "--n_trials", "3")
    # Each in a trial after the first, which counts.
    for number, trial in ((signal.SIGTERM, "trial-1"), (signal.SIGKILL, "trial-3")):
        process = start_script("-m", "siglip_flowers", "search", *argv)
        wait_for((tmp_path / "out" / "trials" / trial).is_dir, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=240)
        if number == signal.SIGTERM:
            assert process.returncode == 143
            assert "the same command" in errors
            assert "Traceback" not in errors
    assert search_command.main(argv) == 0
    trials = list_trials(tmp_path / "out")
    states = [trial.state for trial in trials]
    assert states.count(TrialState.COMPLETE) == 3
    assert states.count(TrialState.FAIL) == 2
    for trial in trials:
        if "repeats" in trial.user_attrs:
            assert trial.params == trials[trial.user_attrs["repeats"]].params


@pytest.mark.slow
def test_two_workers_share_the_trials_of_one_study(small, tmp_path):
    argv = make_argv(small, tmp_path / "out", "--workers", "2", "--n_trials", "3")
    process = start_script("-m", "siglip_flowers", "search", *argv)
    printed, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert printed.count("] trial ") == 3
    trials = list_trials(tmp_path / "out")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    first, second = trials[:2]
    # In parallel: the second began before the first had ended.
    assert second.datetime_start < first.datetime_complete


@pytest.mark.slow
@pytest.mark.usefixtures("_unset_determinism")
def test_hopeless_and_impossible_trials_end_early(small, tmp_path, capsys):
    argv = make_argv(small, tmp_path / "out", space={"learning_rate": [1e-2, 1e-30]})
    # The first trial is the good one.
    argv += ["--n_trials", "5", "--learning_rate", "1e-2", "--head_learning_rate", "1e-30"]
    argv += ["--num_train_epochs", "3", "--pruning_startup_trials", "1", "--pruning_warmup", "0"]
    assert search_command.main(argv) == 0
    trials = list_trials(tmp_path / "out")
    pruned = [trial for trial in trials if trial.state is TrialState.PRUNED]
    assert len(trials) == 5
    assert {trial.params["learning_rate"] for trial in pruned} == {1e-30}
    assert all(len(trial.intermediate_values) == 1 for trial in pruned)

    # Each value is possible, but not the combination.
    space = {"layer_decay": [None, 0.7], "trainable": ["head", "all"]}
    argv = make_argv(small, tmp_path / "other", space=space)
    assert search_command.main([*argv, "--n_trials", "6"]) == 0
    for trial in list_trials(tmp_path / "other"):
        impossible = trial.params == {"layer_decay": 0.7, "trainable": "head"}
        assert (trial.state is TrialState.PRUNED) == impossible
        assert ("--layer_decay" in trial.user_attrs.get("reason", "")) == impossible
    assert "--layer_decay acts on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"lerning_rate": [1, 2]}, "unknown option 'lerning_rate'; did you mean learning_rate?"),
        ({"lora_r": {"low": 1.5, "high": 8}}, "lora_r has an invalid int value: '1.5'"),
        ({"lora_r": {"low": None, "high": 8}}, "The search space of lora_r is {"),
        ({"pooling": ["mean", "max"]}, "has 'max': --pooling is 'max'; choose one of map, mean"),
        ({"seed": [1, 2]}, "option seed cannot be searched"),
        (["learning_rate"], "use a mapping of options to values"),
    ],
)
def test_bad_spaces_are_refused(space, message, small, tmp_path, capsys):
    argv = [*small_options(*small, tmp_path / "out"), "--search_space", json.dumps(space)]
    assert search_command.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("siglip-flowers search: error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_the_shipped_search_contains_its_own_configuration():
    search = read_search(["--config", str(REPOSITORY / "configs" / "search.yaml")])
    assert search.space["learning_rate"] == FloatDistribution(3e-6, 1e-4, log=True)
    # layer_decay is unset.
    assert find_start(search.space, search.run).keys() == search.space.keys() - {"layer_decay"}


def test_a_launch_of_several_processes_is_refused(monkeypatch, small, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert search_command.main(make_argv(small, tmp_path / "out")) == 2
    assert "use python, not accelerate launch" in capsys.readouterr().err


def test_of_two_processes_one_takes_a_waiting_trial(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=url, study_name="search")
    for number in range(20):
        study.enqueue_trial({"number": number})
    # Each with a connection and a lock of its own, as processes have them.
    storages = [FileStorage(url, FileLock(tmp_path / "lock")) for _ in range(2)]
    together = threading.Barrier(2)

    def take(storage):
        taken = []
        for trial in study.get_trials(deepcopy=False):
            together.wait(60)
            if storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                taken.append(trial.number)
        return taken

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(take, storages)
    assert sorted(one + two) == list(range(20))
