"""Publishing from end to end: both commands and the real client against a Hub on loopback.

What was pushed then works on a machine without this package.
"""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors.torch import load_file, save_file

from siglip_flowers import SiglipClassifierConfig, SiglipImageClassifier
from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.files import digest_weight_files
from siglip_flowers.commands import train as train_command
from siglip_flowers.data.pixels.decoding import read_image
from siglip_flowers.model.loading import load_saved_classifier
from siglip_flowers.publish import command as publish_command
from siglip_flowers.publish.card import TEST_METRICS, build_card
from siglip_flowers.publish.check import LOAD_IMAGE, NOT_LOADED, compare_answers, write_odd_files
from siglip_flowers.publish.finished import PREDICTIONS_FILE, read_finished_run
from siglip_flowers.publish.options import PublishArguments
from siglip_flowers.publish.publish import (
    AUTO_MAP,
    MODELING_FILE,
    check_hub_access,
    push_directory,
    write_figures,
    write_model,
)
from tests.publish.hub_server import TOKEN, Fault
from tests.publish.small_hub import ODD_NAME, open_garden, stranger_environment
from tests.small_runs import list_files, small_options

PUSHED = {
    *("README.md", "config.json", "preprocessor_config.json", "model.safetensors"),
    *("metrics.json", "history.csv", "loss_plot.png", "accuracy_plot.png"),
}
STRANGER = """
import json, sys
from transformers import pipeline
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
answers = {
    "mean": classify("garden/mean"),
    "untrusted": refusal(lambda: classify("garden/map")),
    "map": classify("garden/map", trust_remote_code=True),
}
# Asked whether to trust the code, the library has printed its question on this line.
print()
print(json.dumps({**answers, "has_package": "siglip_flowers" in sys.modules}))
"""
BOTH = pytest.mark.parametrize("name", ["map", pytest.param("mean", marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def garden(tmp_path_factory):
    with open_garden(tmp_path_factory.mktemp("garden")) as opened:
        yield opened


@pytest.fixture
def copied(garden, tmp_path):
    """A copy of a finished run, to be spoilt."""
    return Path(shutil.copytree(garden.run("map"), tmp_path / "run"))


def test_a_cut_upload_is_tried_again_and_the_run_is_pushed(garden):
    garden.run("map")
    (step,) = garden.steps["map"]
    assert step.code == 0, step.errors
    assert "classify 12 test images as recorded" in step.output
    assert f"Published: {garden.hub.endpoint}/garden/map" in step.output
    pushed = garden.hub.repositories["garden/map"]
    assert set(pushed.files) >= PUSHED | {MODELING_FILE}
    # Images of the data set, and what is of this machine.
    assert not [name for name in pushed.files if name.startswith(("example", "config.yaml"))]
    assert pushed.commits == ["Publish the classifier"]
    uploads = [line for line in step.requests if line.startswith("PUT")]
    large = [name for name in pushed.files if name.endswith((".safetensors", ".png"))]
    assert len(uploads) == len(large) + 1


@pytest.mark.slow
def test_after_a_failed_push_the_command_it_names_uploads_only_what_is_missing(garden):
    run = garden.run("mean")
    failed, again = garden.steps["mean"]
    assert failed.code == 1
    (line,) = [line for line in failed.errors.splitlines() if "error:" in line]
    assert "the Hub answered 500" in line
    assert f"siglip-flowers publish {run} --hub_model_id garden/mean" in line
    assert "Traceback" not in failed.errors
    assert again.code == 0, again.errors
    assert not [line for line in again.requests if line.startswith("PUT")]
    pushed = garden.hub.repositories["garden/mean"]
    assert set(pushed.files) >= PUSHED
    assert MODELING_FILE not in pushed.files
    assert len(pushed.commits) == 1
    # The same files in a directory, by --output_dir.
    written = garden.root / "to-be-published"
    files = [path for path in written.rglob("*") if path.is_file()]
    found = {path.relative_to(written).as_posix(): path.read_bytes() for path in files}
    assert found == pushed.files


@BOTH
def test_what_was_pushed_belongs_together(garden, name):
    files = garden.files(name)
    metrics = json.loads(files["metrics.json"])
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert metrics["weights"] == {"model.safetensors": digest}
    card = ModelCard(files["README.md"].decode())
    assert digest in card.text
    assert card.data.license == {"map": None, "mean": "mit"}[name]
    recorded = json.loads((garden.run(name) / "metrics.json").read_text())["splits"]["test"]
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["test accuracy"] == recorded["accuracy"]
    assert values["test F1 (macro)"] == recorded["f1_macro"]
    assert values["test loss"] == recorded["loss"]
    config = json.loads(files["config.json"])
    expected = {"map": "SiglipClassifier", "mean": "SiglipForImageClassification"}[name]
    assert config["architectures"] == [expected]
    assert ("auto_map" in config) is (name == "map")
    assert ODD_NAME in config["label2id"]


@BOTH
def test_nothing_of_the_machine_and_no_token_is_pushed_or_saved(garden, name):
    for path, data in garden.files(name).items():
        assert TOKEN.encode() not in data, path
        assert str(garden.root).encode() not in data, path
        assert str(Path.home()).encode() + b"/" not in data, path
    settings = yaml.safe_load((garden.run(name) / "config.yaml").read_text())
    assert not [key for key in settings if "hub" in key]
    for path in garden.run(name).rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path
    assert not [step for step in garden.steps[name] if TOKEN in step.output + step.errors]


@BOTH
def test_this_package_reads_what_was_pushed(garden, name, tmp_path):
    for path, data in garden.files(name).items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    # A test image of each class, if its owner allowed it.
    examples = sorted(path.name for path in tmp_path.glob("examples/*"))
    assert examples == ([] if name == "map" else ["0.jpg", "1.jpg", "2.jpg"])
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        ours = load_saved_classifier(str(tmp_path))
        expected = load_saved_classifier(str(garden.run(name) / "model"))(pixels).logits
        torch.testing.assert_close(ours(pixels).logits, expected, rtol=1e-5, atol=1e-6)
    assert ours.config.activation == "softmax"


def load_as_the_card_says(path):
    names = {}
    exec(LOAD_IMAGE.replace('"image.jpg"', repr(str(path))), names)
    return names["image"]


def test_the_lines_of_the_card_load_odd_files_as_this_package_does(garden, tmp_path):
    assert LOAD_IMAGE in garden.files("map")["README.md"].decode()
    classifier = SiglipImageClassifier.from_pretrained(garden.run("map") / "model", dtype="float32")
    ramp = Image.linear_gradient("L").resize((20, 16))
    image = Image.merge("RGB", (ramp, ramp.rotate(90, expand=False), ramp.rotate(180)))
    for kind, path in write_odd_files(image, tmp_path).items():
        expected, found = (
            {row["label"]: row["score"] for row in rows}
            for rows in classifier([path, load_as_the_card_says(path)])
        )
        assert found == pytest.approx(expected, abs=1e-4), kind


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("GET", "whoami", 401), "answered 401 .*hf auth login"),
        (Fault("POST", "repos/create", 403), "answered 403 .*write access"),
        (Fault("POST", "repos/create", 404), "answered 404 .*check the name"),
        (Fault("POST", "me/x/commit", 500), r"answered 500 \(.*again later"),
        (Fault("POST", "me/x/commit"), "could not be reached.*check the network"),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{value.path} {value.status}",
)
def test_every_answer_of_the_hub_is_one_clear_sentence(garden, tmp_path, fault, words):
    (tmp_path / "notes.txt").write_text("A file like any other.")
    garden.hub.faults.append(fault)

    def push():
        check_hub_access("me/x")
        push_directory(tmp_path, "me/x")

    with pytest.raises(RunError, match="^me/x could not be pushed: .*" + words) as caught:
        push()
    message = str(caught.value)
    assert not fault.times
    assert "\n" not in message
    assert "()" not in message
    assert TOKEN not in message


def test_without_a_hub_or_a_token_nothing_begins(garden, copied, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    push = ["--hub_model_id", "me/x"]
    train = small_options(garden.root / "checkpoint", garden.images, out, *push)

    def publish(*, expected):
        assert publish_command.main([str(copied), *push]) == 1
        assert expected in capsys.readouterr().err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    publish(expected=f"{closed} could not be reached")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    publish(expected="cannot be pushed without a token")
    assert train_command.main([*train, "--push_to_hub", "true"]) == 1
    assert "cannot be pushed without a token" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    publish(expected="cannot be pushed: HF_HUB_OFFLINE is set")
    assert not out.exists()


def change_metrics(change):
    def spoil(run):
        path = run / "metrics.json"
        metrics = json.loads(path.read_text())
        change(metrics)
        path.write_text(json.dumps(metrics))

    return spoil


def change_weights(run):
    path = run / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["classifier.bias"] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})


