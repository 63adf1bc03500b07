"""Experiments: options, what is chosen and run, resuming, crashes, analysis and report."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.config.parsing import Command
from siglip_flowers.config.rules import TRAIN_RULES
from siglip_flowers.config.saved import read_yaml
from siglip_flowers.experiment import figures, runs, statistics
from siglip_flowers.experiment.analysis import analyze, measure_run
from siglip_flowers.experiment.command import COMMAND, main
from siglip_flowers.experiment.options import PARTS, ExperimentArguments
from siglip_flowers.experiment.plan import Plan, Rates, Run
from siglip_flowers.experiment.records import CURVE, Record, pack_test, read_record, write_record
from siglip_flowers.experiment.report import write_report
from siglip_flowers.experiment.runs import claim_directory, describe_part, execute_part, make_values
from siglip_flowers.metrics.statistics import mean_interval
from siglip_flowers.training.build import RunArguments
from tests.conftest import REPOSITORY
from tests.small_runs import list_files, make_checkpoint, make_folder

IMAGES = 400
SIG = {"objective": "sigmoid"}


def make_settings(directory: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "name": "tiny",
        "output_dir": str(directory / "out"),
        "losses": {"softmax": {}, "sigmoid": SIG},
        "heads": {"linear": {}, "cosine": {"weight_decay": 0.01}},
        "further": {
            "scratch": {
                "like": "softmax",
                "options": {"from_scratch": True},
                "rates": "tuned",
                "seeds": 2,
            },
            "common rate": {"like": "sigmoid", "rates": "softmax", "seeds": 2},
        },
        "learning_rates": [1e-4, 1e-3, 1e-2],
        "factors": [3],
        "tuning_seeds": [100, 101, 102],
        "claim_seeds": 3,
        "factorial_seeds": 2,
        "epochs": [30, 60],
        "workers": 1,
    }
    return {**values, **changes}


def make_plan(directory: Path, **changes: Any) -> Plan:
    return Plan(ExperimentArguments(**make_settings(directory, **changes)))


def write_settings(directory: Path, **changes: Any) -> Path:
    path = directory / "experiment.yaml"
    path.write_text(yaml.safe_dump(make_settings(directory, **changes), sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": [1]}, "Unknown key 'learning_rate'"),
        ({"losses": {"softmax": {}}}, "--losses must name two losses"),
        ({"heads": {"a b": {}, "A-B": {}}}, "differ in letters and digits"),
        ({"base": {"seed": 1}}, "The experiment decides 'seed' of every run"),
        ({"tuning_seeds": [2**32]}, "--tuning_seeds is 4294967296; it must be between 0 and"),
        ({"heads": {"linear": {"objektive": "x"}}}, "The arm 'softmax, linear': Unknown key"),
        ({"base": {"label_smoothing_factor": 2}}, "--label_smoothing_factor is 2"),
        ({"further": {"x": {"like": "hinge"}}}, "--further x: like is 'hinge'"),
        ({"further": {"x": {"likes": "softmax"}}}, "arm of --further is not understood"),
        ({"further": {"x": {"like": "softmax", "minus": "y"}}}, "--further x: minus is 'y'"),
        ({"tuning_seeds": [1, 100]}, "other runs have the seeds below 3, so name higher ones"),
        ({"further": {"x": {"like": "softmax", "seeds": 200}}}, "seeds below 200"),
        ({"heads": {"linear": None}}, "The options of 'linear' are None; write {} for none"),
        ({"base": {"shots": "many"}}, "The arm 'softmax, linear': shots has an invalid int"),
        ({"epochs": [30, 30]}, "--epochs is [30, 30]; give at least one value, each once"),
        ({"further": {"x": {"like": "softmax", "seeds": 0}}}, "(--seeds is 0; it must be greater"),
        ({"name": "a/b"}, "--name is 'a/b'"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, capsys, changes, message):
    assert main(["--config", str(write_settings(tmp_path, **changes))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("siglip-flowers experiment: error: ")
    assert message in error
    assert error.count("\n") == 1


def make_record(
    score: float = 0.5,
    train_accuracy: float = 1.0,
    correct: np.ndarray | None = None,
    losses: tuple[float, ...] = (3.0, 2.0, 1.0, 0.5),
    images: str = "images",
) -> Record:
    correct = np.zeros(IMAGES, bool) if correct is None else correct
    steps = np.arange(1, len(losses) + 1)
    curve = {
        **{name: [score] * len(losses) for name in CURVE},
        "step": (10 * steps).tolist(),
        "epoch": steps.tolist(),
        "train_nll": [loss / 2 for loss in losses],
        "validation_nll": list(losses),
        "validation_loss": [loss + 1 for loss in losses],
    }
    accuracy = float(correct.mean())
    figures = {"train": train_accuracy, "validation": score, "test": accuracy}
    last = {f"{k}_{kind}": v for k, v in figures.items() for kind in ("accuracy", "macro")}
    environment = {"python": "3", "packages": {"torch": "2"}, "device": "cpu"}
    facts = {"data": "made up", "validation_images": 100, "precision": "no", "seconds": 600.0}
    # In the order of the ids, which is not that of the rows.
    rows = np.random.default_rng(0).permutation(IMAGES)
    labels = rows % 2
    logits = np.eye(2)[np.where(correct[rows], labels, 1 - labels)]
    result: Any = type("Result", (), {"ids": [f"{row:04d}" for row in rows]})()
    result.labels, result.logits = labels, logits
    packed = {**pack_test(result), "images": images}
    return Record({**facts, "environment": environment}, curve, last, last, **packed)


class FakeRuns:
    """Replaces training: a record for each run, whose score and figures are functions of it."""

    def __init__(self) -> None:
        self.asked: list[Run] = []
        self.score = lambda run: 0.5
        self.train_accuracy = lambda run: 1.0
        self.failing: list[str] = []
        self.stop_after: int | None = None

    def __call__(self, plan: Plan, part: str, run: Run) -> None:
        if len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(run)
        if run.name in self.failing:
            raise RunError("it went wrong.")
        write_record(plan.locate(run), make_record(self.score(run), self.train_accuracy(run)))


@pytest.fixture
def fake_runs(monkeypatch):
    fake = FakeRuns()
    monkeypatch.setattr(runs, "do_run", fake)
    sizes = {"train": 1020, "validation": 1020, "test": 6149, "step": 32}
    monkeypatch.setattr(runs, "measure_splits", lambda settings: sizes)
    return fake


def tune(directory: Path, fake: FakeRuns, scores: dict[tuple[float, int], float]) -> list[Run]:
    """Return the runs of an arm whose score depends on rate and seed; others have 0."""
    changes = {"heads": {"linear": {}}, "further": {}}
    fake.score = lambda run: scores.get((run.rates.encoder, run.seed), 0.0)
    execute_part(make_plan(directory, **changes), "tuning")
    return [run for run in fake.asked if run.arm == "softmax, linear"]


class TestTuning:
    def test_the_grid_has_the_first_seed_and_the_best_two_have_all(self, tmp_path, fake_runs):
        scores = {(1e-3, 100): 0.6, (1e-2, 100): 0.7, (1e-3, 101): 0.9, (1e-3, 102): 0.9}
        found = [(run.rates.encoder, run.seed) for run in tune(tmp_path, fake_runs, scores)]
        grid = [(1e-4, 100), (1e-3, 100), (1e-2, 100)]
        assert found[:3] == grid
        assert set(found[3:]) == {(rate, seed) for rate in (1e-3, 1e-2) for seed in (101, 102)}
        plan = make_plan(tmp_path, heads={"linear": {}}, further={})
        # Best with all seeds, though not with the first; within the grid, so nothing follows.
        assert plan.tune("softmax, linear") == Rates(1e-3, 3)

    @pytest.mark.parametrize("beats", [True, False])
    def test_an_edge_counts_if_it_beats_its_inner_neighbor_with_every_seed(
        self, tmp_path, fake_runs, beats
    ):
        scores = {(1e-2, seed): 0.7 for seed in (100, 101, 102)}
        scores |= {(1e-3, seed): 0.6 for seed in (100, 101, 102)}
        scores |= {(0.1, seed): 0.8 for seed in (100, 101, 102)}
        if not beats:
            scores[(1e-3, 102)] = 0.71
        found = [(run.rates.encoder, run.seed) for run in tune(tmp_path, fake_runs, scores)]
        further = [pair for pair in found if pair[0] == 0.1]
        assert further == ([(0.1, 100), (0.1, 101), (0.1, 102)] if beats else [])
        # One step and no more.
        assert max(rate for rate, _ in found) == (0.1 if beats else 1e-2)
        plan = make_plan(tmp_path, heads={"linear": {}}, further={})
        assert plan.tune("softmax, linear").encoder == (0.1 if beats else 1e-2)

    def test_the_neighbor_of_an_edge_gets_all_seeds_even_if_it_is_not_of_the_best_two(
        self, tmp_path, fake_runs
    ):
        scores = {(1e-4, 100): 0.7, (1e-2, 100): 0.6, (1e-4, 101): 0.7, (1e-4, 102): 0.7}
        found = {(run.rates.encoder, run.seed) for run in tune(tmp_path, fake_runs, scores)}
        assert {(1e-3, 101), (1e-3, 102)} <= found
        # Ten times lower again.
        assert {(1e-5, 100), (1e-5, 101), (1e-5, 102)} <= found


def score_arms(run: Run) -> float:
    """Return a score that prefers the cosine head for the sigmoid loss, and the middle rate."""
    better = run.arm in ("softmax, linear", "sigmoid, cosine")
    return 0.5 + 0.2 * better + 0.1 * (run.rates.encoder == 1e-3)


class TestRunner:
    def test_every_part_has_the_runs_of_the_design(self, tmp_path, fake_runs):
        plan, best = make_plan(tmp_path), Rates(1e-3, 3)
        fake_runs.score = score_arms
        execute_part(plan, "tuning")
        # Five arms: the grid of three, and two more seeds for the best two.
        assert len(fake_runs.asked) == 5 * (3 + 2 * 2)
        fake_runs.train_accuracy = lambda run: 0.94 + 0.0005 * (run.epochs - 30)
        for run in fake_runs.asked:
            write_record(plan.locate(run), make_record(score_arms(run), 0.94))
        plan, fake_runs.asked = make_plan(tmp_path), []
        assert plan.choose_claim() == {"softmax": "softmax, linear", "sigmoid": "sigmoid, cosine"}
        execute_part(plan, "length")
        claim = ("softmax, linear", "sigmoid, cosine")
        assert set(fake_runs.asked) == {
            Run(arm, best, 60, seed) for arm in claim for seed in (100, 101, 102)
        }
        assert plan.choose_length() == (60, True)
        assert "claim: 0 of 6 runs finished, about " in describe_part(plan, "claim")
        fake_runs.asked = []
        execute_part(plan, "claim")
        assert fake_runs.asked == [Run(arm, best, 60, seed) for seed in range(3) for arm in claim]
        fake_runs.asked = []
        execute_part(plan, "others")
        others = ("softmax, cosine", "sigmoid, linear", "scratch", "common rate")
        assert fake_runs.asked == [Run(arm, best, 60, seed) for arm in others for seed in range(2)]

    def test_arms_differ_in_what_they_name_and_a_seed_pairs_them(self, tmp_path, fake_runs):
        fake_runs.score = score_arms
        base = {"train_eval_samples": 255, "weight_decay": 0.1}
        plan = make_plan(tmp_path, base=base)
        execute_part(plan, "tuning")
        final = [
            make_values(plan, Run(arm, Rates(1e-3, 3), 30, 4))
            for arm in ("softmax, linear", "sigmoid, cosine", "scratch", "common rate")
        ]
        plain, sigmoid, scratch, common = final
        for values in final:
            assert values["seed"] == values["shots_seed"] == values["data_seed"] == 4
            assert values["head_learning_rate"] == pytest.approx(3e-3)
            # 1020 images are 32 steps of 32 per epoch; 5%, and 20% of 960 steps.
            assert (values["max_steps"], values["eval_steps"]) == (960, 16)
            assert values["warmup_steps"] == 48
            assert values["lr_scheduler_kwargs"] == {"num_decay_steps": 192}
            assert values["train_eval_samples"] == 255
            assert not values["load_best_model_at_end"]
        assert (plain["weight_decay"], sigmoid["weight_decay"]) == (0.1, 0.01)
        assert scratch["from_scratch"]
        assert "objective" not in scratch
        assert common["objective"] == sigmoid["objective"] == "sigmoid"
        assert common["weight_decay"] == 0.01
        tuning = make_values(plan, Run("softmax, linear", Rates(1e-3, 3), 30, 101))
        # Six evaluations in the last three epochs, of all training images.
        evaluated = range(tuning["eval_steps"], 961, tuning["eval_steps"])
        assert len([step for step in evaluated if step >= tuning["eval_delay"]]) == 6
        assert tuning["train_eval_samples"] == 1020

    def test_a_stopped_experiment_resumes_from_a_clone(self, tmp_path, fake_runs):
        fake_runs.score, fake_runs.stop_after = score_arms, 20
        plan = make_plan(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            execute_part(plan, "tuning")
        before = set(fake_runs.asked)
        shutil.copytree(tmp_path / "out" / "records", tmp_path / "clone" / "records")
        fake_runs.asked, fake_runs.stop_after = [], None
        plan = make_plan(tmp_path, output_dir=str(tmp_path / "clone"))
        execute_part(plan, "tuning")
        assert len(fake_runs.asked) == 35 - 20
        assert not before & set(fake_runs.asked)
        assert plan.is_finished("tuning")

    def test_a_failed_run_does_not_stop_the_others(self, tmp_path, fake_runs, capsys):
        fake_runs.score = score_arms
        plan = make_plan(tmp_path)
        fake_runs.failing = ["softmax-linear_lr0.001_x3_60epochs_seed101"]
        fake_runs.train_accuracy = lambda run: 0.9
        execute_part(plan, "tuning")
        with pytest.raises(RunError, match=r"1 run of the part length failed, first: softmax, lin"):
            execute_part(plan, "length")
        assert "seed 101 failed: it went wrong" in capsys.readouterr().out
        assert len(fake_runs.asked) == 35 + 6

    def test_another_design_is_refused_in_the_same_directory(self, tmp_path):
        claim_directory(make_plan(tmp_path).options)
        claim_directory(make_plan(tmp_path, workers=2, parts=["tuning"]).options)
        with pytest.raises(
            InputError, match="with --claim_seeds 3, not 4.* or choose another --output_dir.$"
        ):
            claim_directory(make_plan(tmp_path, claim_seeds=4).options)


@pytest.fixture
def filled(tmp_path, fake_runs, monkeypatch):
    """A finished experiment: as many test images are right as the arm's accuracy says."""
    monkeypatch.setattr(statistics, "REPETITIONS", 10)
    accuracy = {
        "softmax, linear": [0.50, 0.52, 0.54],
        "sigmoid, cosine": [0.60, 0.63, 0.63],
        "softmax, cosine": [0.40, 0.42],
        "sigmoid, linear": [0.45, 0.47],
    }
    fake_runs.score = score_arms
    plan = make_plan(tmp_path)
    claim_directory(plan.options)
    for part in PARTS:
        execute_part(plan, part)
    for part in ("claim", "others"):
        for run in plan.list_part(part):
            share = accuracy.get(run.arm, [0.3] * 3)[run.seed]
            sigmoid = run.arm.startswith("sigmoid")
            record = make_record(
                0.7,
                0.9,
                np.arange(IMAGES) < round(share * IMAGES),
                (2.5, 2.0, 1.0, 1.2 if sigmoid else 1.5, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9),
            )
            write_record(plan.locate(run), record)
    return make_plan(tmp_path)


