"""The Python interface: as the pipeline of transformers, whatever kind of image is given."""

import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from siglip_flowers import SiglipImageClassifier
from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.prompts import FLOWER_NAMES
from siglip_flowers.config import DataArguments
from siglip_flowers.data.pixels.tensors import PixelForm, PixelNormalizer
from siglip_flowers.evaluation.predict import PassOptions, evaluate_split
from siglip_flowers.inference.engine import InferenceEngine
from siglip_flowers.model.loading import (
    load_classifier,
    load_image_processor,
    load_saved_classifier,
)
from siglip_flowers.runtime.devices import choose_attention, resolve_device, resolve_dtype
from tests.small_flowers import build_flowers, read_images
from tests.small_runs import CLASSES, make_checkpoint

DECODED = DataArguments(pixel_cache=False)

CPU = torch.device("cpu")


def save_classifier(checkpoint, directory, names, **options):
    torch.manual_seed(3)
    model = load_classifier(str(checkpoint), names, **options)
    # Differences between classes that a tolerance of 1e-4 can see.
    with torch.no_grad():
        model.classifier.weight.mul_(5)
    model.save_pretrained(directory)
    load_image_processor(str(checkpoint)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """Three classes at 16 pixels, untrained."""
    directory = tmp_path_factory.mktemp("small")
    checkpoint = make_checkpoint(directory / "checkpoint")
    return save_classifier(checkpoint, directory / "model", CLASSES)


@pytest.fixture(scope="module")
def small(small_model):
    return SiglipImageClassifier.from_pretrained(small_model, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def photograph_paths(flowers_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp("photographs")
    paths = []
    for number, image in enumerate(read_images(flowers_dir, 12)):
        paths.append(str(directory / f"{number:03d}.png"))
        image.save(paths[-1])
    return paths


def color(value, size=(20, 12), mode="RGB"):
    return Image.new(mode, size, value)


def encode(image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def assert_same(ours, theirs, tolerance=1e-4):
    assert len(ours) == len(theirs)
    for our_row, their_row in zip(ours, theirs, strict=True):
        assert [entry["label"] for entry in our_row] == [entry["label"] for entry in their_row]
        np.testing.assert_allclose(
            [entry["score"] for entry in our_row],
            [entry["score"] for entry in their_row],
            atol=tolerance,
        )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_labels_and_scores_are_the_pipelines(tiny_dir, photograph_paths, tmp_path, activation):
    directory = save_classifier(tiny_dir, tmp_path, FLOWER_NAMES, activation=activation)
    classifier = SiglipImageClassifier.from_pretrained(directory, dtype="float32", device="cpu")
    reference = pipeline("image-classification", model=str(directory), device="cpu")
    assert_same(classifier(photograph_paths), reference(photograph_paths))
    assert_same([classifier(photograph_paths[0], top_k=2)], [reference(photograph_paths[0])[:2]])


def test_every_kind_of_source_gives_the_same(small, tmp_path):
    image = read_gradient()
    path = tmp_path / "image.png"
    image.save(path)
    sources = [path, str(path), image, np.asarray(image), path.read_bytes(), Image.open(path)]
    results = small(sources)
    # A row's place in the batch may change its last bit.
    assert_same(results, [results[0]] * len(results), 1e-6)
    assert_same([small(path)], results[:1], 1e-6)
    assert_same(small(np.stack([np.asarray(image)] * 2)), results[:2], 1e-6)
    for dtype in (str, object):  # columns of a table
        assert_same(small(np.array([str(path)] * 2, dtype)), results[:2], 1e-6)
    assert small(source for source in sources) == results
    assert small([]) == []


def read_gradient() -> Image.Image:
    ramp = np.arange(40 * 30 * 3) * 7 % 256
    return Image.fromarray(ramp.astype(np.uint8).reshape(40, 30, 3))


def test_top_k_is_bounded_by_the_classes(small):
    assert len(small(color("red"), top_k=50)) == len(CLASSES)
    assert len(small(color("red"), top_k=1)) == 1
    with pytest.raises(InputError, match="top_k is 0"):
        small(color("red"), top_k=0)


def test_scores_that_mean_nothing_are_refused(small, monkeypatch):
    outputs = torch.full((1, len(CLASSES)), torch.nan)
    monkeypatch.setattr(small.engine, "classify_with_features", lambda pixels: outputs)
    with pytest.raises(RunError, match="logits are not finite"):
        small(color("red"))


def test_order_is_kept_with_many_threads(small_model):
    classifier = SiglipImageClassifier.from_pretrained(
        small_model, dtype="float32", device="cpu", batch_size=9, num_workers=16
    )
    generator = np.random.default_rng(0)
    # Large and small images in turn, so that threads finish out of order.
    arrays = [generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (300, 8) * 10]
    expected = [classifier(array) for array in arrays]
    assert_same(classifier(arrays), expected, tolerance=1e-6)
    assert [p.source is a for p, a in zip(classifier.stream(arrays), arrays, strict=True)] == [
        True
    ] * len(arrays)


def test_broken_images_are_reported_and_the_others_classified(small, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    good = encode(read_gradient(), format="JPEG")
    whole = encode(read_gradient().resize((300, 300)), format="PNG")
    sources = {
        "empty.jpg": b"",
        "text.jpg": b"not an image",
        "cut.png": whole[: len(whole) // 2],
        "bomb.png": encode(color("red", (1000, 1000)), format="PNG"),
    }
    for name, content in sources.items():
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in sources] + [str(tmp_path / "absent.jpg")]
    odd = [np.zeros((4, 4, 3)), "https://example.org/x.jpg"]
    given = [good, *paths, *odd, good]
    predictions = list(small.stream(given))
    assert [p.source for p in predictions] == given
    problems = [p.problem for p in predictions]
    assert problems[0] == problems[-1] == ""
    assert problems[1:3] == ["not an image", "not an image"]
    assert all(problems[1:-1])
    assert "more than 0 megapixels" in problems[4]
    assert problems[5] == "No such file or directory"
    assert "uint8" in problems[6]
    assert "allow_urls" in problems[7]
    assert predictions[0].results == predictions[-1].results
    assert_same([predictions[0].results], [small(good)], 1e-6)
    assert all(p.results == [] for p in predictions[1:-1])
    with pytest.raises(RunError, match=r"7 of 9 images cannot be read: .*empty.jpg"):
        small(given)
    skipped = small(given, skip_corrupt_images=True)
    assert [len(row) for row in skipped] == [3, *[0] * 7, 3]
    # A batch of nothing but broken ones.
    assert [p.results for p in small.stream(paths)] == [[]] * 5


def test_a_stream_reads_no_further_ahead_than_a_few_batches(small):
    drawn = 0

    def sources():
        nonlocal drawn
        while True:
            drawn += 1
            yield np.zeros((16, 16, 3), dtype=np.uint8)

    stream = small.stream(sources(), top_k=1)
    for _ in range(300):
        next(stream)
    assert drawn < 300 + 8 * small.batch_size
    stream.close()


def test_decoding_threads_end_with_the_stream(small):
    before = threading.active_count()
    stream = small.stream([np.zeros((16, 16, 3), dtype=np.uint8)] * 500)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_float32_products_are_computed_in_float32_during_the_pass_alone(small):
    def read_precisions():
        return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision

    before, seen = read_precisions(), []
    hook = small.engine.model.classifier.register_forward_hook(
        lambda *_: seen.append(read_precisions())
    )
    small(color(10))
    hook.remove()
    assert seen == [("ieee", "ieee")]
    assert read_precisions() == before


def test_evaluation_in_float32_is_the_models_own_forward_to_the_last_bit(small_model, flowers_dir):
    rows = build_flowers(flowers_dir, classes=3, train=16).splits["train"]
    model, processor = (
        load_saved_classifier(str(small_model)),
        load_image_processor(str(small_model)),
    )
    normalize = PixelNormalizer(processor)
    logits, features = [], []
    for start in range(0, len(rows), 24):
        images = rows[start : start + 24]["image"]
        pixels = torch.stack([PixelForm(16, processor.resample).resize(image) for image in images])
        with torch.inference_mode():
            logits.append(model(pixel_values=normalize(pixels)).logits.numpy())
            features.append(model.extract_features(normalize(pixels)).numpy())
    found = evaluate_split(model, processor, rows, "train", PassOptions(24, DECODED))
    np.testing.assert_array_equal(found.logits, np.concatenate(logits))
    np.testing.assert_array_equal(found.features, np.concatenate(features))
    half = PassOptions(24, DECODED, dtype="bfloat16")
    close = evaluate_split(model, processor, rows, "train", half).logits
    assert close.dtype == np.float32
    np.testing.assert_allclose(close, np.concatenate(logits), atol=0.1)
    assert (close != np.concatenate(logits)).any()


def test_batches_that_run_out_of_memory_are_halved(small_model, monkeypatch):
    model = load_saved_classifier(str(small_model))
    engine = InferenceEngine(model, load_image_processor(str(small_model)), device=CPU)
    pixels = torch.randint(0, 256, (21, 3, 16, 16), dtype=torch.uint8)
    expected = engine.classify(pixels)
    sizes, encode_batch = [], model.extract_features

    def encode_few(pixel_values):
        sizes.append(len(pixel_values))
        if len(pixel_values) > 6:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return encode_batch(pixel_values)

    monkeypatch.setattr(engine.model, "extract_features", encode_few)
    torch.testing.assert_close(engine.classify(pixels), expected)
    assert sizes == [21, 10, 5, 5, 5, 5, 1]
    engine.classify(pixels)
    assert sizes[7:] == [5, 5, 5, 5, 1]

    def fail(pixel_values):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(engine.model, "extract_features", fail)
    with pytest.raises(RunError, match="A single image exceeds the memory"):
        engine.classify(pixels)

    def break_down(pixel_values):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(engine.model, "extract_features", break_down)
    with pytest.raises(RuntimeError, match="shapes"):
        engine.classify(pixels)


def test_number_formats_and_devices_are_checked(small_model):
    assert resolve_dtype("float32", CPU) == torch.float32
    assert resolve_dtype(torch.bfloat16, CPU) == torch.bfloat16
    assert choose_attention(CPU, torch.bfloat16, 196) == "eager"
    assert choose_attention(CPU, torch.bfloat16, 576) == "sdpa"
    assert resolve_dtype("float16", torch.device("cuda")) == torch.float16
    with pytest.raises(InputError, match="float16 needs a CUDA device, and the model runs on cpu"):
        resolve_dtype("float16", CPU)
    with pytest.raises(InputError, match="--dtype is 'int8'; choose one of auto, float32"):
        resolve_dtype("int8", CPU)
    with pytest.raises(InputError, match="The device 'nonsense' cannot be used"):
        resolve_device("nonsense")
    with pytest.raises(InputError, match="--attn_implementation nonsense cannot be used"):
        SiglipImageClassifier.from_pretrained(small_model, attn_implementation="nonsense")
    with pytest.raises(InputError, match="batch_size is 0"):
        SiglipImageClassifier.from_pretrained(small_model, batch_size=0)