@BOTH
def test_weights_are_published_in_the_dtype_in_which_they_were_saved(garden, tmp_path, name):
    run = Path(shutil.copytree(garden.run(name), tmp_path / "run"))
    path = run / "model" / "model.safetensors"
    tensors = {key: value.bfloat16() for key, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    change_metrics(lambda metrics: metrics["weights"].update(digest_weight_files(path.parent)))(run)
    write_model(read_finished_run(run), tmp_path / "published")
    published = load_file(tmp_path / "published" / "model.safetensors")
    assert published.keys() == tensors.keys()
    assert all(value.equal(tensors[key]) for key, value in published.items())
    assert json.loads((tmp_path / "published" / "config.json").read_text())["dtype"] == "bfloat16"


def lower_accuracy(metrics):
    metrics["splits"]["test"]["accuracy"] -= 0.01


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (change_weights, RunError, "not those that metrics.json measured"),
        (change_metrics(lower_accuracy), RunError, "contradict each other.*accuracy"),
        (change_metrics(lambda metrics: metrics.pop("weights")), RunError, "has no 'weights'"),
        (lambda run: (run / PREDICTIONS_FILE).unlink(), RunError, PREDICTIONS_FILE),
        (lambda run: (run / "metrics.json").unlink(), InputError, "holds no finished run"),
    ],
    ids=["other weights", "other figures", "no weights recorded", "no predictions", "no metrics"],
)
def test_a_run_whose_files_do_not_belong_together_is_refused(copied, spoil, kind, message):
    spoil(copied)
    with pytest.raises(kind, match=message):
        read_finished_run(copied)