class TestAnalysis:
    def test_known_figures(self, filled):
        found = analyze(filled)
        assert found.claim == ("softmax, linear", "sigmoid, cosine")
        arm = found.arms["sigmoid, cosine"]
        assert arm.over_seeds["test_accuracy"] == mean_interval([0.60, 0.63, 0.63])
        assert arm.over_seeds["gap"].mean == pytest.approx(0.2)
        assert arm.over_seeds["rise"].mean == pytest.approx(0.1)
        claim = found.comparisons["sigmoid, cosine"]
        assert claim.minus == "softmax, linear"
        assert claim.seed_differences == pytest.approx([0.10, 0.11, 0.09])
        assert claim.accuracy.verdict == "shown"
        steady = claim.measures["steadiness"]
        # Three seeds are too few for the sign-flip test.
        assert steady.difference < 0
        assert (steady.p_value, steady.verdict) == (pytest.approx(0.25), "no difference shown")
        # The fitted loss never moves in these records.
        assert claim.measures["fitted_steadiness"].verdict == "not measurable"

    def test_contrasts_by_hand_and_as_one_family(self, filled):
        found = analyze(filled).contrasts
        # Over the two seeds that all four have: softmax 0.51 and 0.41, sigmoid 0.46 and 0.615.
        assert found["loss"].difference == pytest.approx((0.46 + 0.615 - 0.51 - 0.41) / 2)
        assert found["head"].difference == pytest.approx((0.41 + 0.615 - 0.51 - 0.46) / 2)
        assert found["interaction"].difference == pytest.approx(0.51 + 0.615 - 0.41 - 0.46)
        # Holm's correction of three, each with the smallest p that 10,000 resamples can have.
        assert found["interaction"].p_value == pytest.approx(3 * 2 / 10_001)

    def test_other_test_images_are_refused(self, filled):
        run = filled.list_runs("sigmoid, cosine")[1]
        write_record(filled.locate(run), make_record(images="others"))
        with pytest.raises(RunError, match="'sigmoid, cosine' and 'softmax, linear' were tested"):
            analyze(filled)

    def test_exploratory_arms_may_be_missing_or_have_other_images(self, filled):
        shutil.rmtree(filled.options.directory / "work", ignore_errors=True)
        filled.locate(filled.list_runs("common rate")[1]).unlink()
        for run in filled.list_runs("scratch"):
            write_record(filled.locate(run), make_record(images="others"))
        found = analyze(filled)
        assert "common rate" not in found.arms
        assert "scratch" in found.arms
        assert "scratch" not in found.comparisons

    def test_steadiness_is_of_the_part_with_a_constant_rate(self):
        losses = (3.0, 2.0, 2.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 1.5)
        values = measure_run(make_record(losses=losses))
        # 3, 2, 2.5, 1, ...: the valley is 3, 2.25, 2.25, 1, ...; the last fifth does not count.
        assert values["steadiness"] == pytest.approx((2 * 0.25**2 / 8) ** 0.5)
        assert values["rise"] == 1.0
        # The accuracy is the same everywhere, so the best is the first.
        assert values["best_rise"] == 2.5


