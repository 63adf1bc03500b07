"""Names of models, data and configurations: paths, Hub ids, and what is said if there is none."""

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from siglip_flowers.base.errors import RunError
from siglip_flowers.base.paths import check_dataset, is_path
from siglip_flowers.base.text import is_hub_id
from siglip_flowers.commands import eval as eval_command
from siglip_flowers.commands import predict as predict_command
from siglip_flowers.commands import train as train_command
from tests.conftest import REPOSITORY


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a run without weights in results/, and a file."""
    (tmp_path / "results" / "bare").mkdir(parents=True)
    (tmp_path / "results" / "bare" / "metrics.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "path", "hub"),
    [
        *((name, False, True) for name in ("garden/flowers", "a/b", "Org-1/x_y.z")),
        *((name, True, False) for name in ("./a", "../a/b", "/a", "~/a", "a\\b", "a/b/c", "..")),
        *((name, True, True) for name in ("results/nope", "results/bare")),
        *((name, False, False) for name in ("flowers", "a/-b", "a/b.git", "a/b..c", "a b/c")),
        *((name, False, False) for name in ("a/b\n", "a/" + "x" * 97)),
        ("C:/models", True, False),
    ],
)
def test_paths_are_told_from_names_of_the_hub(place, name, path, hub):
    assert (is_path(name), is_hub_id(name)) == (path, hub)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("results/nope", "results/nope does not exist; the nearest existing directory is results."),
        ("results/nope/model", "directory is results."),
        ("../nowhere/x", "directory is {place.parent}."),
        ("./nowhere", "directory is {place}."),
        ("results/bare", "The run in results/bare has no weights: results/bare/model does not"),
        ("results/bare/model", "The run in results/bare has no weights"),
        ("results", "The model directory results contains no config.json"),
        ("notes.txt", "notes.txt is a file; name the directory"),
        ("checkpoint", "'checkpoint' is neither a directory nor a Hub id"),
    ],
)
def test_a_path_without_a_model_is_never_asked_for_on_the_hub(place, capsys, name, message):
    (place / "image.jpg").write_bytes(b"")
    for command, *argv in (
        (train_command, "--data_source", "procedural", "--model_name_or_path"),
        (eval_command, "--model"),
        (predict_command, "image.jpg", "--model"),
    ):
        assert command.main([*argv, name]) == 2
        error = capsys.readouterr().err
        assert message.format(place=place) in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("answers", [False, True], ids=["refused", "silent"])
def test_without_a_network_a_hub_id_fails_at_once(place, capsys, monkeypatch, answers):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            # Connections are made, and nothing ever comes back.
            server.listen()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        start = time.monotonic()
        assert eval_command.main(["--model", "org/name"]) == 1
        # With the model in the cache, the data would be next.
        with pytest.raises(RunError, match="'org/data' cannot be loaded"):
            check_dataset("org/data")
        assert time.monotonic() - start < 5
    error = capsys.readouterr().err
    assert f"{address} cannot be reached, and the model is not in the cache" in error
    assert error.count("\n") == 1


def test_paths_in_a_yaml_are_looked_for_beside_it_first(place, monkeypatch):
    folder = place / "settings"
    (folder / "images").mkdir(parents=True)
    text = "data_dir: images\noutput_dir: images\nmodel_name_or_path: ../elsewhere\n"
    (folder / "mine.yaml").write_text(text)
    argv = ["--config", "settings/mine.yaml"]
    data, model, training, *_ = train_command.COMMAND.parse(argv)
    assert data.data_dir == os.path.join("settings", "images")
    # What is written goes into the working directory, and so does what is not there.
    assert (training.output_dir, model.model_name_or_path) == ("images", "../elsewhere")
    # A saved configuration has paths as seen from the working directory.
    (folder / "mine.yaml").write_text(f"# siglip_flowers 0.2.0\n{text}")
    assert train_command.COMMAND.parse(argv)[0].data_dir == "images"
    assert train_command.COMMAND.parse([*argv, "--data_dir", "x"])[0].data_dir == "x"


@pytest.mark.parametrize("name", [str(REPOSITORY / "configs" / "demo.yaml"), "demo"])
def test_the_demo_is_found_from_anywhere(place, name):
    _, model, training, *_ = train_command.COMMAND.parse(["--config", name])
    config = json.loads((Path(model.model_name_or_path) / "config.json").read_text())
    assert config["model_type"].startswith("siglip")
    assert training.output_dir == "results/demo"


def test_configurations_go_by_name(place, capsys):
    assert train_command.COMMAND.parse(["--config", "lora"])[1].lora_r == 16
    assert train_command.main(["--config", "lara"]) == 2
    assert "There is no configuration 'lara'. Name a YAML file, or one of default, demo," in (
        capsys.readouterr().err
    )


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="this is no checkout")
def test_what_commands_of_the_documentation_write_is_not_tracked():
    written = [
        *("metrics.json", "my-run/config.yaml", "my-run/report_test/report.html", "lora/adapter/x"),
        *("search/best.yaml", "nano_64px/report_test/report.html", "nano_64px/.lock-holder.json"),
        *("experiments/siglip_vs_baseline/work/x", "experiments/mine/table.md"),
    ]
    paths = [f"results/{name}" for name in written]
    command = ["git", "-C", str(REPOSITORY), "check-ignore", "--no-index", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == paths
