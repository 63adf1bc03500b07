"""Both commands from end to end, as a user types them."""

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

import siglip_flowers.model  # noqa: F401  (makes the classifier known to pipelines)
from siglip_flowers.base.files import ADAPTER_DIR, RUN_FILES
from siglip_flowers.base.prompts import FLOWER_NAMES
from siglip_flowers.commands import eval as eval_command
from siglip_flowers.commands import train as train_command
from siglip_flowers.commands.models import find_model
from siglip_flowers.config import DataArguments
from siglip_flowers.data.names import match_names
from siglip_flowers.data.sources.load import load_data
from tests.conftest import REPOSITORY
from tests.small_runs import list_files, make_checkpoint, make_folder, run_python, small_options

CHANCE = 1 / 102
SPLITS = ("train", "validation", "test")
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def real_command(flowers_dir, nano_dir, tmp_path_factory):
    """A short training run on the photographs: 408 images, four epochs, half a minute."""
    return [
        *("train.py", "--config", str(REPOSITORY / "configs" / "nano_64px.yaml")),
        *("--model_name_or_path", str(nano_dir), "--data_dir", str(flowers_dir)),
        *("--output_dir", str(tmp_path_factory.mktemp("real") / "results" / "short")),
        *("--shots", "4", "--num_train_epochs", "4", "--augment", "false"),
        *("--mixup_alpha", "0", "--cutmix_alpha", "0", "--label_smoothing_factor", "0"),
        *("--learning_rate", "1e-3", "--head_learning_rate", "3e-3"),
        *("--eval_strategy", "steps", "--eval_steps", "28"),
        *("--save_strategy", "steps", "--save_steps", "28"),
        *("--train_eval_samples", "102", "--logging_steps", "7"),
    ]


@pytest.fixture(scope="module")
def real_run(real_command):
    directory = Path(real_command[real_command.index("--output_dir") + 1])
    launcher = ("-m", "accelerate.commands.launch")
    return directory, run_python(*launcher, *real_command, cwd=REPOSITORY, **NO_GPU)