class TestReport:
    def test_every_file_is_written(self, filled):
        sentences = write_report(filled, analyze(filled), command="the command")
        out = filled.options.directory
        names = ("loss_siglip", "loss_baseline", "accuracy", "effect", "factorial")
        assert {path.name for path in out.glob("*.png")} == {f"{name}.png" for name in names}
        results = json.loads((out / "results.json").read_text())
        assert results["command"] == "the command"
        assert results["conclusion"] == sentences
        assert results["arms"]["softmax, linear"]["values"]["test_accuracy"][1] == 0.52
        assert results["comparisons"]["sigmoid, cosine"]["accuracy"]["verdict"] == "shown"
        assert results["tuning"][
            "sigmoid, cosine | rates 0.001 x 3 | 30 epochs | seed 100"
        ] == pytest.approx(0.8)
        table = (out / "table.md").read_text()
        assert all(f"- {sentence}\n" in table for sentence in sentences)
        assert "| softmax, linear | 0.001 x 3 | 3 | 52.0 ± 2.0 | " in table
        assert "| sigmoid, cosine | softmax, linear | +10.0 (+7.2 to +13.0) |" in table
        assert "did not overfit" not in " ".join(sentences)
        assert sentences[2].startswith("The claim is ")

    def test_weak_experiments_say_what_they_could_have_seen(self, filled):
        for run in filled.list_tuned("softmax, linear", 30):
            record = make_record(0.75 + 0.05 * (run.seed - 100))
            write_record(filled.locate(run), record)
        sentences = write_report(Plan(filled.options), analyze(Plan(filled.options)), command="")
        assert " points in 90%" in sentences[6]

    def test_figures_show_the_seeds(self, filled, monkeypatch):
        drawn = {}
        monkeypatch.setattr(
            figures, "save_figure", lambda figure, path: drawn.update({path.stem: figure})
        )
        write_report(filled, analyze(filled), command="")
        axes = drawn["loss_baseline"].axes[0]
        lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
        assert lines["validation"][:5] == pytest.approx([2.5, 2.0, 1.0, 1.5, 0.8])
        assert axes.get_ylim() == drawn["loss_siglip"].axes[0].get_ylim()
        axes = drawn["effect"].axes[0]
        assert axes.get_yticklabels()[0].get_text() == "sigmoid, cosine minus softmax,\nlinear"
        seeds = [line for line in axes.get_lines() if line.get_fillstyle() == "none"]
        assert seeds[0].get_xdata() == pytest.approx([10, 11, 9])
        assert {0.0, 1.5} <= {line.get_xdata()[0] for line in axes.get_lines()}


