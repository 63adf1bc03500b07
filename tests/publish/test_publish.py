"""Publishing from end to end: both commands and the real client against a Hub on loopback.

What was pushed then works on a machine without this package.
"""

import contextlib
import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.commands import train as train_command
from siglip_flowers.model.loading import load_saved_classifier
from siglip_flowers.publish import command as publish_command
from siglip_flowers.publish.check import _compare
from siglip_flowers.publish.command import name_run
from siglip_flowers.publish.finished import PREDICTIONS_FILE, read_finished_run
from siglip_flowers.publish.hub import explained_errors
from tests.publish.hub_server import TOKEN, Fault, serve_hub
from tests.publish.small_hub import ODD_NAME, hub_environment, publish_small_runs
from tests.small_runs import list_files, small_options

PUSHED = {
    *("README.md", "config.json", "preprocessor_config.json", "model.safetensors"),
    *("metrics.json", "history.csv", "loss_plot.png", "accuracy_plot.png"),
}
FAULTS = """
import json, sys
from pathlib import Path
from siglip_flowers.base.errors import RunError
from siglip_flowers.publish.hub import check_hub_access, push_directory
directory, names = json.load(sys.stdin)
messages = []
for name in names:
    try:
        check_hub_access(name)
        push_directory(Path(directory), name, message="a test")
        messages.append(None)
    except RunError as error:
        messages.append(str(error))
json.dump(messages, sys.stdout)
"""

STRANGER = """
import importlib.util, json, sys
from transformers import pipeline, SiglipForImageClassification
images = json.load(sys.stdin)
def classify(name, **options):
    classifier = pipeline("image-classification", model=name, **options)
    rows = [{row["label"]: row["score"] for row in answer} for answer in classifier(images)]
    return {"class": type(classifier.model).__name__, "rows": rows}
def refusal(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
answers = json.dumps(
    {
        "has_package": importlib.util.find_spec("siglip_flowers") is not None,
        "mean": classify("garden/mean"),
        "untrusted": refusal(lambda: classify("garden/map")),
        "map": classify("garden/map", trust_remote_code=True),
    }
)
# Asked whether to trust the code, the library has printed its question on this line.
print()
print(answers)
"""


@pytest.fixture(scope="module")
def published():
    return publish_small_runs()


@pytest.fixture
def copied(published, tmp_path):
    """A copy of a finished run, to be spoilt."""
    return Path(shutil.copytree(published.run("mean"), tmp_path / "run"))


def test_a_cut_upload_is_tried_again_and_the_run_is_pushed(published):
    assert published.trained_map.code == 0, published.trained_map.errors
    assert "classifies 12 test images as recorded" in published.trained_map.output
    assert f"published: {published.hub.endpoint}/garden/map" in published.trained_map.output
    pushed = published.hub.repositories["garden/map"]
    assert set(pushed.files) >= PUSHED | {"modeling_siglip_classifier.py"}
    # Images of the data set, and what is of this machine.
    assert not [name for name in pushed.files if name.startswith(("example", "config.yaml"))]
    assert pushed.commits == ["Publish the classifier"]
    uploads = [line for line in published.hub.requests if line.startswith("PUT")]
    assert len(uploads) == len(set(uploads)) + 1


def test_a_failed_push_leaves_a_whole_run_and_says_how_to_go_on(published):
    step = published.failed_mean
    assert step.code == 1
    (line,) = [line for line in step.errors.splitlines() if "error:" in line]
    assert "the Hub failed (500)" in line
    again = f"python -m siglip_flowers.publish {published.run('mean')} --hub_model_id garden/mean"
    assert again in line
    assert "Traceback" not in step.errors


def test_the_command_typed_again_uploads_only_what_is_missing(published):
    step = published.resumed_mean
    assert step.code == 0, step.errors
    assert not [line for line in published.requests_of_resumed if line.startswith("PUT")]
    pushed = set(published.hub.repositories["garden/mean"].files)
    assert pushed >= PUSHED
    assert "modeling_siglip_classifier.py" not in pushed
    assert len(published.hub.repositories["garden/mean"].commits) == 1