def test_a_run_without_plots_and_history_is_published_without_them(copied, tmp_path):
    for path in (*copied.glob("*_plot.png"), copied / "history.csv"):
        path.unlink()
    out = tmp_path / "out"
    out.mkdir()
    write_figures(read_finished_run(copied), out)
    assert list_files(out) == ["metrics.json"]


@pytest.mark.slow
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
    assert f"{gone} does not exist" in capsys.readouterr().err
    assert not out.exists()


def test_answers_are_compared_by_class_and_score():
    recorded = {"a": 0.6, "b": 0.3, "c": 0.1}
    compare_answers("x", recorded, {"a": 0.601, "b": 0.299, "c": 0.1})
    compare_answers("x", {"a": 0.5, "b": 0.499}, {"b": 0.4995, "a": 0.4994})
    for found in ({"a": 0.61, "b": 0.3}, {"b": 0.6, "a": 0.3}, {"d": 0.9}):
        with pytest.raises(RunError, match="x was 'a'"):
            compare_answers("x", recorded, found)


@pytest.mark.slow
def test_strangers_get_the_recorded_scores_without_this_package(garden, tmp_path):
    runs = {name: garden.run(name) for name in ("map", "mean")}
    images = sorted((garden.images / "test").rglob("*.png"))
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER], input=json.dumps([str(path) for path in images]),
        env=stranger_environment(garden.hub.endpoint, tmp_path / "home"), cwd=tmp_path,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert answers["has_package"] is False
    # Code of others is run on request only.
    assert "trust_remote_code=True" in answers["untrusted"]
    assert "custom code" in answers["untrusted"]
    for name, kind in (("mean", "SiglipForImageClassification"), ("map", "SiglipClassifier")):
        assert answers[name]["class"] == kind
        table = pyarrow.parquet.read_table(runs[name] / PREDICTIONS_FILE).to_pylist()
        recorded = {row["image_id"]: row for row in table}
        assert len(recorded) == len(images) == 12
        for image, found in zip(images, answers[name]["rows"], strict=True):
            row = recorded[f"{image.parent.name}/{image.stem}"]
            expected = dict(zip(row["top_names"], row["top_probabilities"], strict=True))
            assert max(found, key=found.get) == row["top_names"][0]
            assert found == pytest.approx(expected, abs=1e-5)


@pytest.fixture
def run(garden):
    """What a card is made from."""
    return read_finished_run(garden.run("map"))


def make_card(run, differences=None, **options):
    config = SiglipClassifierConfig.from_pretrained(run.model_dir)
    config.auto_map = AUTO_MAP
    arguments = PublishArguments(run=".", hub_model_id="garden/flowers", **options)
    return build_card(run, config, arguments, run.model_dir, differences or {})