@pytest.mark.parametrize(("name", "cells"), [("siglip_vs_baseline", 4), ("pilot", 2)])
def test_the_shipped_experiments_are_accepted(name, cells):
    path = REPOSITORY / "configs" / f"experiment_{name}.yaml"
    options = ExperimentArguments(**read_yaml(path))
    kinds = tuple(RunArguments.__annotations__.values())
    assert len(options.factorial) == cells
    for _, values in options.list_combinations():
        Command("", "", kinds, TRAIN_RULES).build(values)


def write_real(directory: Path, **changes: Any) -> Path:
    base = {
        "model_name_or_path": str(make_checkpoint(directory / "tiny")),
        "data_dir": str(make_folder(directory / "data")),
        "bf16": False,
        "per_device_train_batch_size": 8,
        "train_resize_scale": 1.0,
    }
    values = {
        "base": base, "heads": {"linear": {}},
        "further": {"short": {"like": "sigmoid", "epochs": 1, "seeds": 1}},
        "learning_rates": [3e-3], "tuning_seeds": [100, 101], "claim_seeds": 2,
        "factorial_seeds": 1, "epochs": [2], **changes,
    }  # fmt: skip
    return write_settings(directory, **values)


@pytest.mark.slow
def test_experiment_from_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(statistics, "REPETITIONS", 5)
    config = str(write_real(tmp_path))
    assert main(["--config", config, "--parts", "tuning"]) == 0, capsys.readouterr().err
    assert "no conclusion until the part claim" in capsys.readouterr().out
    assert main(["--config", config]) == 0
    printed = capsys.readouterr().out
    assert "claim [4/4]" in printed
    assert "others [1/1]" in printed
    assert "The claim is not shown. Accuracy: " in printed
    out = tmp_path / "out"
    names = [f"{loss}-linear_lr0.003_x3_2epochs" for loss in ("sigmoid", "softmax")]
    expected = [f"{name}_seed{seed}.json" for name in names for seed in (0, 1, 100, 101)]
    assert list_files(out / "records") == sorted([*expected, "short_lr0.003_x3_1epochs_seed0.json"])
    records = {path.name: read_record(path) for path in (out / "records").iterdir()}
    final = records["softmax-linear_lr0.003_x3_2epochs_seed0.json"]
    # 24 images are 3 steps per epoch, and an evaluation follows each.
    assert final.curve["step"] == [1, 2, 3, 4, 5, 6]
    assert final.last["test_accuracy"] == pytest.approx(final.unpack_correct().mean())
    assert final.last["validation_accuracy"] == pytest.approx(
        final.curve["validation_accuracy"][-1]
    )
    assert final.last["validation_nll"] == pytest.approx(
        final.curve["validation_nll"][-1], abs=1e-4
    )
    best = max(final.curve["validation_accuracy"])
    assert final.best["validation_accuracy"] == pytest.approx(best)
    tuning = records["softmax-linear_lr0.003_x3_2epochs_seed100.json"]
    assert not any(name.startswith("test") for name in tuning.last)

    # One run is lost; the same command does that one and no other.
    lost = out / "records" / "sigmoid-linear_lr0.003_x3_2epochs_seed1.json"
    before = lost.read_text()
    lost.unlink()
    (out / "table.md").unlink()
    assert main(["--config", config]) == 0
    assert capsys.readouterr().out.count("validation accuracy") == 1
    assert (out / "table.md").is_file()
    again = json.loads(lost.read_text())
    assert again["curve"] == json.loads(before)["curve"]


@pytest.mark.slow
def test_workers_share_the_runs_and_a_broken_run_fails_alone(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = str(write_real(tmp_path, workers=2, tuning_seeds=[100], parts=["tuning"]))
    # A directory where a file has to go.
    broken = tmp_path / "out/records/softmax-linear_lr0.003_x3_2epochs_seed100.json"
    broken.mkdir(parents=True)
    assert main(["--config", config]) == 1
    message = "1 run of the part tuning failed, first: softmax, linear | rates 0.003 x 3"
    assert message in capfd.readouterr().err
    assert (broken.parent / "sigmoid-linear_lr0.003_x3_2epochs_seed100.json").is_file()
    assert COMMAND.prog == "siglip-flowers experiment"