@pytest.mark.parametrize("name", ["map", "mean"])
def test_what_was_pushed_belongs_together(published, name):
    files = published.hub.repositories[f"garden/{name}"].files
    metrics = json.loads(files["metrics.json"])
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert metrics["weights"] == {"model.safetensors": digest}
    card = ModelCard(files["README.md"].decode())
    assert digest in card.text
    recorded = json.loads((published.run(name) / "metrics.json").read_text())["splits"]["test"]
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["test accuracy"] == recorded["accuracy"]
    assert values["test F1 (macro)"] == recorded["f1_macro"]
    assert values["test loss"] == recorded["loss"]
    config = json.loads(files["config.json"])
    expected = {"map": "SiglipClassifier", "mean": "SiglipForImageClassification"}[name]
    assert config["architectures"] == [expected]
    assert ("auto_map" in config) is (name == "map")
    assert ODD_NAME in config["label2id"]


def test_nothing_of_the_machine_and_no_token_is_pushed_or_saved(published):
    for name in ("map", "mean"):
        for path, data in published.hub.repositories[f"garden/{name}"].files.items():
            assert TOKEN.encode() not in data, path
            assert str(published.root).encode() not in data, path
            assert str(Path.home()).encode() + b"/" not in data, path
        settings = yaml.safe_load((published.run(name) / "config.yaml").read_text())
        assert not {"hub_token", "push_to_hub"} & set(settings)
        for path in published.run(name).rglob("*"):
            assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path
    for step in (published.trained_map, published.failed_mean, published.resumed_mean):
        assert TOKEN not in step.output + step.errors


def test_every_answer_of_the_hub_is_one_clear_sentence(tmp_path):
    (tmp_path / "notes.txt").write_text("A file like any other.")
    expected = {
        "me/a": (Fault("GET", "whoami", 401), "does not accept the token.*hf auth login"),
        "me/b": (Fault("POST", "repos/create", 403), "may not write there.*write access"),
        "me/c": (Fault("POST", "repos/create", 404), "does not know that organization"),
        "me/d": (
            Fault("POST", "repos/create", 429, headers={"Retry-After": "7"}),
            "no more requests.*wait 7 seconds",
        ),
        "me/e": (Fault("POST", "me/e/commit", 500), r"the Hub failed \(500\).*again later"),
        "me/f": (Fault("POST", "me/f/commit"), "dropped the connection.*check the network"),
    }
    with serve_hub() as hub:
        hub.faults += [fault for fault, _ in expected.values()]
        messages = answer_faults(hub.endpoint, tmp_path, list(expected))
    for (name, (_, pattern)), message in zip(expected.items(), messages, strict=True):
        assert message.startswith(f"{name} could not be pushed: "), message
        assert re.search(pattern, message), message
        assert "\n" not in message
        assert TOKEN not in message
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
    (message,) = answer_faults(closed, tmp_path, ["me/a"])
    assert f"{closed} cannot be reached" in message


class XetAuthenticationError(PermissionError):
    """As hf_xet's, whose compiled module is optional."""


class ProxyError(Exception):
    """As the HTTP client's."""


@pytest.mark.parametrize(
    ("error", "pattern"),
    [
        (ConnectionError("HTTP status client error (403 Forbidden) for url (x)"), r"\(403\)"),
        (ConnectionError("HTTP status server error (503 Service Unavailable)"), r"failed \(503\)"),
        (ConnectionError("Too Many Requests, status code: 429"), r"no more requests.*\(429\)"),
        (ConnectionError("error sending request to 10.0.0.1:4040"), "cannot be reached"),
        (XetAuthenticationError("Authentication error: token refresh"), "not accept the token"),
        (XetAuthenticationError("HTTP status client error (403 Forbidden)"), r"\(403\)"),
        (ProxyError("503"), r"cannot be reached.*ProxyError"),
    ],
)
def test_errors_of_uploads_over_xet_are_told_apart(error, pattern):
    with pytest.raises(RunError, match=pattern) as caught, explained_errors("me/x"):
        raise error
    assert str(caught.value).startswith("me/x could not be pushed: ")
    with pytest.raises(PermissionError), explained_errors("me/x"):
        raise PermissionError("a file of this machine")


