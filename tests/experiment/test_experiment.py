"""Experiments: settings, the tuning protocol, resuming, crashes, analysis and report."""

import csv
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
import torch
import yaml
from scipy import stats

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.experiment import runner
from siglip_flowers.experiment.__main__ import main
from siglip_flowers.experiment.analysis import analyze, measure_run
from siglip_flowers.experiment.conclusion import draw_conclusion
from siglip_flowers.experiment.plan import Run, check_runs, is_finished, run_options
from siglip_flowers.experiment.report import write_report
from siglip_flowers.experiment.runner import execute_runs
from siglip_flowers.experiment.settings import (
    ExperimentSettings,
    claim_directory,
    read_settings,
)
from siglip_flowers.metrics.statistics import conclude, is_shown, mean_interval, paired_bootstrap
from siglip_flowers.runtime.devices import choose_device, count_workers

IMAGES = 400
IDS = [f"image_{number:05d}" for number in range(IMAGES)]


def make_values(directory: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "name": "tiny",
        "output_dir": str(directory / "out"),
        "arms": {"ce": {}, "sig": {"objective": "sigmoid"}},
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


def write_settings(directory: Path, **changes: Any) -> Path:
    path = directory / "experiment.yaml"
    path.write_text(yaml.safe_dump(make_values(directory, **changes), sort_keys=False))
    return path


def make_settings(directory: Path, **changes: Any) -> ExperimentSettings:
    return read_settings(write_settings(directory, **changes))


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
    columns = ["step", "epoch", "train_nll", "validation_nll", "validation_accuracy"]
    with (directory / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        # Before the first step, better than ever after: it must not count as the lowest.
        writer.writerow([0, 0.0, "", 0.01, 0.1])
        for step, loss in enumerate(losses, start=1):
            writer.writerow([step, float(step), loss / 2, loss, validation_accuracy])
    accuracy = float(correct.mean())
    splits = {
        "train": {"accuracy": 0.9, "f1_macro": 0.9},
        "validation": {"accuracy": validation_accuracy, "f1_macro": 0.1},
        "test": {"accuracy": accuracy, "f1_macro": accuracy / 2},
    }
    metrics = {
        "data": {"description": "made up"},
        "training": {"best_validation_accuracy": validation_accuracy, "precision": "no"},
        "environment": {"python": "3", "packages": {"torch": "2"}, "device": "cpu"},
        "start": {"accuracy": 0.1},
        "splits": splits,
    }
    (directory / "metrics.json").write_text(json.dumps(metrics))


class TestSettings:
    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"learning_rate": [1]}, "Unknown key 'learning_rate'.*did you mean learning_rates"),
            ({"baseline": "softmax"}, "baseline is 'softmax'; choose one of the arms: ce, sig"),
            ({"siglip_arm": "ce"}, "siglip_arm and baseline are both 'ce'"),
            ({"tuning_regime": 16}, "tuning_regime is '16'; choose one of the regimes"),
            (
                {"arms": {"ce": {"objektive": "x"}, "sig": {}}},
                "'objektive'; did you mean objective",
            ),
            ({"base": {"seed": 1}}, "base sets 'seed', which comes from seeds"),
            (
                {"regimes": {"1": {"learning_rate": 1}}},
                "'learning_rate'.*comes from learning_rates",
            ),
            ({"arms": ["ce", "sig"]}, "arms must be a mapping"),
            ({"arms": {"a b": {}, "A-B": {}}}, "'a b' and 'A-B' would share one folder"),
            ({"seeds": [1, 1]}, r"seeds is \[1, 1\]; give a list .* each once"),
            ({"seeds": []}, "seeds is \\[\\]; give a list"),
            ({"seeds": [-1]}, "seeds has the value -1"),
            ({"learning_rates": ["high"]}, "learning_rates holds 'high'"),
            ({"learning_rates": [0]}, "learning_rates holds 0; use numbers greater than 0"),
            ({"workers": -1}, "workers has the value -1"),
            ({"name": "a/b"}, "name is 'a/b'"),
        ],
    )
    def test_mistake_gets_one_sentence(self, tmp_path, changes, message):
        with pytest.raises(InputError, match=message) as caught:
            make_settings(tmp_path, **changes)
        assert "\n" not in str(caught.value)

    def test_missing_key_is_named(self, tmp_path):
        values = make_values(tmp_path)
        del values["seeds"]
        (tmp_path / "e.yaml").write_text(yaml.safe_dump(values))
        with pytest.raises(InputError, match="has no 'seeds'"):
            read_settings(tmp_path / "e.yaml")

    def test_rate_without_a_dot_is_a_number(self, tmp_path):
        # YAML 1.1 reads 1e-3 as text.
        assert make_settings(tmp_path, learning_rates=["1e-3", "3e-4"]).learning_rates == [
            3e-4,
            1e-3,
        ]

    def test_wrong_value_names_arm_and_regime_before_any_run(self, tmp_path, nano_dir, flowers_dir):
        base = {"model_name_or_path": str(nano_dir), "data_dir": str(flowers_dir)}
        settings = make_settings(
            tmp_path, base=base, arms={"ce": {}, "sig": {"pooling": "mean", "head_init": "text"}}
        )
        with pytest.raises(InputError, match="The arm 'sig' in the regime '1': --pooling mean"):
            check_runs(settings)
        settings = make_settings(tmp_path, base=base, regimes={"1": {"shots": "one"}, "full": {}})
        with pytest.raises(InputError, match="regime '1': .*shots.*invalid int value: 'one'"):
            check_runs(settings)

    def test_commands_mistakes_exit_with_2(self, tmp_path, capsys):
        assert main(["--config", str(tmp_path / "none.yaml")]) == 2
        assert main([]) == 2
        assert main(["--config", str(write_settings(tmp_path)), "--workers", "-2"]) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 3
        assert "cannot be read" in errors[0]
        assert "--config" in errors[1]
        assert "--workers is -2" in errors[2]


