"""Experiments: options, the tuning protocol, resuming, crashes, analysis and report."""

import csv
import itertools
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.experiment import runs, statistics
from siglip_flowers.experiment.analysis import analyze
from siglip_flowers.experiment.command import main
from siglip_flowers.experiment.options import ExperimentArguments, check_arms
from siglip_flowers.experiment.report import write_report
from siglip_flowers.experiment.runs import (
    Run,
    check_runs,
    claim_directory,
    execute_runs,
    make_options,
)
from siglip_flowers.metrics.statistics import mean_interval
from tests.conftest import REPOSITORY
from tests.small_runs import make_checkpoint, make_folder

IMAGES = 400
IDS = [f"image_{number:05d}" for number in range(IMAGES)]
SIG = {"objective": "sigmoid"}
HISTORY = ["step", "epoch", "train_nll", "validation_nll", "validation_accuracy"]


def make_values(directory: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "name": "tiny",
        "output_dir": str(directory / "out"),
        "arms": {"ce": {}, "sig": SIG},
        "regimes": {"1": {"shots": 1}, "full": {}},
        "baseline": "ce",
        "siglip_arm": "sig",
        "learning_rates": [1e-3, 1e-4],
        "tuning_regime": "1",
        "claim_regime": "full",
        "seeds": [3, 4, 5],
        "workers": 0,
    }
    return {**values, **changes}


def make_settings(directory: Path, **changes: Any) -> ExperimentArguments:
    return ExperimentArguments(**make_values(directory, **changes))


def write_settings(directory: Path, **changes: Any) -> Path:
    path = directory / "experiment.yaml"
    path.write_text(yaml.safe_dump(make_values(directory, **changes), sort_keys=False))
    return path


def write_run(
    directory: Path,
    validation_accuracy: float = 0.5,
    correct: np.ndarray | None = None,
    losses: tuple[float, ...] = (3.0, 2.0, 1.0, 0.5),
) -> None:
    """Leave what a finished run leaves."""
    directory.mkdir(parents=True, exist_ok=True)
    correct = np.zeros(IMAGES, bool) if correct is None else correct
    # Rows in an order of their own, as nothing promises one.
    order = np.random.default_rng(len(str(directory))).permutation(IMAGES)
    table = {"image_id": [IDS[row] for row in order], "correct": correct[order]}
    pyarrow.parquet.write_table(pyarrow.table(table), directory / "predictions_test.parquet")
    with (directory / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HISTORY)
        # Before the first step, better than ever after: it must not count as the lowest.
        writer.writerow([0, 0.0, "", 0.01, 0.1])
        for step, loss in enumerate(losses, start=1):
            writer.writerow([step, float(step), loss / 2, loss, validation_accuracy])
            writer.writerow([step, step + 0.5, "", "", ""])
    accuracy = float(correct.mean())
    figures = {"train": 0.9, "validation": validation_accuracy, "test": accuracy}
    metrics = {
        "data": {"description": "made up"},
        "training": {"precision": "no"},
        "environment": {"python": "3", "packages": {"torch": "2"}, "device": "cpu"},
        "splits": {
            split: {"accuracy": value, "recall_macro": value} for split, value in figures.items()
        },
    }
    (directory / "metrics.json").write_text(json.dumps(metrics))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": [1]}, "Unknown key 'learning_rate'"),
        ({"baseline": "softmax"}, "--baseline is 'softmax'; choose one of ce, sig"),
        ({"siglip_arm": "ce"}, "--siglip_arm and --baseline are both 'ce'"),
        ({"arms": {"ce": {"objektive": "x"}, "sig": {}}}, "did you mean objective?"),
        ({"base": {"seed": 1}}, "--base sets 'seed', which seeds decides"),
        ({"arms": ["ce", "sig"]}, "arms has several values"),
        ({"arms": {"a b": {}, "A-B": {}}}, "differ in letters and digits"),
        ({"arms": {"ce": {}, "sig": {**SIG, "label_smoothing_factor": 0.1}}}, "The arm 'sig' in"),
        ({"seeds": [1, 1]}, "--seeds is [1, 1]; give at least one value, each once"),
        ({"learning_rates": [0]}, "--learning_rates is 0.0; it must be greater than 0"),
        ({"steady_part": [0.8, 0.1]}, "--steady_part is [0.8, 0.1]"),
        ({"contrasts": {"loss": {"other": 1}}}, "give a weight per arm"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, capsys, changes, message):
    assert main(["--config", str(write_settings(tmp_path, **changes))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("siglip-flowers experiment: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_what_only_weights_and_data_show_names_arm_and_regime(tmp_path):
    base = {
        "model_name_or_path": str(make_checkpoint(tmp_path / "tiny")),
        "data_dir": str(make_folder(tmp_path / "data")),
    }
    settings = make_settings(tmp_path, base=base, arms={"ce": {}, "sig": {"head_init": "text"}})
    with pytest.raises(InputError, match="The arm 'sig' in the regime '1': "):
        check_runs(settings)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"seeds": [3, 4, 5, 6]}, None),
        ({"arms": {"ce": {}, "sig": SIG, "new": {}}}, None),
        ({"regimes": {"1": {"shots": 1}, "full": {}, "4": {"shots": 4}}}, None),
        ({"learning_rates": [1e-4]}, "learning_rates"),
        ({"seeds": [4, 3, 5]}, "seeds"),
    ],
)
def test_additions_resume_and_changes_are_refused(tmp_path, changes, refused):
    (tmp_path / "out").mkdir()
    claim_directory(make_settings(tmp_path))
    if refused is None:
        claim_directory(make_settings(tmp_path, **changes))
    else:
        with pytest.raises(InputError, match=f"has --{refused} "):
            claim_directory(make_settings(tmp_path, **changes))