def answer_faults(endpoint, directory, names):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        input=json.dumps([str(directory), names]),
        env=hub_environment(endpoint, directory.parent / "home"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_without_a_token_nothing_begins(published, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    out = tmp_path / "out"
    push = ["--hub_model_id", "me/x"]
    train = small_options(published.root / "checkpoint", published.images, out, *push)
    assert publish_command.main([str(published.run("mean")), *push]) == 1
    assert "cannot be pushed without a token" in capsys.readouterr().err
    assert train_command.main([*train, "--push_to_hub", "true"]) == 1
    assert "cannot be pushed without a token" in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert publish_command.main([str(published.run("mean")), *push]) == 1
    assert "while HF_HUB_OFFLINE is set" in capsys.readouterr().err
    assert not out.exists()


def test_the_files_can_be_written_to_a_directory_instead(published, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    out = tmp_path / "to-be-published"
    argv = [str(published.run("mean")), "--output_dir", str(out), "--check_samples", "2"]
    assert publish_command.main(argv) == 0
    assert "classifies 2 test images as recorded" in capsys.readouterr().out
    assert set(list_files(out)) >= PUSHED
    weights = published.hub.repositories["garden/mean"].files["model.safetensors"]
    assert (out / "model.safetensors").read_bytes() == weights
    # It is never written over.
    assert publish_command.main(argv) == 2
    assert "exists already" in capsys.readouterr().err


def digest_files(directory):
    return {
        name: hashlib.sha256((directory / name).read_bytes()).hexdigest()
        for name in list_files(directory)
        if (directory / name).is_file()
    }


def test_other_weights_than_those_measured_are_refused(copied):
    path = copied / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["classifier.bias"] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    before = digest_files(copied)
    with pytest.raises(RunError, match="not those that metrics.json measured"):
        read_finished_run(copied)
    assert digest_files(copied) == before


def test_figures_that_contradict_the_predictions_are_refused(copied):
    path = copied / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["splits"]["test"]["accuracy"] -= 0.01
    path.write_text(json.dumps(metrics))
    with pytest.raises(RunError, match="contradict each other.*accuracy"):
        read_finished_run(copied)


def test_a_run_that_ties_no_weights_to_its_figures_is_refused(copied):
    path = copied / "metrics.json"
    metrics = json.loads(path.read_text())
    del metrics["weights"]
    path.write_text(json.dumps(metrics))
    with pytest.raises(RunError, match="does not record 'weights'"):
        read_finished_run(copied)


def test_unfinished_runs_are_refused(copied, tmp_path):
    with pytest.raises(InputError, match="the run itself is"):
        read_finished_run(copied / "model")
    (copied / PREDICTIONS_FILE).unlink()
    with pytest.raises(InputError, match=PREDICTIONS_FILE):
        read_finished_run(copied)
    with pytest.raises(InputError, match="no finished run"):
        read_finished_run(tmp_path / "nowhere")


def test_files_that_classify_otherwise_are_refused_by_the_command(copied, tmp_path, capsys):
    """The recorded predictions stay consistent with the figures, but are not the model's."""
    path = copied / PREDICTIONS_FILE
    table = pyarrow.parquet.read_table(path)
    shares = [
        [0.9, *(share / 10 for share in row[1:])] for row in table["top_probabilities"].to_pylist()
    ]
    column = table.schema.get_field_index("top_probabilities")
    pyarrow.parquet.write_table(
        table.set_column(column, "top_probabilities", pyarrow.array(shares)), path
    )
    out, gone = tmp_path / "out", tmp_path / "gone"
    argv = [str(copied), "--output_dir", str(out)]
    assert publish_command.main([*argv, "--check_samples", "2"]) == 1
    assert "do not classify as the run recorded" in capsys.readouterr().err
    assert publish_command.main([*argv, "--data_dir", str(gone)]) == 2
    assert "--data_dir says where the run's data lie" in capsys.readouterr().err
    assert not out.exists()


def test_answers_are_compared_by_class_and_probability():
    recorded = {"a": 0.6, "b": 0.3, "c": 0.1}
    _compare("x", recorded, {"a": 0.601, "b": 0.299, "c": 0.1})
    _compare("x", {"a": 0.5, "b": 0.499}, {"b": 0.4995, "a": 0.4994})
    for found in ({"a": 0.61, "b": 0.3}, {"b": 0.6, "a": 0.3}, {"d": 0.9}):
        with pytest.raises(RunError, match="image x was 'a'"):
            _compare("x", recorded, found)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["results/x"], ["--run", "results/x"]),
        (["--hub_model_id", "a/b", "r/x"], ["--hub_model_id", "a/b", "--run", "r/x"]),
        (["--hub-private-repo", "r/x"], ["--hub-private-repo", "--run", "r/x"]),
        (["--hub_model_id=a/b", "x"], ["--hub_model_id=a/b", "--run", "x"]),
        (["--run", "x", "--help"], ["--run", "x", "--help"]),
    ],
)
def test_the_run_may_stand_anywhere(given, expected):
    assert name_run(given) == expected