class TestContinuation:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"workers": 3},
            {"seeds": [3, 4, 5, 6]},
            {"arms": {"ce": {}, "sig": {"objective": "sigmoid"}, "new": {}}},
            {"regimes": {"1": {"shots": 1}, "full": {}, "4": {"shots": 4}}},
        ],
    )
    def test_additions_go_on(self, tmp_path, changes):
        claim_directory(make_settings(tmp_path))
        claim_directory(make_settings(tmp_path, **changes))

    @pytest.mark.parametrize(
        "key, value",
        [
            ("learning_rates", [1e-4]),
            ("base", {"weight_decay": 0.1}),
            ("seeds", [4, 3, 5]),
            ("seeds", [3, 4]),
            ("arms", {"ce": {"ema": 0.9}, "sig": {"objective": "sigmoid"}}),
            ("tuning_regime", "full"),
        ],
    )
    def test_changes_are_refused(self, tmp_path, key, value):
        claim_directory(make_settings(tmp_path))
        with pytest.raises(InputError, match=f"has other {key} "):
            claim_directory(make_settings(tmp_path, **{key: value}))


class TestPlan:
    def test_seed_pairs_the_arms(self, tmp_path):
        settings = make_settings(tmp_path, head_learning_rate_factor=3)
        options = [run_options(settings, Run("1", arm, 1e-3, 4)) for arm in settings.arms]
        for key in ("seed", "shots_seed", "data_seed"):
            assert [each[key] for each in options] == [4, 4]
        assert options[0]["head_learning_rate"] == pytest.approx(3e-3)
        assert "split_seed" not in options[0]  # the test images stay the same over the seeds
        assert options[0]["output_dir"] != options[1]["output_dir"]

    def test_arm_overrides_regime_overrides_base(self, tmp_path):
        settings = make_settings(
            tmp_path,
            base={"ema": 0.1, "weight_decay": 0.1, "label_smoothing_factor": 0.1},
            regimes={"1": {"ema": 0.2, "weight_decay": 0.2}, "full": {}},
            arms={"ce": {"ema": 0.3}, "sig": {}},
        )
        options = run_options(settings, Run("1", "ce", 1e-3, 3))
        assert (options["ema"], options["weight_decay"]) == (0.3, 0.2)
        assert options["label_smoothing_factor"] == 0.1


