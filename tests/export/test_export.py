"""Exports run without this package and give the original's logits, in batches of any size."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Siglip2ImageProcessorPil, Siglip2VisionConfig, pipeline

from siglip_flowers import SiglipClassifier, SiglipClassifierConfig, SiglipImageClassifier
from siglip_flowers.base.errors import RunError
from siglip_flowers.export.command import main as export
from siglip_flowers.export.export import compare_logits, draw_images, name_inputs, prepare_images
from siglip_flowers.export.formats import (
    LogitsModel,
    OnnxClassifier,
    load_program,
    trace_program,
    write_onnx,
)
from siglip_flowers.model.loading import load_classifier, load_image_processor
from tests.conftest import REPOSITORY
from tests.small_runs import CLASSES, TINY, draw_image, make_checkpoint, make_folder
from tests.test_data_decoding import make_odd_files


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Saved classifiers by pooling, map with normalized features."""
    directory = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    checkpoint = make_checkpoint(directory / "checkpoint")
    for pooling in ("map", "mean"):
        torch.manual_seed(1)
        model = load_classifier(
            str(checkpoint), CLASSES, pooling=pooling, normalize_features=pooling == "map"
        )
        with torch.no_grad():
            model.classifier.weight.mul_(50)
        model.save_pretrained(directory / pooling)
        load_image_processor(str(checkpoint)).save_pretrained(directory / pooling)
    make_folder(directory / "data")
    return directory


@pytest.fixture(scope="module")
def onnx_export(models):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    output = models / "onnx"
    options = ["--model", str(models / "map"), "--format", "onnx", "--output", str(output)]
    options += ["--int8", "true"]
    assert export([*options, "--data_dir", str(models / "data")]) == 0
    return output


def original_logits(model, images):
    """Logits by transformers' own processor and the model itself."""
    inputs = load_image_processor(str(model))(images, return_tensors="pt")
    with torch.no_grad():
        return inputs["pixel_values"], SiglipClassifier.from_pretrained(model)(**inputs).logits


def test_the_documented_lines_give_the_scores_of_the_package(models, onnx_export, tmp_path):
    page = (REPOSITORY / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        if "InferenceSession" in block
    )
    code = code.replace("exported/onnx", str(onnx_export))
    classifier = SiglipImageClassifier.from_pretrained(models / "map", dtype="float32")
    for path in map(Path, make_odd_files(tmp_path)):
        if path.suffix == ".tif":
            continue  # Of gray samples that the lines read otherwise.
        names = {}
        exec(code.replace("rose.jpg", str(path)), names)
        scores = torch.from_numpy(names["logits"][0]).softmax(0).tolist()
        expected = {row["label"]: row["score"] for row in classifier(path)}
        assert dict(zip(names["names"], scores, strict=True)) == pytest.approx(
            expected, abs=1e-4
        ), path.name


def test_onnx_gives_the_logits_of_the_original(models, onnx_export):
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_export / "model.onnx")
    for count in (1, 7):
        pixels, expected = original_logits(models / "map", draw_images(count))
        (logits,) = session.run(["logits"], {"pixel_values": pixels.numpy()})
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert [axis.shape for axis in session.get_inputs()] == [["batch", 3, 16, 16]]
    assert [axis.shape for axis in session.get_outputs()] == [["batch", 3]]
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["class_names"]) == list(CLASSES)


def test_int8_is_measured_on_the_test_images(models, onnx_export):
    facts = json.loads((onnx_export / "export.json").read_text())
    assert facts["largest_difference"] <= 1e-4
    paths = sorted((models / "data" / "test").rglob("*.png"))
    pixels, _ = original_logits(models / "map", [Image.open(path) for path in paths])
    exact = OnnxClassifier(onnx_export / "model.onnx")(pixels)
    rounded = OnnxClassifier(onnx_export / facts["int8"]["file"])(pixels)
    assert not torch.equal(exact, rounded)
    labels = torch.tensor([CLASSES.index(path.parent.name) for path in paths])
    assert facts["int8"]["test"] == {
        "n": 12,
        "accuracy": pytest.approx(float((exact.argmax(1) == labels).float().mean())),
        "accuracy_int8": pytest.approx(float((rounded.argmax(1) == labels).float().mean())),
        "agreement": pytest.approx(float((exact.argmax(1) == rounded.argmax(1)).float().mean())),
    }
    # Random weights of a few channels, which eight bits round coarsely.
    assert np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.7