def test_arms_override_regimes_and_a_seed_pairs_the_arms(tmp_path):
    settings = make_settings(
        tmp_path,
        base={"ema": 0.1, "weight_decay": 0.1, "label_smoothing_factor": 0.1},
        regimes={"1": {"ema": 0.2, "weight_decay": 0.2}, "full": {}},
        arms={"ce": {"ema": 0.3}, "sig": None},
        head_learning_rate_factor=3,
    )
    one, other = (make_options(settings, Run("1", arm, 1e-3, 4)) for arm in settings.arms)
    assert (one["ema"], one["weight_decay"], one["label_smoothing_factor"]) == (0.3, 0.2, 0.1)
    for key in ("seed", "shots_seed", "data_seed"):
        assert one[key] == other[key] == 4
    assert one["head_learning_rate"] == pytest.approx(3e-3)
    assert "split_seed" not in one  # the test images stay the same over the seeds
    assert one["output_dir"] != other["output_dir"]


class FakeRuns:
    """Replaces training: records which runs were asked for and leaves their files."""

    def __init__(self) -> None:
        self.best = {"ce": 1e-4, "sig": 1e-3}
        self.asked: list[str] = []
        self.stop_after: int | None = None
        self.failing = "nothing"

    def __call__(self, options: dict[str, Any]) -> str | None:
        if len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        directory = Path(options["output_dir"])
        self.asked.append("/".join(directory.parts[-3:]))
        if self.failing in self.asked[-1]:
            return "it went wrong."
        good = options["learning_rate"] == self.best[directory.parts[-2]]
        # Test accuracy says the opposite, so that looking at it would choose the other rate.
        write_run(directory, 0.8 if good else 0.4, np.full(IMAGES, not good))
        (directory / "model").mkdir()
        return None


@pytest.fixture
def fake_runs(monkeypatch):
    fake = FakeRuns()
    monkeypatch.setattr(runs, "execute_run", fake)
    return fake


