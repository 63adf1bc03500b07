"""Training and evaluation as calls in Python, and a finished run that is trained further."""

import copy
import json
import shutil
import signal
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from setuptools import build_meta

import siglip_flowers
from siglip_flowers.base.errors import InputError
from siglip_flowers.model.heads import keep_known_heads
from siglip_flowers.model.loading import load_classifier
from tests.conftest import REPOSITORY
from tests.small_runs import CLASSES, make_checkpoint, make_folder, run_python

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def describe_process() -> list[object]:
    return [torch.get_num_threads(), *(signal.getsignal(number) for number in SIGNALS)]


def train(model, data, output_dir, **options):
    """Train for a step that changes nothing, unless the options say otherwise."""
    defaults = {
        **{"max_steps": 1, "learning_rate": 1e-12, "head_learning_rate": None, "weight_decay": 0},
        **{"per_device_train_batch_size": 8, "bf16": False, "report_to": ["none"]},
        **{"disable_tqdm": True, "train_resize_scale": 1},
    }
    given = {"model_name_or_path": model, "data_dir": data, "output_dir": output_dir}
    return siglip_flowers.train(**{**defaults, **given, **options})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("python")
    make_checkpoint(directory / "checkpoint")
    make_folder(directory / "data")
    # Another order, one class less and one more.
    shutil.copytree(directory / "data", directory / "more")
    for split in (directory / "more").iterdir():
        (split / "borage").rename(split / "zinnia")
        (split / "aster").rename(split / "wild aster")
    return directory


def test_both_calls_return_what_the_run_recorded_and_change_no_process(place, tmp_path):
    before = describe_process()
    run = train(place / "checkpoint", place / "data", tmp_path / "run", learning_rate=1e-3)
    found = siglip_flowers.evaluate(model=run.output_dir, split="validation", dtype="float32")
    assert describe_process() == before
    assert run.output_dir == found.output_dir == tmp_path / "run"
    splits = json.loads((run.output_dir / "metrics.json").read_text())["splits"]
    for metrics in (run.metrics["validation"], found.metrics):
        assert metrics == {name: splits["validation"][name] for name in metrics}
        assert {"n", "accuracy", "f1_macro", "loss"} <= set(metrics)
    low, high = found.intervals["accuracy"]
    assert low <= found.metrics["accuracy"] <= high
    # A finished run is not overwritten, and nothing exits.
    with pytest.raises(InputError, match="already holds a finished run"):
        train(place / "checkpoint", place / "data", tmp_path / "run")


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        ("train", {"learning_rat": 1}, "Unknown key 'learning_rat' in the call; did you mean lea"),
        ("train", {"shots": "many"}, "In the call: shots has an invalid int value: 'many'"),
        ("train", {"config": "lara"}, "There is no configuration 'lara'"),
        ("evaluate", {"split": "best"}, "--split is 'best'; choose one of"),
        ("evaluate", {"model": "results/nope"}, "model directory results/nope does not exist"),
    ],
)
def test_options_of_a_call_are_checked(call, options, message):
    with pytest.raises(InputError, match=message):
        getattr(siglip_flowers, call)(**options)


def test_a_finished_run_is_trained_further_with_the_heads_of_its_classes(place, tmp_path, caplog):
    first = train(place / "checkpoint", place / "data", tmp_path / "first", head="cosine")
    more = train(first.output_dir, place / "more", tmp_path / "more", head="cosine")
    assert "the heads of 1 of 3 classes are kept" in caplog.text
    before, after = (
        load_file(run.output_dir / "model" / "model.safetensors")["classifier.weight"]
        for run in (first, more)
    )
    kept = ("clover", "wild aster", "zinnia").index("clover")
    torch.testing.assert_close(after[kept], before[CLASSES.index("clover")], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after[1], before[0], atol=1e-3)


@pytest.mark.parametrize(
    ("trained", "model", "kept"),
    [
        ({}, {}, 2),
        ({"pooling": "mean"}, {"pooling": "mean"}, 2),
        ({"head": "cosine"}, {"head": "cosine"}, 2),
        ({"head": "cosine", "activation": "sigmoid"}, {"head": "cosine"}, 2),
        # Heads for other features.
        ({}, {"pooling": "mean"}, 0),
        ({}, {"head": "cosine"}, 0),
        ({"head": "cosine"}, {}, 0),
    ],
)
def test_known_classes_keep_their_logits(place, tmp_path, trained, model, kept):
    torch.manual_seed(0)
    old = load_classifier(str(place / "checkpoint"), ["a", "b", "c"], **trained).fold().eval()
    old.save_pretrained(tmp_path)
    new = load_classifier(str(tmp_path), ["c", "x", "a", "y"], **model).eval()
    fresh = copy.deepcopy(new.classifier.state_dict())
    assert keep_known_heads(new, str(tmp_path)) == kept
    pixels = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        found, expected = new(pixels).logits[:, [2, 0]], old(pixels).logits[:, [0, 2]]
    # A softmax does not change if all logits do.
    found, expected = (logits - logits[:, :1] for logits in (found, expected))
    assert torch.allclose(found, expected, atol=1e-4) is (kept > 0)
    # With no head to keep, the temperature is that of a fresh one too.
    assert kept or all(map(torch.equal, fresh.values(), new.classifier.state_dict().values()))
    assert keep_known_heads(new, str(place / "checkpoint")) == 0


@pytest.mark.slow
def test_a_wheel_alone_trains_evaluates_and_predicts_elsewhere(place, tmp_path, monkeypatch):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "results", "tests", "docs", "__pycache__", "benchmarks")
    shutil.copytree(REPOSITORY, source, symlinks=True, ignore=ignored)
    monkeypatch.chdir(source)
    # Its warnings have a class that xdist cannot send to its main process.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wheel = build_meta.build_wheel(str(tmp_path))
    with zipfile.ZipFile(tmp_path / wheel) as archive:
        archive.extractall(tmp_path / "installed")
    work = tmp_path / "work"
    work.mkdir()

    def run(*words):
        words = ("-P", "-m", "siglip_flowers", *words)
        return run_python(*words, cwd=work, path=tmp_path / "installed")

    options = ["--data_source", "folder", "--data_dir", place / "data", "--max_steps", "2"]
    printed = run("train", "--config", "demo", *options, "--output_dir", "results/mine")
    # It names the command that is there.
    assert "siglip-flowers eval --model results/mine/model" in printed
    assert "accuracy" in run("eval", "--model", "results/mine")
    image = next(Path(place / "data" / "test").rglob("*.png"))
    assert str(image) in run("predict", image)