@pytest.mark.slow
def test_an_exported_program_carries_its_facts_and_any_batch(models, capsys):
    output = models / "program"
    options = ["--model", str(models / "map"), "--format", "exported_program"]
    assert export([*options, "--output", str(output)]) == 0
    assert "logits differ" in capsys.readouterr().out
    program, facts = load_program(output / "model.pt2")
    for count in (1, 2, 7):
        pixels, expected = original_logits(models / "map", draw_images(count))
        torch.testing.assert_close(program(pixels), expected, atol=1e-4, rtol=0)
    assert facts["class_names"] == list(CLASSES)


def test_a_native_export_is_a_plain_class_of_transformers(models, tmp_path):
    output = tmp_path / "native"
    options = ["--model", str(models / "mean"), "--format", "safetensors_native"]
    options += ["--output", str(output)]
    assert export(options) == 0
    assert json.loads((output / "config.json").read_text())["architectures"] == [
        "SiglipForImageClassification"
    ]
    draw_image(tmp_path / "image.png", "aster", 1)
    image = str(tmp_path / "image.png")
    native, ours = (
        pipeline("image-classification", model=str(path), device="cpu")(image)
        for path in (output, models / "mean")
    )
    assert [row["label"] for row in native] == [row["label"] for row in ours]
    assert [r["score"] for r in native] == pytest.approx([r["score"] for r in ours], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "{}/x"], "--format is missing"),
        (["--format", "onnx"], "--output is missing"),
        (["--format", "exported_program", "--output", "{}/x", "--int8"], "requires --format onnx"),
        (["--format", "safetensors_native", "--output", "{}/x"], "Train with --pooling mean"),
        (["--format", "safetensors_native", "--output", "{}"], "name a new directory"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_the_reason(
    models, tmp_path, options, message, capsys
):
    (tmp_path / "thesis.txt").write_text("years of work")
    options = [option.format(tmp_path) for option in options]
    assert export(["--model", str(models / "map"), *options]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_model_does_not_pass_the_check(models):
    model = SiglipClassifier.from_pretrained(models / "mean").eval()
    original = LogitsModel(model, ("pixel_values",))
    inputs = (torch.randn(8, 3, 16, 16),)
    error = 2e-4 * float(original(*inputs).detach().abs().max())
    for wrong in (lambda x: model(x).logits + error, lambda x: model(x).logits * float("nan")):
        with pytest.raises(RunError, match="logits differ"):
            compare_logits(original, wrong, inputs)


def test_rounding_may_grow_with_the_logits():
    """The scale of a text head, about 100, multiplies the rounding of float32, too."""
    inputs = (100 * torch.randn(8, 3),)
    compare_logits(lambda x: x, lambda x: x * (1 + 5e-5), inputs)
    for scale, wrong in ((1, lambda x: x * (1 + 2e-4)), (1e-3, lambda x: x + 2e-4)):
        with pytest.raises(RunError, match="logits differ"):
            compare_logits(lambda x: x, wrong, (scale * inputs[0],))


@pytest.mark.slow
def test_naflex_models_are_exported_with_their_three_inputs(tmp_path):
    pytest.importorskip("onnxruntime")
    config = Siglip2VisionConfig(**TINY, patch_size=8, num_patches=16)
    class_names = dict(enumerate(CLASSES))
    model = SiglipClassifier(SiglipClassifierConfig(config, id2label=class_names)).eval()
    names = name_inputs(model)
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    inputs = prepare_images(draw_images(8), processor, names)
    program = trace_program(model, names, inputs)
    original = LogitsModel(model, names)
    assert compare_logits(original, program.module(), inputs) <= 1e-4
    write_onnx(program, names, tmp_path / "model.onnx", {"format": "onnx"})
    assert compare_logits(original, OnnxClassifier(tmp_path / "model.onnx"), inputs) <= 1e-4