def build_bare_environment(directory: Path) -> Path:
    """Make a virtual environment with all of this one's packages but ours; return its Python."""
    venv.create(directory, with_pip=False, symlinks=True)
    python = directory / "bin" / "python"
    (target,) = directory.glob("lib/python*/site-packages")
    for source in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(source).iterdir():
            # Nor the file that makes an editable installation of ours importable.
            ours = entry.name.startswith(("siglip_flowers", "__editable__"))
            if not ours and entry.suffix != ".pth" and not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry)
    return python


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What a stranger's machine makes of both models on the Hub, and of the test images."""
    published = publish_small_runs()
    place = tmp_path_factory.mktemp("stranger")
    environment = hub_environment(published.hub.endpoint, place / "home", token=None)
    del environment["PYTHONPATH"]
    images = sorted((published.images / "test").rglob("*.png"))
    done = subprocess.run(
        [build_bare_environment(place / "venv"), "-I", "-c", STRANGER],
        input=json.dumps([str(path) for path in images]),
        env=environment,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in environment.values()
    return {**json.loads(done.stdout.splitlines()[-1]), "images": images}


@pytest.mark.parametrize(
    ("name", "kind"), [("mean", "SiglipForImageClassification"), ("map", "SiglipClassifier")]
)
def test_the_pipeline_gives_the_recorded_labels_without_this_package(answers, name, kind):
    assert answers["has_package"] is False
    assert answers[name]["class"] == kind
    path = publish_small_runs().run(name) / "predictions_test.parquet"
    table = pyarrow.parquet.read_table(path).to_pylist()
    recorded = {row["image_id"]: row for row in table}
    assert len(recorded) == len(answers["images"]) == 12
    for image, found in zip(answers["images"], answers[name]["rows"], strict=True):
        row = recorded[f"{image.parent.name}/{image.stem}"]
        expected = dict(zip(row["top_names"], row["top_probabilities"], strict=True))
        assert max(found, key=found.get) == row["top_names"][0]
        assert found == pytest.approx(expected, abs=1e-5)


def test_without_trust_the_call_fails_and_says_so(answers):
    assert "trust_remote_code=True" in answers["untrusted"]
    assert "custom code" in answers["untrusted"]


def test_this_package_reads_both_back(tmp_path):
    pixels = torch.randn(2, 3, 16, 16)
    for name in ("mean", "map"):
        run = publish_small_runs().run(name)
        files = publish_small_runs().hub.repositories[f"garden/{name}"].files
        directory = tmp_path / name
        directory.mkdir()
        for path, data in files.items():
            (directory / path).write_bytes(data)
        with torch.no_grad():
            ours = load_saved_classifier(str(directory))
            expected = load_saved_classifier(str(run / "model"))(pixels).logits
            torch.testing.assert_close(ours(pixels).logits, expected, rtol=1e-5, atol=1e-6)
        assert ours.config.activation == "softmax"