class FakeRuns:
    """Replaces training: records which runs were asked for and leaves their files."""

    def __init__(self, best: dict[str, float]) -> None:
        self.best = best
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
        arm = directory.parts[-2]
        good = options["learning_rate"] == self.best[arm]
        # Test accuracy says the opposite, so that looking at it would choose the other rate.
        correct = np.full(IMAGES, not good)
        write_run(directory, 0.8 if good else 0.4, correct)
        (directory / "model").mkdir()
        return None


@pytest.fixture
def fake_runs(monkeypatch):
    fake = FakeRuns({"ce": 1e-4, "sig": 1e-3})
    monkeypatch.setattr(runner, "execute_run", fake)
    return fake


class TestRunner:
    def test_each_arm_gets_every_rate_once_and_resumes_with_its_best(self, tmp_path, fake_runs):
        settings = make_settings(tmp_path)
        execute_runs(settings)
        trials = {f"1/{arm}/lr{rate}_seed3" for arm in ("ce", "sig") for rate in (0.0001, 0.001)}
        assert set(fake_runs.asked[:4]) == trials
        rest = {
            f"{regime}/{arm}/lr{rate}_seed{seed}"
            for arm, rate in (("ce", 0.0001), ("sig", 0.001))
            for regime in ("1", "full")
            for seed in (3, 4, 5)
        }
        assert set(fake_runs.asked) == trials | rest
        assert len(fake_runs.asked) == len(trials | rest) == 14

    def test_of_equal_rates_the_lower_is_taken(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            runner, "execute_run", lambda options: write_run(Path(options["output_dir"]))
        )
        settings = make_settings(tmp_path)
        execute_runs(settings)
        cells, _ = analyze(settings)
        assert {cell.learning_rate for row in cells.values() for cell in row.values()} == {1e-4}

    def test_stopped_experiment_resumes(self, tmp_path, fake_runs, capsys):
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
        execute_runs(settings)
        assert fake_runs.asked == []

    def test_added_seed_costs_its_runs_only(self, tmp_path, fake_runs):
        execute_runs(make_settings(tmp_path))
        fake_runs.asked = []
        execute_runs(make_settings(tmp_path, seeds=[3, 4, 5, 6]))
        assert len(fake_runs.asked) == 4
        assert all(run.endswith("seed6") for run in fake_runs.asked)

    def test_failed_run_does_not_stop_the_others(self, tmp_path, fake_runs):
        settings = make_settings(tmp_path)
        fake_runs.failing = "full/sig/lr0.001_seed4"
        with pytest.raises(
            RunError,
            match=r"1 of 14 runs are missing, first: sig \| full .* seed 4 failed: it went",
        ):
            execute_runs(settings)
        assert len(fake_runs.asked) == 14
        with pytest.raises(RunError, match="seed 4 cannot be read"):
            analyze(settings)

    def test_finished_runs_left_with_weights_are_tidied(self, tmp_path, fake_runs):
        settings = make_settings(tmp_path)
        execute_runs(settings)
        execute_runs(settings)
        assert not list(settings.directory.rglob("model"))


def fill(
    settings: ExperimentSettings, accuracy: dict[str, list[float]], spread: float = 0.0
) -> None:
    """Leave finished runs: images are right from the first on, as many as the accuracy says."""
    for arm, values in accuracy.items():
        for regime in settings.regimes:
            for seed, value in zip(settings.seeds, values, strict=True):
                for rate in settings.learning_rates:
                    correct = np.arange(IMAGES) < round(value * IMAGES)
                    write_run(
                        Run(regime, arm, rate, seed).directory(settings),
                        validation_accuracy=0.7,
                        correct=correct,
                        losses=(2.0, 1.0, 1.0 + spread * (arm == "ce"), 0.8, 0.9),
                    )


