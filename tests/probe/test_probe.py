"""The linear probe: what the command finds, what it writes, and what it refuses."""

import csv
import json

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from sklearn.neighbors import KNeighborsClassifier

from siglip_flowers.commands.eval import main as evaluate
from siglip_flowers.commands.main import main as siglip_flowers
from siglip_flowers.metrics.neighbors import vote_neighbors
from siglip_flowers.probe.command import main as probe


def make_argv(small, output_dir, *more):
    checkpoint, folder = small
    return [
        *("--model_name_or_path", str(checkpoint), "--data_dir", str(folder)),
        *("--output_dir", str(output_dir), "--report_to", "none", "--bf16", "false"),
        *more,
    ]


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    """A finished probe."""
    directory = tmp_path_factory.mktemp("run") / "out"
    argv = make_argv(small, directory, "--penalties", "0.001", "1", "100", "--neighbors", "5")
    argv += ["--class_weights", "none"]
    assert siglip_flowers(["probe", *argv]) == 0
    return directory


def test_the_head_that_validation_favors_is_saved(run):
    with (run / "probe_grid.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = [(row["pooling"], float(row["penalty"])) for row in rows]
    assert found == [(pooling, p) for pooling in ("map", "mean") for p in (100, 1, 0.001)]
    accuracies = [float(row["validation_accuracy"]) for row in rows]
    chosen = [number for number, row in enumerate(rows) if row["chosen"] == "True"]
    losses = [float(row["validation_nll"]) for row in rows]
    assert chosen == [int(np.lexsort((losses, [-accuracy for accuracy in accuracies]))[0])]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["probe"]["chosen"]["pooling"] == rows[chosen[0]]["pooling"]
    assert metrics["model"]["pooling"] == rows[chosen[0]]["pooling"]
    # Measured again on images, with the model as it was saved.
    assert metrics["splits"]["validation"]["accuracy"] == pytest.approx(max(accuracies))
    assert metrics["splits"]["test"]["accuracy"] > 0.9
    assert metrics["knn"]["neighbors"] == 5
    assert metrics["knn"]["test_accuracy"] > 0.9


def test_the_run_is_one_that_the_other_commands_read(run, small, tmp_path):
    metrics = json.loads((run / "metrics.json").read_text())["splits"]["test"]
    assert evaluate(["--model", str(run / "model"), "--output_dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "metrics_test.json").read_text())
    assert found["accuracy"] == metrics["accuracy"]


def test_a_saved_configuration_repeats_the_probe(run, tmp_path, capsys):
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["penalties"] == [0.001, 1.0, 100.0]
    assert "learning_rate" not in saved
    assert probe(["--config", str(run / "config.yaml")]) == 2
    assert "already holds a finished run" in capsys.readouterr().err
    again = tmp_path / "again"
    assert probe(["--config", str(run / "config.yaml"), "--output_dir", str(again)]) == 0
    heads = [load_file(directory / "model" / "model.safetensors") for directory in (run, again)]
    np.testing.assert_array_equal(*(head["classifier.weight"] for head in heads))


def test_a_best_penalty_at_the_edge_of_the_grid_is_warned_about(small, tmp_path, caplog, capsys):
    argv = make_argv(small, tmp_path / "out", "--poolings", "mean", "--penalties", "1e-3", "1e5")
    argv += ["--class_weights", "none", "balanced"]
    assert probe(argv) == 0
    assert "0.001, is at the edge of the grid" in caplog.text
    assert " MB for the model and " in capsys.readouterr().out
    assert json.loads((tmp_path / "out/metrics.json").read_text())["model"]["pooling"] == "mean"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--poolings", "max"], "--poolings is 'max'; choose one of map, mean"),
        (["--penalties", "1", "0"], "--penalties is 0.0; it must be greater than 0"),
        (["--learning_rate", "1"], "Unknown option --learning_rate"),
    ],
)
def test_bad_options_are_refused(small, tmp_path, capsys, options, message):
    assert probe(make_argv(small, tmp_path / "out", *options)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_neighbors_vote_as_scikit_learns_do():
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(5, 12))
    labels = generator.integers(0, 5, 300)
    features = (centers[labels] + generator.normal(size=(300, 12))).astype(np.float32)
    queries = (centers[labels[:80]] + generator.normal(size=(80, 12))).astype(np.float32)
    found = vote_neighbors(features, labels, queries, 5, neighbors=9)
    reference = KNeighborsClassifier(
        9, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07)
    ).fit(features, labels)
    np.testing.assert_allclose(found, reference.predict_proba(queries), atol=1e-5)
