"""Telling images of no known class: scores, threshold, where it is kept, what predict says."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve
from torch.nn import functional

from siglip_flowers import SiglipImageClassifier
from siglip_flowers.base.errors import RunError
from siglip_flowers.commands.predict import main as predict
from siglip_flowers.commands.threshold import main as fit_command
from siglip_flowers.commands.train import main as train
from siglip_flowers.data.sources.ood_images import KINDS, draw_ood_image
from siglip_flowers.inference.sidecars import OOD_FILE, SCORES, OodDetector, load_ood_detector
from siglip_flowers.metrics.neighbors import find_neighbors
from siglip_flowers.metrics.ood import fit_threshold, measure_separation, score_logits
from tests.small_runs import make_checkpoint, make_folder, small_options

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(0, 5, (40, 7)).astype(np.float32)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_logit_scores_are_the_published_formulas(sigmoid):
    logits = torch.from_numpy(LOGITS).double()
    expected = {
        "max_probability": (logits.sigmoid() if sigmoid else logits.softmax(1)).amax(1),
        "max_logit": logits.amax(1),
        "energy": functional.softplus(logits).sum(1) if sigmoid else logits.logsumexp(1),
    }
    for score, values in expected.items():
        found = score_logits(LOGITS, score, "sigmoid" if sigmoid else "softmax")
        np.testing.assert_allclose(found, values, rtol=1e-5)


@pytest.mark.parametrize("digits", [1, 8])
def test_separation_is_what_scikit_learn_measures_with_and_without_ties(digits):
    known = RANDOM.normal(1, 1, 200).round(digits)
    unknown = RANDOM.normal(0, 1, 90).round(digits)
    truth = np.repeat([1, 0], [200, 90])
    scores = np.concatenate([known, unknown])
    found = measure_separation(known, unknown)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores))
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert found["false_positive_rate"] == pytest.approx(false[true >= 0.95].min())


@pytest.mark.parametrize("count", [1, 7, 20, 1000])
@pytest.mark.parametrize("accepted", [0.5, 0.95, 1.0])
def test_the_threshold_lets_just_enough_images_pass(count, accepted):
    scores = RANDOM.normal(size=count)
    passed = np.mean(scores >= fit_threshold(scores, accepted))
    assert accepted <= passed + 1e-9 < accepted + 1 / count + 1e-8


@pytest.mark.parametrize("means", [None, RANDOM.normal(size=(3, 5)).astype(np.float32)])
def test_the_file_is_read_back(tmp_path, means):
    score = "energy" if means is None else "class_mean"
    OodDetector(score, -1.25, 0.9, means).save(tmp_path)
    found = load_ood_detector(tmp_path, 5)
    assert (found.score, found.threshold, found.accepted) == (score, -1.25, 0.9)
    if means is not None:
        np.testing.assert_allclose(found.class_means, means, rtol=1e-6)
    assert load_ood_detector(tmp_path / "..", 5) is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"score": "energy"}',
        '{"score": "x", "threshold": 1, "accepted": 1, "class_means": null}',
        '{"score": "class_mean", "threshold": 1, "accepted": 1, "class_means": [[1, 2], [1, 2]]}',
    ],
)
def test_a_damaged_file_is_refused_with_the_remedy(tmp_path, text):
    (tmp_path / OOD_FILE).write_text(text)
    with pytest.raises(RunError, match=r"cannot be read.*siglip-flowers threshold"):
        load_ood_detector(tmp_path, 5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two epochs on three colors."""
    directory = tmp_path_factory.mktemp("ood")
    checkpoint = make_checkpoint(directory / "checkpoint")
    folder = make_folder(directory / "data", train=8, held_out=8)
    assert train(small_options(checkpoint, folder, directory / "run")) == 0
    return directory