class TestAnalysis:
    def test_known_figures(self, tmp_path):
        settings = make_settings(tmp_path)
        fill(settings, {"ce": [0.50, 0.52, 0.54], "sig": [0.60, 0.63, 0.63]})
        cells, comparisons = analyze(settings)
        cell = cells["full"]["sig"]
        expected = mean_interval([0.60, 0.63, 0.63])
        got = cell.over_seeds["test_accuracy"]
        assert got.mean == pytest.approx(expected.mean, abs=2e-3)
        assert cell.over_seeds["overfitting_gap"].mean == pytest.approx(0.2)
        assert cell.over_seeds["loss_rise"].mean == pytest.approx(0.1)
        assert [run.start_accuracy for run in cell.runs] == [0.1] * 3
        comparison = comparisons["full"]["sig"]
        differences = np.array([0.10, 0.11, 0.09])
        assert comparison.accuracy.seed_differences == pytest.approx(differences)
        low, high = stats.t.interval(
            0.95, 2, loc=differences.mean(), scale=differences.std(ddof=1) / 3**0.5
        )
        assert (comparison.over_seeds.low, comparison.over_seeds.high) == pytest.approx((low, high))
        assert comparison.shown

    def test_p_is_corrected_over_all_comparisons(self, tmp_path):
        settings = make_settings(tmp_path)
        fill(settings, {"ce": [0.50, 0.52, 0.54], "sig": [0.60, 0.63, 0.63]})
        _, comparisons = analyze(settings)
        both = [row["sig"] for row in comparisons.values()]
        assert [item.corrected_p for item in both] == pytest.approx(
            [2 * item.accuracy.p_value for item in both]
        )

    def test_no_difference_says_so(self, tmp_path):
        settings = make_settings(tmp_path)
        fill(settings, {"ce": [0.50, 0.52, 0.54], "sig": [0.50, 0.52, 0.54]})
        _, comparisons = analyze(settings)
        sentences = draw_conclusion(settings, comparisons)
        assert sentences[0].startswith("No difference shown: sig minus ce is 0.0 points")
        assert "with 1 training image per class" in sentences[0]
        assert "on the whole training split" in sentences[1]
        assert "is not shown" in sentences[2]
        assert "no difference in accuracy is shown" in sentences[2]

    def test_difference_of_one_seed_in_three_is_not_claimed(self, tmp_path):
        # The images alone are convincing, the seeds are not.
        settings = make_settings(tmp_path)
        fill(settings, {"ce": [0.30, 0.30, 0.30], "sig": [0.35, 0.33, 0.75]})
        _, comparisons = analyze(settings)
        comparison = comparisons["full"]["sig"]
        assert comparison.accuracy.low > 0
        assert comparison.over_seeds.low < 0
        assert not comparison.shown
        sentence = draw_conclusion(settings, comparisons)[1]
        assert sentence.startswith("No difference shown")
        assert "over seeds -" in sentence

    def test_claim_is_shown_when_both_parts_are(self, tmp_path):
        settings = make_settings(tmp_path)
        fill(settings, {"ce": [0.50, 0.52, 0.54], "sig": [0.60, 0.63, 0.63]}, spread=0.5)
        _, comparisons = analyze(settings)
        verdict = draw_conclusion(settings, comparisons)[2]
        assert "more steadily, is shown on the whole training split" in verdict
        assert "rises by 10.0 points, which is more than claimed" in verdict
        assert "the validation loss is steadier (-" in verdict

    def test_gain_without_steadiness_is_part_of_the_claim(self, tmp_path):
        settings = make_settings(tmp_path)
        fill(settings, {"ce": [0.50, 0.52, 0.54], "sig": [0.60, 0.63, 0.63]})
        _, comparisons = analyze(settings)
        verdict = draw_conclusion(settings, comparisons)[2]
        assert "is shown in part" in verdict
        assert "no difference in the steadiness" in verdict

    def test_loss_is_no_gain(self, tmp_path):
        settings = make_settings(tmp_path)
        fill(settings, {"ce": [0.60, 0.63, 0.63], "sig": [0.50, 0.52, 0.54]})
        _, comparisons = analyze(settings)
        sentences = draw_conclusion(settings, comparisons)
        assert sentences[1].startswith("Sig falls short of ce by 10.0 points")
        assert "is not shown" in sentences[2]
        assert "accuracy falls by 10.0 points" in sentences[2]

    def test_other_test_images_are_refused(self, tmp_path):
        settings = make_settings(tmp_path)
        fill(settings, {"ce": [0.5] * 3, "sig": [0.5] * 3})
        path = Run("full", "sig", 1e-4, 4).directory(settings) / "predictions_test.parquet"
        table = pyarrow.table({"image_id": ["other"], "correct": [True]})
        pyarrow.parquet.write_table(table, path)
        with pytest.raises(RunError, match="'sig' and the baseline were tested on different"):
            analyze(settings)

    def test_start_is_no_part_of_the_curve(self):
        splits = {name: {"accuracy": 0.5, "f1_macro": 0.5} for name in ("train", "validation")}
        splits["test"] = splits["train"]
        rows: list[dict[str, float | None]] = [
            {"step": step, "validation_nll": loss}
            for step, loss in ((0, 0.1), (1, 3.0), (2, 2.0), (3, None), (4, 2.5), (5, 1.0))
        ]
        values = measure_run({"splits": splits}, rows)
        assert values["loss_rise"] == 0.0
        # 3, 2, 2.5, 1: the valley is 3, 2.25, 2.25, 1.
        assert values["steadiness"] == pytest.approx((2 * 0.25**2 / 4) ** 0.5)


