"""Without the folders of features, what is left trains, evaluates and predicts."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.small_runs import make_checkpoint, make_folder, small_options
from tests.test_layout import FEATURES

OF_FEATURES = ("--push_to_hub", "--report ", "--robustness", "--compare", "--leaderboard", "--tta")


@pytest.fixture
def copy_without(tmp_path):
    """Copy the program without some folders; return a function that runs a command there."""

    def copy(features):
        for name in ("train.py", "eval.py"):
            shutil.copyfile(REPOSITORY / name, tmp_path / name)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / "configs", tmp_path / "configs", ignore=ignored)
        shutil.copytree(REPOSITORY / "siglip_flowers", tmp_path / "siglip_flowers", ignore=ignored)
        for name in features:
            shutil.rmtree(tmp_path / "siglip_flowers" / name)

        def run(*words):
            done = subprocess.run(
                [sys.executable, *words],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        return run

    return copy


def use_all_commands(run, tmp_path):
    options = small_options(
        make_checkpoint(tmp_path / "checkpoint"), make_folder(tmp_path / "images"), "run"
    )
    run("train.py", *options, "--max_steps", "2")
    assert "accuracy" in run("eval.py", "--model", "run", "--split", "validation")
    image = str(next((tmp_path / "images" / "test").rglob("*.png")))
    assert image in run("-m", "siglip_flowers", "predict", image, "--model", "run")


def test_core_works_without_any_feature(copy_without, tmp_path):
    run = copy_without(FEATURES)
    use_all_commands(run, tmp_path)
    commands = run("-m", "siglip_flowers", "--help")
    assert not any(f"  {name} " in commands for name in FEATURES)
    shown = run("train.py", "--help_all") + run("eval.py", "--help_all")
    assert not any(option in shown for option in OF_FEATURES)


@pytest.mark.slow
@pytest.mark.parametrize("feature", sorted(FEATURES))
def test_everything_else_works_without_one_feature(copy_without, tmp_path, feature):
    # A pushed card has parts of the report.
    run = copy_without({feature, "publish"} if feature == "report" else {feature})
    use_all_commands(run, tmp_path)
    assert f"\n  {feature} " not in run("-m", "siglip_flowers", "--help")