class TestRunner:
    def test_each_arm_tries_every_rate_once_and_runs_with_its_best(self, tmp_path, fake_runs):
        execute_runs(make_settings(tmp_path))
        trials = {f"1/{arm}/lr{rate}_seed3" for arm in ("ce", "sig") for rate in (0.0001, 0.001)}
        assert set(fake_runs.asked[:4]) == trials
        chosen = itertools.product(("1", "full"), ("ce/lr0.0001", "sig/lr0.001"), (3, 4, 5))
        rest = {f"{regime}/{arm}_seed{seed}" for regime, arm, seed in chosen}
        assert set(fake_runs.asked) == trials | rest
        assert len(fake_runs.asked) == len(trials | rest) == 14

    def test_a_stopped_experiment_resumes_and_an_added_seed_costs_its_runs_only(
        self, tmp_path, fake_runs, capsys
    ):
        settings = make_settings(tmp_path)
        fake_runs.stop_after = 6
        with pytest.raises(KeyboardInterrupt):
            execute_runs(settings)
        before = set(fake_runs.asked)
        fake_runs.asked, fake_runs.stop_after = [], None
        execute_runs(settings)
        assert len(fake_runs.asked) == 14 - 6
        assert not before & set(fake_runs.asked)
        assert "[14/14]" in capsys.readouterr().out.splitlines()[-1]
        fake_runs.asked = []
        execute_runs(make_settings(tmp_path, seeds=[3, 4, 5, 6]))
        assert len(fake_runs.asked) == 4
        assert all(run.endswith("seed6") for run in fake_runs.asked)
        # Weights of runs that were finished before are deleted.
        assert len(list(settings.directory.rglob("model"))) == 4

    def test_a_failed_run_does_not_stop_the_others(self, tmp_path, fake_runs):
        settings = make_settings(tmp_path)
        fake_runs.failing = "full/sig/lr0.001_seed4"
        with pytest.raises(RunError, match=r"1 of 14 .* sig \| full .* seed 4 failed: it went"):
            execute_runs(settings)
        assert len(fake_runs.asked) == 14
        with pytest.raises(RunError, match="seed 4 cannot be read"):
            analyze(settings)


@pytest.fixture
def filled(tmp_path, monkeypatch):
    """Settings with finished runs: as many images are right as the accuracy says."""
    monkeypatch.setattr(statistics, "REPETITIONS", 10)
    settings = make_settings(tmp_path)
    accuracy = {"ce": [0.50, 0.52, 0.54], "sig": [0.60, 0.63, 0.63]}
    for arm, regime, rate in itertools.product(accuracy, settings.regimes, settings.learning_rates):
        for seed, value in zip(settings.seeds, accuracy[arm], strict=True):
            write_run(
                Run(regime, arm, rate, seed).directory(settings),
                validation_accuracy=0.7,
                correct=np.arange(IMAGES) < round(value * IMAGES),
                losses=(2.0, 1.0, 1.0 + 0.5 * (arm == "ce"), 0.8, 0.9),
            )
    return settings


class TestAnalysis:
    def test_known_figures(self, filled):
        found = analyze(filled)
        cell = found.cells["full"]["sig"]
        assert cell.over_seeds["test_accuracy"] == mean_interval([0.60, 0.63, 0.63])
        assert cell.over_seeds["gap"].mean == pytest.approx(0.2)
        assert cell.over_seeds["loss_rise"].mean == pytest.approx(0.1)
        comparison = found.comparisons["full"]["sig"]
        assert comparison.seed_differences == pytest.approx([0.10, 0.11, 0.09])
        assert comparison.accuracy.verdict == "shown"
        # Three seeds are too few for the sign-flip test.
        assert comparison.steadiness.difference < 0
        assert comparison.steadiness.p_value == pytest.approx(0.25)

    def test_contrasts_are_one_family(self, filled):
        filled.contrasts = {"loss": {"sig": 1, "ce": -1}, "half": {"sig": 0.5, "ce": -0.5}}
        found = analyze(filled)
        single = found.comparisons["full"]["sig"].accuracy
        loss, half = found.contrasts.values()
        assert (loss.difference, loss.low, loss.high) == pytest.approx(
            (single.difference, single.low, single.high)
        )
        assert half.difference == pytest.approx(single.difference / 2)
        # Holm's correction of two.
        assert loss.p_value == pytest.approx(2 * single.p_value)
        write_report(filled, found, command="")
        assert (
            "- half (+0.5 sig, -0.5 ce): +5.0 points" in (filled.directory / "table.md").read_text()
        )