@pytest.fixture(scope="module")
def real_metrics(real_run):
    return json.loads((real_run[0] / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_short_run_on_the_photographs_is_far_above_chance(real_run, real_metrics):
    test = real_metrics["splits"]["test"]
    assert test["n"] == 1020
    assert [row["name"] for row in test["per_class"]] == list(FLOWER_NAMES)
    assert real_metrics["data"]["split_protocol"] == "swapped"
    assert real_metrics["training"]["steps"] == 28
    assert test["accuracy"] > 8 * CHANCE
    assert test["top5_accuracy"] > 16 * CHANCE
    assert test["loss"] < np.log(102)
    assert f"{100 * test['accuracy']:.2f}%" in real_run[1]
    assert set(os.listdir(real_run[0])) == set(RUN_FILES) - {ADAPTER_DIR}
    ids = json.loads((real_run[0] / "splits.json").read_text(encoding="utf-8"))
    assert [len(ids[name]) for name in SPLITS] == [408, 1020, 1020]
    assert len({row for name in SPLITS for row in ids[name]}) == 408 + 1020 + 1020
    # Output to a pipe has a line per row of the log instead of a bar.
    assert re.search(r"^step \d+/28, epoch [\d.]+: loss \d", real_run[1], re.MULTILINE)


@pytest.mark.slow
def test_eval_gives_exactly_the_figures_of_the_run(real_run, real_metrics):
    # Started where results/ lies, it finds the model and the run's own data by itself.
    script = str(REPOSITORY / "eval.py")
    root = real_run[0].parents[1]
    out = run_python(script, "--split", "test", "--output_dir", "again", cwd=root, **NO_GPU)
    again = json.loads((root / "again" / "metrics_test.json").read_text(encoding="utf-8"))
    expected = real_metrics["splits"]["test"]
    assert {key: again[key] for key in expected} == expected
    assert f"{100 * expected['accuracy']:.2f}%" in out
    tables = [
        pyarrow.parquet.read_table(directory / "predictions_test.parquet")
        for directory in (real_run[0], root / "again")
    ]
    assert tables[0].equals(tables[1])


@pytest.mark.slow
def test_a_pipeline_predicts_what_the_run_recorded(real_run, flowers_dir):
    rows = pyarrow.parquet.read_table(real_run[0] / "predictions_test.parquet").to_pylist()
    test = load_data(DataArguments(data_dir=str(flowers_dir))).splits["test"]
    # The weights are kept in bfloat16 and measured in float32; the pipeline would keep bfloat16.
    model = str(real_run[0] / "model")
    classify = pipeline("image-classification", model=model, dtype=torch.float32)
    for number in (0, 300, 700, 1019):
        answer = classify(test[number]["image"].convert("RGB"), top_k=5)
        assert [entry["label"] for entry in answer] == rows[number]["top_names"]
        scores = [entry["score"] for entry in answer]
        assert scores == pytest.approx(rows[number]["top_probabilities"], abs=1e-4)


def test_everything_from_invented_flowers_says_procedural(tmp_path):
    # An architecture without weights, as the demo has it.
    make_checkpoint(tmp_path / "architecture")
    (tmp_path / "architecture" / "model.safetensors").unlink()
    out = tmp_path / "out"
    argv = [
        *("--data_source", "procedural", "--procedural_images_per_class", "5"),
        *("--procedural_image_size", "16", "--from_scratch", "--max_steps", "2"),
        *("--model_name_or_path", str(tmp_path / "architecture"), "--output_dir", str(out)),
        *("--train_eval_samples", "102", "--train_resize_scale", "1", "--disable_tqdm", "true"),
        *("--save_dtype", "bfloat16"),
    ]
    assert train_command.main(argv) == 0
    weights = load_file(out / "model" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    metrics = json.loads((out / "metrics.json").read_text())
    assert "procedural" in metrics["title"]
    names = {row["name"] for row in metrics["splits"]["test"]["per_class"]}
    assert names.isdisjoint(FLOWER_NAMES)
    assert eval_command.main(["--model", str(out), "--output_dir", str(tmp_path / "eval")]) == 0
    again = json.loads((tmp_path / "eval" / "metrics_test.json").read_text())
    assert "procedural" in again["title"]
    assert again["accuracy"] == metrics["splits"]["test"]["accuracy"]


def test_eval_takes_the_newest_model_below_results(tmp_path, monkeypatch, caplog):
    for age, name in ((200, "older"), (100, "newer")):
        path = tmp_path / "results" / name / "model" / "config.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        os.utime(path, (time.time() - age,) * 2)
    monkeypatch.chdir(tmp_path)
    assert Path(find_model(None)) == Path("results/newer/model")
    assert "2 models in results/" in caplog.text
    assert find_model("results/older") == "results/older/model"
    monkeypatch.chdir("results/older/model")
    assert Path(find_model(".")).parent == tmp_path / "results" / "older"


def test_flowers_keep_their_classes_whatever_else_is_among_them():
    assert match_names(["Cat", "rose", "fox"], ["cat", "ROSE", "fox"]) == [None, 1, 2]


def test_eval_writes_nothing_unless_asked(tmp_path, capsys):
    out = tmp_path / "run"
    argv = small_options(
        make_checkpoint(tmp_path / "checkpoint"), make_folder(tmp_path / "data"), out
    )
    assert train_command.main(argv) == 0
    before = list_files(tmp_path)
    capsys.readouterr()
    assert eval_command.main(["--model", str(out), "--split", "validation"]) == 0
    assert list_files(tmp_path) == before
    shown = capsys.readouterr().out
    assert "validation" in shown
    assert "accuracy" in shown
    # The run's own predictions are not replaced, and nothing that it starts from is deleted.
    assert eval_command.main(["--model", str(out), "--output_dir", str(out)]) == 2
    assert "what the run itself predicted" in capsys.readouterr().err
    again = ["--model_name_or_path", str(out), "--overwrite_output_dir"]
    assert train_command.main([*argv, *again]) == 2
    assert "would delete" in capsys.readouterr().err
    # A configuration beside a model is not that of its run.
    (out / "model").rename(tmp_path / "elsewhere")
    (tmp_path / "config.yaml").write_text("- of another program\n")
    other = ["--model", str(tmp_path / "elsewhere"), "--data_dir", str(tmp_path / "data")]
    assert eval_command.main(other) == 0
    # Logistic regression fits no cosine head: it is trained step by step.
    frozen = ["--trainable", "head", "--augment", "false", "--head", "cosine"]
    assert train_command.main([*argv, *frozen, "--output_dir", str(tmp_path / "cosine")]) == 0
