"""The search: its space, its study, trials that are killed, ended early or shared out."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_type_hints

import optuna
import pytest
import yaml
from filelock import FileLock
from optuna.trial import TrialState
from PIL import Image

from siglip_flowers.base.errors import InputError
from siglip_flowers.commands import train as train_command
from siglip_flowers.config import ModelArguments, SiglipTrainingArguments
from siglip_flowers.search import command as search_command
from siglip_flowers.search.line import check_line
from siglip_flowers.search.options import SearchArguments
from siglip_flowers.search.plots import OptionAxis, TrialPoint, plot_trials
from siglip_flowers.search.space import (
    Range,
    dump_space,
    find_start,
    make_default_space,
    read_space,
    refuse_impossible,
)
from siglip_flowers.search.study import FileStorage, build_sampler, hide_password
from tests.conftest import REPOSITORY
from tests.small_runs import make_checkpoint, make_folder, small_options, start_script

SPACE = {
    "learning_rate": {"low": "1e-4", "high": "1e-2", "log": True},
    "pooling": ["mean", "map"],
    "per_device_train_batch_size": {"low": 4, "high": 8, "step": 4},
}
HINTS = get_type_hints(ModelArguments) | get_type_hints(SiglipTrainingArguments)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    directory = tmp_path_factory.mktemp("small")
    return make_checkpoint(directory / "checkpoint"), make_folder(directory / "data")


def make_argv(small, output_dir: Path, *more: str, space: Any = None) -> list[str]:
    """A search that is judged by the loss, which hardly two trials have in common."""
    return [
        *small_options(*small, output_dir, "--num_train_epochs", "1", "--n_trials", "3"),
        *("--metric_for_best_model", "validation_loss", "--greater_is_better", "false"),
        *("--search_space", json.dumps(space or SPACE), "--full_determinism", "true", *more),
    ]


def open_study(output_dir: Path) -> optuna.Study:
    return optuna.load_study(study_name="search", storage=f"sqlite:///{output_dir / 'study.db'}")


def list_trials(output_dir: Path, *states: TrialState) -> list[tuple[Any, float | None]]:
    trials = open_study(output_dir).get_trials(states=states or (TrialState.COMPLETE,))
    return [(trial.params, trial.value) for trial in trials]


def start_search(argv: list[str]) -> subprocess.Popen:
    return start_script("-m", "siglip_flowers.search", *argv)


def wait_for(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """A search of three trials that nobody disturbed."""
    output_dir = tmp_path_factory.mktemp("finished") / "out"
    before = dict(os.environ)
    assert search_command.main(make_argv(small, output_dir)) == 0
    yield output_dir
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.slow
@pytest.mark.usefixtures("_unset_determinism")
def test_a_search_leaves_table_image_and_a_configuration_that_trains_alike(finished, tmp_path):
    trials = open_study(finished).get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    with (finished / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == [trial.value for trial in trials]
    assert [float(row["learning_rate"]) for row in rows] == [
        trial.params["learning_rate"] for trial in trials
    ]
    with Image.open(finished / "trials.png") as image:
        assert image.width > 1000
    assert not list((finished / "trials").iterdir())

    best = min(trials, key=lambda trial: trial.value)
    config = yaml.safe_load((finished / "best.yaml").read_text())
    assert {name: config[name] for name in SPACE} == best.params
    argv = ["--config", str(finished / "best.yaml"), "--output_dir", str(tmp_path / "run")]
    assert train_command.main(argv) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["splits"]["validation"]["loss"] == pytest.approx(best.value, rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("_unset_determinism")
def test_a_finished_search_answers_again_and_refuses_other_settings(small, finished, capsys):
    database = (finished / "study.db").read_bytes()
    assert search_command.main(make_argv(small, finished, "--workers", "2")) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 trials were finished before" in printed
    assert "[1/3]" not in printed
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
def test_a_search_that_was_stopped_twice_goes_on_to_the_same_trials(small, finished, tmp_path):
    argv = make_argv(small, tmp_path / "out")
    # Each in a trial after the first, which was counted.
    for number, trial in ((signal.SIGTERM, "trial-1"), (signal.SIGKILL, "trial-3")):
        process = start_search(argv)
        wait_for((tmp_path / "out" / "trials" / trial).is_dir, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=240)
        if number == signal.SIGTERM:
            assert process.returncode == 143
            assert "the same command goes on" in errors
            assert "Traceback" not in errors
    assert search_command.main(argv) == 0
    # The processes may differ in threads, and with them in the last digits.
    options, values = zip(*list_trials(tmp_path / "out"), strict=True)
    expected_options, expected_values = zip(*list_trials(finished), strict=True)
    assert options == expected_options
    assert values == pytest.approx(expected_values, abs=1e-6)
    states = [trial.state for trial in open_study(tmp_path / "out").get_trials()]
    assert states.count(TrialState.FAIL) == 2


@pytest.mark.slow
def test_two_workers_share_the_trials_of_one_study(small, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    argv = make_argv(small, tmp_path / "out", "--workers", "2", "--n_trials", "3")
    process = start_search(argv)
    printed, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert printed.count("] trial ") == 3
    trials = open_study(tmp_path / "out").get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    first, second = trials[:2]
    # Beside each other: the second began before the first had ended.
    assert second.datetime_start < first.datetime_complete


@pytest.mark.slow
@pytest.mark.usefixtures("_unset_determinism")
def test_hopeless_and_impossible_trials_end_early(small, tmp_path, capsys):
    argv = make_argv(small, tmp_path / "out", space={"learning_rate": [1e-2, 1e-30]})
    argv += ["--n_trials", "5", "--head_learning_rate", "1e-30"]
    argv += ["--num_train_epochs", "3", "--pruning_startup_trials", "1", "--pruning_warmup", "0"]
    assert search_command.main([*argv, "--sampler", "random"]) == 0
    trials = open_study(tmp_path / "out").get_trials()
    pruned = [trial for trial in trials if trial.state is TrialState.PRUNED]
    assert len(trials) == 5
    assert {trial.params["learning_rate"] for trial in pruned} == {1e-30}
    assert all(len(trial.intermediate_values) == 1 for trial in pruned)

    # The rank alone is possible, and so is the part that trains, but not both.
    space = {"layer_decay": [None, 0.7], "trainable": ["head", "all"]}
    argv = make_argv(small, tmp_path / "other", "--feature_cache", "false", space=space)
    assert search_command.main([*argv, "--n_trials", "6", "--sampler", "random"]) == 0
    for trial in open_study(tmp_path / "other").get_trials():
        impossible = trial.params == {"layer_decay": 0.7, "trainable": "head"}
        assert (trial.state is TrialState.PRUNED) == impossible
        assert ("--layer_decay" in trial.user_attrs.get("reason", "")) == impossible
    assert "cannot be carried out (--layer_decay 0.7 acts on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"lerning_rate": [1, 2]}, "unknown option 'lerning_rate'; did you mean learning_rate?"),
        ({"learning_rate": {"low": 1, "hi": 2}}, "unknown key 'hi'; did you mean high?"),
        ({"learning_rate": {"low": 1e-3, "high": 1e-4}}, "low must be less"),
        ({"learning_rate": {"low": 0, "high": 1, "log": True}}, "greater than 0"),
        ({"learning_rate": {"low": -1, "high": 1}}, "holds -1: --learning_rate is -1.0"),
        ({"learning_rate": {"low": "a", "high": 1}}, "'a' as its low; use a number"),
        ({"lora_r": {"low": 1.5, "high": 8}}, "1.5 as its low; use a whole number"),
        ({"pooling": {"low": 0, "high": 1}}, "pooling is no number"),
        ({"pooling": ["mean", "max"]}, "holds max: --pooling is 'max'; choose one of map, mean"),
        ({"pooling": ["mean"]}, "two values or more"),
        ({"pooling": "mean"}, "give a list of values or"),
        ({"lora_target_modules": [["fc1"], ["fc2"]]}, "use single numbers, words"),
        ({"seed": [1, 2]}, "seed cannot be searched: the best seed is luck"),
        ({"shots": [1, 2]}, "trials on other images cannot be compared"),
        ({"use_dora": [True, False]}, "holds true: --use_dora needs adapters"),
        (["learning_rate"], "must be a mapping"),
    ],
)
def test_bad_spaces_are_refused_before_anything_slow(space, message, small, tmp_path, capsys):
    argv = [*small_options(*small, tmp_path / "out"), "--search_space", json.dumps(space)]
    assert search_command.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("search: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_shipped_search_is_a_search():
    path = REPOSITORY / "configs" / "search.yaml"
    check_line(["--config", str(path)], prog="search", description="")
    assert set(yaml.safe_load(path.read_text())["search_space"]) <= set(HINTS)


def test_a_value_that_some_other_option_makes_possible_is_kept(small, tmp_path):
    space = read_space("{use_dora: [true, false], lora_r: [null, 4]}", HINTS)

    def check(values: dict[str, Any]) -> None:
        ModelArguments(**values)

    refuse_impossible(space, check)
    with pytest.raises(InputError, match="use_dora holds true"):
        refuse_impossible({"use_dora": space["use_dora"]}, check)


def test_spaces_are_read_as_they_are_written():
    space = read_space(json.dumps(SPACE), HINTS)
    assert space["learning_rate"] == Range(1e-4, 1e-2, log=True, step=None, whole=False)
    assert read_space(yaml.safe_dump(dump_space(space)), HINTS) == space


def test_the_default_space_holds_the_configuration_that_it_surrounds():
    values = {"learning_rate": 3e-4, "head_learning_rate": 1e-3, "weight_decay": 0.05}
    values |= {"warmup_steps": 0.1, "label_smoothing_factor": 0.1, "layer_decay": None}
    space = make_default_space({**values, "objective": "cross_entropy", "trainable": "all"})
    assert find_start(space, values) == {**values, "layer_decay": 1.0}
    assert find_start(space, {**values, "weight_decay": 0.0}) is None
    assert "layer_decay" not in make_default_space({**values, "trainable": "head"})


def test_draws_follow_from_the_trials_before_and_not_from_the_process():
    def draw(studies: int) -> list[float]:
        study, drawn = None, []
        for number in range(30):
            if study is None or number % (30 // studies) == 0:
                earlier = [] if study is None else study.get_trials()
                sampler = build_sampler(SearchArguments(), 0, parallel=False)
                study = optuna.create_study(sampler=sampler)
                study.add_trials(earlier)
            trial = study.ask()
            drawn.append(trial.suggest_float("x", 0.0, 1.0))
            study.tell(trial, (drawn[-1] - 0.3) ** 2)
        return drawn

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    whole = draw(1)
    assert draw(5) == whole
    assert len(set(whole)) == 30
    # Modelled, not only drawn at random.
    assert sum(abs(x - 0.3) for x in whole[20:]) < sum(abs(x - 0.3) for x in whole[:10])


def test_passwords_of_a_storage_are_hidden(small, tmp_path, capsys):
    url = "postgresql://me:s3cret@127.0.0.1:9/db?password=s3cret"
    assert hide_password(url) == "postgresql://me:***@127.0.0.1:9/db"
    assert hide_password("sqlite:///a/b.db") == "sqlite:///a/b.db"
    argv = make_argv(small, tmp_path / "out", "--storage", url)
    assert search_command.main(argv) in (1, 2)
    printed = capsys.readouterr()
    assert "postgresql://me:***@127.0.0.1:9/db" in printed.err
    assert "s3cret" not in printed.err + printed.out
    written = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert not any("s3cret" in text for text in written)


def test_a_missing_optuna_is_named(small, tmp_path):
    script = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "hidden = lambda name, *more: None if name == 'optuna' else find(name, *more)\n"
        "importlib.util.find_spec = hidden\n"
        "from siglip_flowers.search.command import main\n"
        f"sys.exit(main({make_argv(small, tmp_path / 'out')!r}))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert process.stderr.endswith("not installed: pip install optuna.\n")


@pytest.mark.parametrize("maximize", [True, False])
def test_images_are_drawn_of_any_trials(tmp_path, maximize):
    trials = [
        TrialPoint(0, 0.5, True, {"a": 1e-4, "b": None, "c": 3}),
        TrialPoint(1, None, False, {"a": 1e-3, "b": True}),
        TrialPoint(2, 0.4, False, {"a": 1e-2, "b": "$word$", "c": 4}),
    ]
    for some in (trials, trials[1:2], []):
        path = tmp_path / f"{len(some)}.png"
        plot_trials(
            some,
            path,
            title="A $title$",
            objective="validation accuracy",
            maximize=maximize,
            axes_of={"a": OptionAxis(1e-5, 1e-1, log=True)},
        )
        with Image.open(path) as image:
            image.verify()


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