def test_a_run_keeps_a_threshold_that_95_percent_of_validation_reach(run):
    ood_detector = load_ood_detector(run / "run" / "model", 16)
    assert ood_detector.score in SCORES
    classifier = SiglipImageClassifier.from_pretrained(run / "run" / "model", dtype="float32")
    images = sorted((run / "data" / "validation").rglob("*.png"))
    known = [image.known for image in classifier.stream(images)]
    assert sum(known) == int(np.ceil(0.95 * len(known)))
    figures = json.loads((run / "run" / "metrics.json").read_text())["open_set"]
    assert figures["score"] == ood_detector.score
    assert figures["auroc_by_score"][ood_detector.score] == max(figures["auroc_by_score"].values())
    assert figures["validation"]["n_unknown"] == figures["test"]["n_unknown"] == 16 * len(KINDS)
    assert 0 <= figures["test"]["unknown_accepted"] <= 1


def test_predict_marks_images_below_the_threshold(run, capsys):
    model = str(run / "run" / "model")
    image = str(next((run / "data" / "test").rglob("*.png")))
    everything = [image, "--model", model, "--top_k", "1", "--dtype", "float32"]
    score = SiglipImageClassifier.from_pretrained(model, dtype="float32")
    value = next(score.stream([image])).known_score
    answers = {}
    for name, options in {
        "above": ["--threshold", str(value + 1e-3)],
        "below": [f"--threshold={value - 1e-3}"],
        "without": ["--no_threshold"],
    }.items():
        for kind in ("--json", "--csv", None):
            assert predict([*everything, *options, *([kind] if kind else [])]) == 0
            answers[name, kind] = capsys.readouterr().out
    known = {"above": False, "below": True, "without": None}
    assert {name: json.loads(answers[name, "--json"])["known"] for name in known} == known
    rows = {name: next(csv.DictReader(io.StringIO(answers[name, "--csv"]))) for name in known}
    shown = {name: row["known"] for name, row in rows.items()}
    assert shown == {"above": "false", "below": "true", "without": ""}
    marked = {name for name in known if "not one of the known classes" in answers[name, None]}
    assert marked == {"above"}


def test_without_a_fitted_threshold_a_number_is_one_of_probability(run, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for file in (run / "run" / "model").iterdir():
        if file.name != OOD_FILE:
            (model / file.name).write_bytes(file.read_bytes())
    image = Image.new("RGB", (16, 16))
    plain = next(SiglipImageClassifier.from_pretrained(model).stream([image], 1))
    assert (plain.known, plain.known_score) == (None, None)
    marked = next(SiglipImageClassifier.from_pretrained(model, threshold=0.999).stream([image], 1))
    assert marked.known is False
    assert marked.known_score == pytest.approx(plain.results[0]["score"], abs=1e-3)
    assert marked.results == plain.results


def test_the_command_fits_again_and_measures_a_folder(run, tmp_path, capsys):
    for number, kind in enumerate(KINDS):
        draw_ood_image(kind, number).save(tmp_path / f"{kind}.png")
    (tmp_path / "broken.png").write_text("no image")
    options = ["--model", str(run / "run"), "--accepted", "0.5", "--ood_dir", str(tmp_path)]
    try:
        assert fit_command(options) == 0
        out = capsys.readouterr().out
        assert f"{len(KINDS)} images in {tmp_path}:" in out
        assert load_ood_detector(run / "run" / "model", 16).accepted == 0.5
    finally:
        assert fit_command(["--model", str(run / "run")]) == 0


@pytest.mark.slow
def test_real_photographs_that_are_no_flowers_are_told_from_flowers(flowers_dir, nano_dir):
    """Crops of a temple, against real flowers: what the features of a real encoder are worth."""
    from sklearn.datasets import load_sample_image

    from siglip_flowers.evaluation.fitting import classify_images
    from siglip_flowers.model.loading import load_classifier, load_image_processor
    from tests.small_flowers import read_images

    temple = Image.fromarray(load_sample_image("china.jpg"))
    crops = [temple.crop((x, y, x + 150, y + 150)) for x in range(0, 480, 80) for y in (0, 90, 200)]
    model = load_classifier(str(nano_dir), ("a", "b"), pooling="mean").eval()
    processor = load_image_processor(str(nano_dir))
    flowers, _ = classify_images(model, processor, read_images(flowers_dir, 100))
    temples, _ = classify_images(model, processor, crops)
    known, unknown = (
        find_neighbors(flowers[::2], asked, 10)[1][:, -1] for asked in (flowers[1::2], temples)
    )
    assert measure_separation(known, unknown)["auroc"] > 0.95