class TestShownRule:
    def test_seeds_must_agree_with_the_bootstrap(self):
        right_a, right_b = np.ones((3, 100), bool), np.zeros((3, 100), bool)
        difference = paired_bootstrap(right_a, right_b)
        assert is_shown(difference)
        assert is_shown(difference, over_seeds=mean_interval([1.0, 0.9, 1.0]))
        assert not is_shown(difference, over_seeds=mean_interval([1.0, 0.1, 0.1]))
        assert not is_shown(difference, over_seeds=mean_interval([-1.0, -0.9, -1.0]))
        assert not is_shown(difference, over_seeds=mean_interval([1.0]))
        assert not is_shown(difference, corrected_p=0.2)
        sentence = conclude(
            difference, "A", "B", "accuracy", over_seeds=mean_interval([1.0, 0.1, 0.1])
        )
        assert sentence.startswith("no difference shown: A minus B is 100.0 points")


class TestReport:
    def test_every_file_is_written(self, tmp_path):
        settings = make_settings(tmp_path)
        fill(settings, {"ce": [0.50, 0.52, 0.54], "sig": [0.60, 0.63, 0.63]}, spread=0.5)
        sentences = write_report(settings, *analyze(settings), command="the command")
        out = settings.directory
        for name in ("loss_siglip", "loss_baseline", "accuracy", "shots"):
            assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / "conclusion.txt").read_text().splitlines() == sentences
        results = json.loads((out / "results.json").read_text())
        assert results["command"] == "the command"
        assert results["arms"]["1"]["ce"]["runs"][1]["test_accuracy"] == pytest.approx(0.52)
        assert results["comparisons"]["full"]["sig"]["shown"] is True
        assert len(results["trials"]["sig"]) == 2
        table = (out / "table.md").read_text()
        assert "| sig | +10.0 | " in table
        assert "| ce | 0.0001 | 52.0 ± 2.0 | " in table
        assert "Steadiness" in table

    def test_one_seed_has_no_interval(self, tmp_path):
        settings = make_settings(tmp_path, seeds=[3])
        fill(settings, {"ce": [0.5], "sig": [0.6]})
        sentences = write_report(settings, *analyze(settings), command="")
        assert sentences[0].startswith("No difference shown")
        assert (
            json.loads((settings.directory / "results.json").read_text())["comparisons"]["1"][
                "sig"
            ]["over_seeds"]["low"]
            is None
        )


