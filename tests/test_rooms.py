"""Without the folders of features, what is left trains, evaluates and predicts."""

import functools
import json
import shutil

import pytest

from tests.conftest import REPOSITORY
from tests.small_runs import run_python, small_options
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

        return functools.partial(run_python, cwd=tmp_path, path=tmp_path)

    return copy


# In one process: torch is imported once.
COMMANDS = """
import json, sys
from siglip_flowers.commands.main import main
assert not any(main(words) for words in json.loads(sys.argv[1]))
"""


def use_all_commands(run, small):
    image = str(next((small[1] / "test").rglob("*.png")))
    commands = [
        ["train", *small_options(*small, "run", "--max_steps", "2")],
        ["eval", "--model", "run", "--split", "validation"],
        ["predict", image, "--model", "run"],
    ]
    assert image in run("-c", COMMANDS, json.dumps(commands))


def test_core_works_without_any_feature(copy_without, small):
    run = copy_without(FEATURES)
    use_all_commands(run, small)
    commands = run("-m", "siglip_flowers", "--help")
    assert not any(f"  {name} " in commands for name in FEATURES)
    shown = run("train.py", "--help_all") + run("eval.py", "--help_all")
    assert not any(option in shown for option in OF_FEATURES)


@pytest.mark.slow
@pytest.mark.parametrize("feature", sorted(FEATURES))
def test_everything_else_works_without_one_feature(copy_without, small, feature):
    # A pushed card has parts of the report.
    run = copy_without({feature, "publish"} if feature == "report" else {feature})
    use_all_commands(run, small)
    assert f"\n  {feature} " not in run("-m", "siglip_flowers", "--help")