def test_the_index_has_every_test_metric_and_reads_back(run, tmp_path):
    make_card(run, license="apache-2.0", language="en").save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    test = run.metrics["splits"]["test"]
    assert {result.metric_name: result.metric_value for result in data.eval_results} == {
        f"test {title}": test[key]
        for key, title in TEST_METRICS.items()
        # Of three classes.
        if key != "top5_accuracy"
    }
    assert set(TEST_METRICS) == set(test) - {"n", "per_class"}
    assert {result.dataset_split for result in data.eval_results} == {"test"}
    assert {result.dataset_name for result in data.eval_results} == {"images"}
    assert (data.license, data.language) == ("apache-2.0", "en")
    assert data.pipeline_tag == "image-classification"
    assert data.library_name == "transformers"
    assert data.model_name == "flowers"
    assert {"siglip", "image-classification", "custom_code"} <= set(data.tags)


def test_the_text_has_every_section_and_every_fact(run):
    run.metrics["data"] |= {
        "shots": 4,
        "shared_images": [["train", "a", "test", "b"], ["train", "a", "validation", "c"]],
        "skipped_images": {"train": 2, "validation": 0, "test": 0},
    }
    text = make_card(run, {"transparency": 0.25}).text
    assert "top-5" not in text
    sections = text.split("\n## ")
    titles = [section.split("\n")[0] for section in sections[1:]]
    assert titles == [
        *("How to use", "Results", "Plots", "Training", "Data", "Intended use and limits"),
        *("License", "Environment"),
    ]
    assert all(len(section.split("\n", 1)[1].strip()) > 20 for section in sections[1:])
    for word in ("None", "null", "nan", "TODO", "More information needed"):
        assert word not in text
    for fact in (
        *(
            "trust_remote_code=True",
            *run.metrics["weights"].values(),
            "2 pairs, 1 of them with",
            "4 images per class",
        ),
        *("left out: 2 images", "3 classes of images apart"),
        "Do not load the model with `SiglipForImageClassification.from_pretrained`",
        *("| transparency | 0.25 |", 'Image.open("image.jpg")', "| learning\\_rate | 0.001 |"),
        # Class names cannot change the page.
        "clover \\| \\*x\\* &lt;b&gt;\\_y\\_ (",
    ):
        assert fact in text
    test = run.metrics["splits"]["test"]
    row = re.search(r"^\| accuracy \| ([\d.]+)% \| ([\d.]+)% to ([\d.]+)% \|", text, re.MULTILINE)
    accuracy, low, high = map(float, row.groups())
    assert accuracy == round(100 * test["accuracy"], 2)
    assert 0 < low <= accuracy <= high <= 100


RAMP = np.arange(256).reshape(16, 16)
ODD_GRAY = {
    "8 bits in 32": (RAMP.astype(np.int32), {}),
    "12 bits in 16": (RAMP.astype(np.uint16) * 15, {}),
    "floating point": (RAMP.astype(np.float32) / 255, {}),
    "16 bits": (RAMP.astype(np.uint16) * 257, {}),
    "16 bits, turned": (RAMP.astype(np.uint16) * 257, {"tiffinfo": {274: 6}}),
}


def test_the_card_names_the_gray_files_that_its_lines_open_otherwise(garden, tmp_path):
    assert NOT_LOADED in garden.files("map")["README.md"].decode()
    differ = set()
    for kind, (values, options) in ODD_GRAY.items():
        path = tmp_path / f"{kind}.tif"
        Image.fromarray(values).save(path, **options)
        found = load_as_the_card_says(path)
        with read_image(path) as expected:
            if found.tobytes() != expected.tobytes():
                differ.add(kind)
    assert differ == {"8 bits in 32", "12 bits in 16", "floating point"}


@pytest.mark.parametrize(
    ("changes", "parent", "origin"),
    [
        ({"local": False}, "google/siglip", "fine-tuned from [google/siglip]"),
        ({"local": False, "from_scratch": True}, None, "random weights"),
        ({"local": True}, None, "fine-tuned from a local checkpoint"),
    ],
)
def test_only_a_parent_on_the_hub_is_named(run, changes, parent, origin):
    run.metrics["model"].update(changes)
    run.settings["model_name_or_path"] = "google/siglip"
    card = make_card(run)
    assert card.data.base_model == parent
    assert origin in card.text
    assert ("google/siglip" in card.content) is (parent is not None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hub_token", "hf_secret"], "--hub_token is not supported"),
        (["--push_to_hub", "--hub_model_id", "flowers"], "use ORG/NAME"),
    ],
)
def test_a_push_that_cannot_work_is_refused_before_the_training(options, message, capsys):
    assert train_command.main(options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "hf_secret" not in error