class TestReport:
    def test_every_file_is_written(self, filled):
        sentences = write_report(filled, analyze(filled), command="the command")
        out = filled.directory
        assert {path.name for path in out.glob("*.png")} == {
            f"{name}.png" for name in ("loss_siglip", "loss_baseline", "accuracy", "effect")
        }
        results = json.loads((out / "results.json").read_text())
        assert results["command"] == "the command"
        assert results["conclusion"] == sentences
        assert results["arms"]["1"]["ce"]["runs"][1]["test_accuracy"] == pytest.approx(0.52)
        assert results["comparisons"]["full"]["sig"]["accuracy"]["verdict"] == "shown"
        assert results["trials"]["sig"] == pytest.approx({"0.0001": 0.7, "0.001": 0.7})
        table = (out / "table.md").read_text()
        assert all(f"- {sentence}\n" in table for sentence in sentences)
        assert "| ce | 0.0001 | 52.0 ± 2.0 | " in table
        assert "| +10.0 | +7.2 to +13.0 |" in table
        assert "sig minus ce, on the whole training split: +10.0 points" in sentences[0]

    def test_one_seed_has_no_interval(self, filled):
        filled.seeds = [3]
        sentences = write_report(filled, analyze(filled), command="")
        assert sentences[0].endswith(": no difference shown.")
        results = json.loads((filled.directory / "results.json").read_text())
        assert results["comparisons"]["1"]["sig"]["accuracy"]["low"] is None


def test_the_shipped_experiment_is_accepted():
    path = REPOSITORY / "configs" / "experiment_siglip_vs_baseline.yaml"
    options = ExperimentArguments(**yaml.safe_load(path.read_text()))
    check_arms(options)
    assert len(options.arms) == 5


def write_real(directory: Path, **changes: Any) -> Path:
    base = {
        "model_name_or_path": str(make_checkpoint(directory / "tiny")),
        "data_dir": str(make_folder(directory / "data")),
        "bf16": False,
        "per_device_train_batch_size": 2,
        "train_resize_scale": 1.0,
        "max_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    values = {
        "base": base,
        "regimes": {"1": {"shots": 1}},
        "claim_regime": "1",
        "learning_rates": [1e-3],
        "seeds": [0, 1],
        **changes,
    }
    return write_settings(directory, **values)


@pytest.mark.slow
def test_experiment_from_end_to_end(tmp_path, capsys):
    config = write_real(tmp_path)
    assert main(["--config", str(config)]) == 0, capsys.readouterr().err
    out = tmp_path / "out"
    printed = capsys.readouterr().out
    assert "[4/4]" in printed
    assert "The claim, accuracy +1.5 points" in printed
    runs = sorted(path.parent for path in (out / "runs").rglob("metrics.json"))
    assert [str(run.relative_to(out / "runs")) for run in runs] == [
        f"1/{arm}/lr0.001_seed{seed}" for arm in ("ce", "sig") for seed in (0, 1)
    ]
    kept = {"metrics.json", "history.csv", "config.yaml", "predictions_test.parquet"}
    for run in runs:
        assert {path.name for path in run.iterdir()} == kept
    written = {run: (run / "metrics.json").stat().st_mtime_ns for run in runs}

    # One run is lost; the same command does that one and no other.
    shutil.rmtree(runs[3])
    (out / "table.md").unlink()
    assert main(["--config", str(config)]) == 0
    assert "3 of 4 runs were finished before" in capsys.readouterr().out
    assert (out / "table.md").is_file()
    for run in runs[:3]:
        assert (run / "metrics.json").stat().st_mtime_ns == written[run]


@pytest.mark.slow
def test_a_crash_fails_its_run_only(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = write_real(tmp_path, seeds=[0], workers=1)
    # A directory where a file has to go: an error that nobody foresaw.
    broken = tmp_path / "out/runs/1/ce/lr0.001_seed0"
    (broken / "config.yaml").mkdir(parents=True)
    assert main(["--config", str(config)]) == 1
    captured = capfd.readouterr()
    message = "1 of 2 runs are missing, first: ce | 1 | learning rate 0.001 | seed 0 failed: its"
    assert message in captured.err
    assert str(broken / "log.txt") in captured.err
    assert "config.yaml" in (broken / "log.txt").read_text()
    assert (tmp_path / "out/runs/1/sig/lr0.001_seed0/metrics.json").is_file()
    assert not multiprocessing.active_children()
    assert os.environ["OMP_NUM_THREADS"] == "1"
