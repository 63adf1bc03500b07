"""Models that were saved earlier give the same scores today, in eval.py, predict and the page.

``saved_models/`` holds five of them, each trained for a moment on drawn squares, with the scores
that version 0.1 printed for the images beside them.
"""

import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from siglip_flowers import SiglipImageClassifier
from siglip_flowers.base.files import digest_weight_files
from siglip_flowers.commands.eval import main as run_eval
from siglip_flowers.commands.predict import main as run_predict
from siglip_flowers.model.loading import load_image_processor
from tests.conftest import REPOSITORY

SAVED = Path(__file__).with_name("saved_models")
EXPECTED = json.loads((SAVED / "expected.json").read_text(encoding="utf-8"))
IMAGES = SAVED / "images"


@pytest.mark.parametrize("name", EXPECTED)
def test_a_saved_model_gives_the_same_figures_and_scores(name, tmp_path, capsys):
    model = str(SAVED / name / "model")
    options = ["--split", "test", "--data_dir", str(IMAGES), "--output_dir", str(tmp_path)]
    assert run_eval(["--model", model, *options]) == 0
    metrics = json.loads((tmp_path / "metrics_test.json").read_text(encoding="utf-8"))
    for key, value in EXPECTED[name]["metrics"].items():
        assert metrics[key] == pytest.approx(value, abs=1e-5), key
    capsys.readouterr()
    expected = EXPECTED[name]["predictions"]
    paths = [str(IMAGES / row["image"]) for row in expected]
    options = ["--json", "--top_k", "3", "--dtype", "float32"]
    assert run_predict([*paths, "--model", model, *options]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        assert row["known"] == wanted["known"]
        scores = {one["label"]: one["score"] for one in row["predictions"]}
        assert scores == pytest.approx(wanted["scores"], abs=1e-5)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_page_shows_the_same_scores(name):
    answer = pytest.importorskip("siglip_flowers.demo.answer")
    options = pytest.importorskip("siglip_flowers.demo.options").DemoArguments()
    model = str(SAVED / name / "model")
    classifier = SiglipImageClassifier.from_pretrained(model, dtype="float32")
    explainer = answer.Explainer(classifier, load_image_processor(model), options)
    for wanted in EXPECTED[name]["predictions"]:
        shown = explainer.explain((IMAGES / wanted["image"]).read_bytes())
        scores = {one["label"]: one["score"] for one in shown.results}
        assert scores == pytest.approx(wanted["scores"], abs=1e-5)
        assert shown.known == wanted["known"]


def test_the_saved_models_differ():
    """Equal scores of all five would say nothing."""
    tops = {name: rows["predictions"][0]["scores"]["aster"] for name, rows in EXPECTED.items()}
    assert len({round(top, 4) for top in tops.values()}) == len(tops)
    assert {row["known"] for row in EXPECTED["naflex"]["predictions"]} == {True, False}


def test_the_weights_beside_the_code_are_those_of_the_committed_figures(flowers_dir, tmp_path):
    """The model of results/nano_64px predicts what its files say, in float32 from bfloat16."""
    run = REPOSITORY / "results" / "nano_64px"
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert digest_weight_files(run / "model") == metrics["weights"]
    assert sum(path.stat().st_size for path in (run / "model").iterdir()) < 10e6
    rows = pq.read_table(run / "predictions_test.parquet").to_pylist()[:24]
    classifier = SiglipImageClassifier.from_pretrained(str(run / "model"), dtype="float32")
    names = [f"jpg/{row['image_id']}.jpg" for row in rows]
    with tarfile.open(flowers_dir / "102flowers.tgz") as archive:
        archive.extractall(tmp_path, [archive.getmember(name) for name in names], filter="data")
    for row, answers in zip(rows, classifier([tmp_path / name for name in names]), strict=True):
        scores = dict(zip(row["top_names"], row["top_probabilities"], strict=True))
        assert {one["label"]: one["score"] for one in answers} == pytest.approx(scores, abs=1e-4)
