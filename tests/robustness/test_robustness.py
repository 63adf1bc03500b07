"""Robustness and test-time augmentation of a small classifier, against plain loops."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from siglip_flowers.commands import eval as eval_command
from siglip_flowers.commands import train as train_command
from siglip_flowers.config import DataArguments
from siglip_flowers.data.sources.load import load_data
from siglip_flowers.evaluation.predict import PassOptions
from siglip_flowers.metrics.bootstrap import bootstrap_headline
from siglip_flowers.model.loading import load_image_processor, load_saved_classifier
from siglip_flowers.robustness.corruptions import CORRUPTIONS, KINDS, STRENGTHS, VIEWS, corrupt
from siglip_flowers.robustness.extension import (
    format_robustness,
    list_views,
    measure_augmented,
    measure_robustness,
    summarize_robustness,
)
from tests.small_runs import make_checkpoint, make_folder, small_options

DECODED = DataArguments(pixel_cache=False)

pytestmark = pytest.mark.figures


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that tells three colors apart, mostly."""
    root = tmp_path_factory.mktemp("robustness")
    checkpoint, folder = make_checkpoint(root / "checkpoint"), make_folder(root / "data")
    argv = small_options(checkpoint, folder, root / "run", "--learning_rate", "3e-3")
    assert train_command.main(argv) == 0
    return root / "run"


@pytest.fixture(scope="module")
def evaluation(run):
    model = str(run / "model")
    return SimpleNamespace(
        model=load_saved_classifier(model),
        processor=load_image_processor(model),
        rows=load_data(DataArguments(data_dir=str(run.parent / "data"))).splits["test"],
        pass_options=PassOptions(5, DECODED),
    )


def classify(evaluation, pixels: torch.Tensor) -> torch.Tensor:
    """Return probabilities, one image at a time and by the checkpoint's own processor."""
    found = []
    for image in pixels:
        pil = Image.fromarray(image.permute(1, 2, 0).numpy())
        inputs = evaluation.processor(images=pil, return_tensors="pt")
        with torch.inference_mode():
            found.append(evaluation.model(**inputs).logits.softmax(dim=1))
    return torch.cat(found)


def read_pixels(rows) -> torch.Tensor:
    images = [np.asarray(row["image"].convert("RGB")) for row in rows]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def test_each_accuracy_is_that_of_a_plain_loop(evaluation):
    kinds = ("gaussian_noise", "contrast", "jpeg", "rotation")
    found = measure_robustness(evaluation, kinds)
    assert [(row["kind"], row["strength"]) for row in found] == [
        ("clean", 0),
        *((kind, strength) for kind in kinds for strength in STRENGTHS),
    ]
    pixels, labels = read_pixels(evaluation.rows), torch.tensor(evaluation.rows["label"])
    for row in found:
        changed = pixels
        if row["strength"]:
            changed = corrupt(pixels, row["kind"], row["strength"], range(len(pixels)))
        predicted = classify(evaluation, changed).argmax(dim=1)
        assert row["accuracy"] == int((predicted == labels).sum()) / len(labels)
        ends = bootstrap_headline(labels, predicted, len(evaluation.model.class_names))["accuracy"]
        assert (row["low"], row["high"]) == ends
    # Batches make no difference.
    other = SimpleNamespace(**{**vars(evaluation), "pass_options": PassOptions(3, DECODED)})
    assert measure_robustness(other, kinds) == found


def make_rows(values: dict[str, float], clean: float) -> list[dict]:
    rows = [{"kind": "clean", "strength": 0, "accuracy": clean, "low": 0.0, "high": 1.0}]
    for kind, value in values.items():
        rows += [
            {"kind": kind, "strength": s, "accuracy": value / s, "low": 0.0, "high": 1.0}
            for s in STRENGTHS
        ]
    return rows


def test_the_summary_by_hand():
    steps = np.mean([1 / strength for strength in STRENGTHS])
    rows = make_rows({"fog": 0.5, "jpeg": 0.7, "rotation": 0.1}, clean=0.8)
    summary = summarize_robustness(rows)
    assert summary["clean_accuracy"] == 0.8
    assert summary["mean_corruption_accuracy"] == pytest.approx(0.6 * steps)
    assert summary["relative_corruption_accuracy"] == pytest.approx(0.6 * steps / 0.8)
    assert summary["mean_view_accuracy"] == pytest.approx(0.1 * steps)
    assert "clean 80.0%" in format_robustness({**summary, "rows": rows})
    # A model that is never right has nothing to lose.
    nothing = summarize_robustness(make_rows({"fog": 0.0, "rotation": 0.0}, clean=0.0))
    assert nothing["relative_corruption_accuracy"] == 0
    assert set(CORRUPTIONS) | set(VIEWS) == set(KINDS)


def test_the_views_are_mirrored_and_cropped_as_pillow_does():
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    pil = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    (mirrored,) = list_views("flip", 32)
    expected = pil.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    np.testing.assert_array_equal(mirrored(pixels)[0].permute(1, 2, 0).numpy(), expected)
    views = list_views("multicrop", 32)
    assert len(views) == 6
    boxes = ((0, 0), (4, 0), (0, 4), (4, 4), (2, 2))
    for view, (left, top) in zip(views[1:], boxes, strict=True):
        part = pil.crop((left, top, left + 28, top + 28))
        wanted = np.asarray(part.resize((32, 32), Image.Resampling.BILINEAR), dtype=int)
        shown = view(pixels)
        assert shown.dtype == torch.uint8
        assert np.abs(shown[0].permute(1, 2, 0).numpy() - wanted).max() <= 1


@pytest.mark.parametrize(("kind", "cost"), [("flip", 2), ("multicrop", 7)])
def test_augmented_answers_are_those_of_the_mean_probabilities(evaluation, kind, cost):
    plain, augmented = measure_augmented(evaluation, kind)
    pixels, labels = read_pixels(evaluation.rows), torch.tensor(evaluation.rows["label"])
    views = [classify(evaluation, pixels)]
    views += [classify(evaluation, view(pixels)) for view in list_views(kind, 16)]
    mean = torch.stack(views).mean(dim=0).argmax(dim=1)
    assert plain["accuracy"] == float((views[0].argmax(dim=1) == labels).float().mean())
    assert augmented["accuracy"] == pytest.approx(float((mean == labels).float().mean()))
    assert augmented["gain"] == pytest.approx(augmented["accuracy"] - plain["accuracy"])
    assert augmented["gain_low"] <= augmented["gain"] <= augmented["gain_high"]
    assert (plain["gain"], plain["cost"], augmented["cost"]) == (0, 1, cost)


@pytest.mark.slow
def test_the_command_prints_and_writes_both(run, tmp_path, capsys):
    argv = ["--model", str(run), "--output_dir", str(tmp_path), "--max_eval_samples", "6"]
    assert eval_command.main([*argv, "--robustness", "true", "--tta", "flip"]) == 0
    shown = capsys.readouterr().out
    assert "mean over corruptions" in shown
    assert "gain, points" in shown
    metrics = json.loads((tmp_path / "metrics_test.json").read_text())
    rows = metrics["robustness"]["rows"]
    assert rows[0]["accuracy"] == metrics["accuracy"]
    assert len(rows) == 1 + len(KINDS) * len(STRENGTHS)
    assert [row["name"] for row in metrics["augmented"]] == ["plain", "flip"]
    assert Image.open(tmp_path / "robustness.png").width > 600