class TestWorkers:
    def test_devices_are_dealt_out(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert [choose_device(index) for index in range(3)] == ["0", "1", "0"]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        assert [choose_device(index) for index in range(3)] == ["4", "7", "4"]
        assert count_workers(None) == 2
        assert count_workers(1) == 1

    def test_without_devices_there_is_one_worker(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        assert choose_device(0) is None
        assert count_workers(None) == 1


def make_real(directory: Path, nano_dir: Path, flowers_dir: Path, **changes: Any) -> Path:
    base = {
        "model_name_or_path": str(nano_dir),
        "data_dir": str(flowers_dir),
        "attn_implementation": "eager",
        "max_eval_samples": 32,
        "train_eval_samples": 32,
        "per_device_train_batch_size": 16,
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
class TestRealRuns:
    def test_experiment_from_end_to_end(self, tmp_path, nano_dir, flowers_dir, capsys):
        config = make_real(tmp_path, nano_dir, flowers_dir)
        assert main(["--config", str(config)]) == 0, capsys.readouterr().err
        out = tmp_path / "out"
        printed = capsys.readouterr().out
        assert "[4/4]" in printed
        assert "No difference shown" in printed
        runs = sorted(path.parent for path in (out / "runs").rglob("metrics.json"))
        assert [str(run.relative_to(out / "runs")) for run in runs] == [
            f"1/{arm}/lr0.001_seed{seed}" for arm in ("ce", "sig") for seed in (0, 1)
        ]
        kept = {"metrics.json", "history.csv", "config.yaml", "predictions_test.parquet"}
        for run in runs:
            assert {path.name for path in run.iterdir()} == kept
        # Another seed trains on other images and is tested on the same ones.
        ids = [
            pyarrow.parquet.read_table(run / "predictions_test.parquet")["image_id"].to_pylist()
            for run in runs
        ]
        assert ids[0] == ids[1] == ids[2] == ids[3]
        written = {run: (run / "metrics.json").stat().st_mtime_ns for run in runs}

        # One run is lost; the same command does that one and no other.
        shutil.rmtree(runs[3])
        (out / "table.md").unlink()
        assert main(["--config", str(config)]) == 0
        assert "3 of 4 runs were finished before" in capsys.readouterr().out
        assert (out / "table.md").is_file()
        for run in runs[:3]:
            assert (run / "metrics.json").stat().st_mtime_ns == written[run]
        assert is_finished(runs[3])

    def test_crash_fails_its_run_only(self, tmp_path, nano_dir, flowers_dir, capfd, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        config = make_real(tmp_path, nano_dir, flowers_dir, seeds=[0], workers=1)
        # A directory where a file has to go: an error that nobody foresaw.
        broken = tmp_path / "out/runs/1/ce/lr0.001_seed0"
        (broken / "config.yaml").mkdir(parents=True)
        assert main(["--config", str(config)]) == 1
        captured = capfd.readouterr()
        assert (
            "1 of 2 runs are missing, first: ce | 1 | learning rate 0.001 | seed 0 failed: its"
            in (captured.err)
        )
        assert str(broken / "log.txt") in captured.err
        assert "config.yaml" in (broken / "log.txt").read_text()
        assert is_finished(tmp_path / "out/runs/1/sig/lr0.001_seed0")
        assert not multiprocessing.active_children()
        assert os.environ["OMP_NUM_THREADS"] == "1"
