"""Experiment trackers: installed or refused, offline unless logged in, Aim on one process."""

import importlib.util
import os
import sys
import types

import pytest

from siglip_flowers.errors import InputError
from siglip_flowers.training import trackers
from siglip_flowers.training.trackers import build_tracker_callbacks, check_trackers


@pytest.fixture(autouse=True)
def fresh_environment(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--report_to aim needs the package aim.*pip install aim"):
        check_trackers(["aim"])
    check_trackers([])


def test_an_installed_package_is_accepted(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: object())
    check_trackers(["aim", "wandb", "tensorboard", "trackio"])


def test_wandb_without_login_goes_offline():
    assert build_tracker_callbacks(["wandb"]) == []
    assert os.environ["WANDB_MODE"] == "offline"
    del os.environ["WANDB_MODE"]


def test_other_trackers_do_not_touch_wandb():
    build_tracker_callbacks(["tensorboard"])
    assert "WANDB_MODE" not in os.environ


def test_wandb_stays_online_with_a_key(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    build_tracker_callbacks(["wandb"])
    assert "WANDB_MODE" not in os.environ


def test_wandb_stays_online_with_a_login_file(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    build_tracker_callbacks(["wandb"])
    assert "WANDB_MODE" not in os.environ


@pytest.mark.parametrize("text", ["machine elsewhere.org login a password b\n", "garbage {{{\n"])
def test_a_login_file_without_wandb_means_offline(tmp_path, monkeypatch, text):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text(text)
    build_tracker_callbacks(["wandb"])
    assert os.environ.pop("WANDB_MODE") == "offline"


def test_a_mode_that_the_user_chose_is_kept(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    build_tracker_callbacks(["wandb"])
    assert os.environ["WANDB_MODE"] == "disabled"


@pytest.mark.parametrize("main_process", [True, False])
def test_only_the_main_process_logs_to_aim(monkeypatch, main_process):
    # A stand-in with Aim's interface, so that this holds without the package.
    module = types.ModuleType("aim.hugging_face")
    module.AimCallback = lambda experiment: ("aim", experiment)
    monkeypatch.setitem(sys.modules, "aim", types.ModuleType("aim"))
    monkeypatch.setitem(sys.modules, "aim.hugging_face", module)
    state = types.SimpleNamespace(is_main_process=main_process)
    monkeypatch.setattr(trackers, "PartialState", lambda: state)
    expected = [("aim", "siglip_flowers")] if main_process else []
    assert build_tracker_callbacks(["aim"]) == expected


def test_aims_own_callback_can_be_built():
    if importlib.util.find_spec("aim") is None:
        pytest.skip("aim is not installed (pip install siglip_flowers[aim])")
    assert len(build_tracker_callbacks(["aim"])) == 1
