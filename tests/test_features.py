"""Features of a frozen encoder: right, computed once, and never mistaken for others."""

import numpy as np
import pytest
import torch

from siglip_flowers.config import AugmentationArguments, DataArguments, SiglipTrainingArguments
from siglip_flowers.data.augmentation import BatchAugmenter
from siglip_flowers.data.pixels.array_cache import locate_cache
from siglip_flowers.data.pixels.tensors import PixelDataset
from siglip_flowers.evaluation.features import (
    FeatureDataset,
    FeatureExtractor,
    digest_weights,
    list_poolings,
)
from siglip_flowers.evaluation.predict import PassOptions, extract_features
from siglip_flowers.model.loading import load_classifier, load_image_processor
from tests.small_flowers import build_flowers

NAMES = [str(label) for label in range(4)]


@pytest.fixture(scope="module")
def rows(flowers_dir):
    """20 photographs of 4 classes."""
    return build_flowers(flowers_dir, train=5).splits["train"]


@pytest.fixture(scope="module")
def processor(nano_dir):
    return load_image_processor(str(nano_dir))


@pytest.fixture
def build(nano_dir, processor, tmp_path):
    """Build an extractor with a cache of its own, and count the images its tower sees."""

    def build(pooling="map", change=None, cache="cache", **options):
        model = load_classifier(str(nano_dir), NAMES, pooling=pooling)
        if change is not None:
            change(model)
        training = SiglipTrainingArguments(
            output_dir=str(tmp_path / "run"),
            use_cpu=True,
            bf16=options.pop("bf16", False),
            per_device_eval_batch_size=options.pop("batch_size", 7),
        )
        data = DataArguments(cache_dir=str(tmp_path / cache), **options)
        extractor = FeatureExtractor(model, processor, data, training)
        extractor.seen = []
        model.vision_model.register_forward_pre_hook(
            lambda module, args, kwargs: extractor.seen.append(len(kwargs["pixel_values"])),
            with_kwargs=True,
        )
        return extractor

    return build


@pytest.mark.parametrize("pixel_cache", [True, False])
def test_features_are_what_the_model_pools(build, rows, nano_dir, processor, pixel_cache):
    features = build(pixel_cache=pixel_cache).open(rows, "train")
    assert features.shape == (20, 2, 192)
    assert features.dtype == np.float32
    for number, pooling in enumerate(("map", "mean")):
        model = load_classifier(str(nano_dir), NAMES, pooling=pooling)
        expected = extract_features(model, processor, rows, PassOptions(20))
        np.testing.assert_allclose(features[:, number], expected, atol=2e-5)
    assert np.abs(features[:, 0] - features[:, 1]).max() > 0.1


def test_a_tower_without_attention_pooling_gives_the_mean_alone(build, rows):
    extractor = build(pooling="mean")
    assert list_poolings(extractor.model) == ("mean",)
    features = extractor.open(rows, "train")
    np.testing.assert_allclose(features[:, 0], build().open(rows, "train")[:, 1], atol=2e-5)


def test_every_image_is_encoded_once_and_never_again(build, rows):
    first = build()
    features = first.open(rows, "train")
    assert sum(first.seen) == first.encoded == len(rows)
    for extractor in (first, build(batch_size=3)):
        again = extractor.open(rows, "train")
        np.testing.assert_array_equal(again, features)
    assert extractor.seen == []


def test_other_weights_images_or_precision_are_encoded_anew(build, rows):
    features = build().open(rows, "train")

    def change(model):
        with torch.no_grad():
            model.vision_model.encoder.layers[3].mlp.fc1.bias[5] += 0.5

    other = build(change=change)
    assert np.abs(other.open(rows, "train") - features).max() > 1e-4
    assert other.encoded == 20
    other = build()
    swapped = other.open(rows.select(range(19, -1, -1)), "train")
    np.testing.assert_allclose(swapped[::-1], features, atol=2e-5)
    assert other.encoded == 20
    halved = build(bf16=True)
    rounded = halved.open(rows, "train")
    assert halved.encoded == 20
    assert 1e-5 < np.abs(rounded - features).max() < 0.5
    assert len(list(locate_cache(halved.data).glob("features-*/array.npy"))) == 4


def test_bfloat16_features_are_those_of_autocast(build, rows, processor):
    extractor = build(bf16=True)
    features = extractor.open(rows, "train")
    pixels = torch.stack(
        [item["pixel_values"] for item in PixelDataset(rows, 64, processor.resample)]
    )
    inputs = extractor.normalizer(pixels)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = extractor.model.extract_features(inputs).float()
    scale = expected.abs().mean()
    assert np.abs(features[:, 0] - expected.numpy()).mean() < 0.02 * scale


def test_a_head_does_not_change_the_key_of_the_features(build, rows):
    build().open(rows, "train")
    other = build(change=lambda model: torch.nn.init.ones_(model.classifier.weight))
    other.open(rows, "train")
    assert other.encoded == 0


def test_a_view_is_what_training_would_show_in_the_step_of_its_number(build, rows, processor):
    extractor = build()
    augmenter = BatchAugmenter(AugmentationArguments(crop_min_scale=0.4), 64, 4, seed=3)
    options = {"augmenter": augmenter, "pixel_size": 74}
    views = [extractor.open(rows, "a view", view=view, **options) for view in range(2)]
    images = list(PixelDataset(rows, 74, processor.resample))
    pixels = torch.stack([item["pixel_values"] for item in images])
    labels = torch.tensor([item["labels"] for item in images])
    varied, _ = augmenter(pixels, labels, np.arange(20), 1)
    with torch.no_grad():
        expected = extractor.model.extract_features(extractor.normalizer(varied))
    np.testing.assert_allclose(views[1][:, 0], expected, atol=2e-5)
    assert np.abs(views[0] - views[1]).max() > 0.1
    extractor.open(rows, "a view", view=1, **options)
    assert extractor.encoded == 40
    other = BatchAugmenter(AugmentationArguments(crop_min_scale=0.4), 64, 4, seed=4)
    extractor.open(rows, "a view", view=1, augmenter=other, pixel_size=74)
    assert extractor.encoded == 60


def test_without_room_on_disk_features_stay_in_memory(build, rows, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    extractor = build(cache="file")
    features = extractor.open(rows, "train")
    np.testing.assert_allclose(features, build().open(rows, "train"), atol=2e-5)
    assert extractor.encoded == 20
    assert "cannot be written" in caplog.text


def test_a_batch_too_large_for_memory_is_encoded_in_parts(build, rows, monkeypatch):
    extractor = build(batch_size=20)
    run_tower = extractor._run_tower

    def run_small(inputs):
        if len(inputs["pixel_values"]) > 6:
            raise torch.OutOfMemoryError
        return run_tower(inputs)

    monkeypatch.setattr(extractor, "_run_tower", run_small)
    features = extractor.open(rows, "train")
    assert max(extractor.seen) <= 6
    np.testing.assert_allclose(features, build(cache="other").open(rows, "train"), atol=2e-5)


def test_digest_tells_values_names_and_shapes_apart():
    layers = [torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)]
    layers[1].load_state_dict(layers[0].state_dict())
    assert digest_weights(layers[0]) == digest_weights(layers[1])
    with torch.no_grad():
        layers[1].bias[0] = torch.nextafter(layers[1].bias[0], torch.tensor(9.0))
    assert digest_weights(layers[0]) != digest_weights(layers[1])
    assert digest_weights(layers[0]) != digest_weights(layers[0].to(torch.bfloat16))


def test_batches_hold_the_asked_poolings_of_the_asked_rows():
    features = np.arange(5 * 2 * 3, dtype=np.float32).reshape(5, 2, 3)
    dataset = FeatureDataset([features], np.arange(5), [1])
    batch = dataset.__getitems__([4, 0])
    assert batch["features"].tolist() == [[[27, 28, 29]], [[3, 4, 5]]]
    assert batch["labels"].tolist() == batch["index"].tolist() == [4, 0]
    assert dataset[4]["features"].tolist() == [[27, 28, 29]]


def test_rows_go_through_all_views_in_as_many_epochs():
    views = [np.full((50, 1, 1), float(view), dtype=np.float32) for view in range(4)]
    dataset = FeatureDataset(views, np.zeros(50), [0], seed=1)
    seen = []
    for epoch in range(4):
        dataset.epoch = epoch
        seen.append(dataset.gather(np.arange(50)).ravel())
    assert (np.sort(seen, axis=0) == np.arange(4)[:, None]).all()
    assert len(set(seen[0])) == 4


def test_memory_that_runs_out_loses_no_image(build, rows):
    expected = build(batch_size=8, cache="whole").open(rows, "train")
    extractor = build(batch_size=8)

    def limit(module, args, kwargs):
        if len(kwargs["pixel_values"]) > 3:
            torch.empty(10**15, dtype=torch.uint8)

    extractor.model.vision_model.register_forward_pre_hook(limit, with_kwargs=True)
    found = extractor.open(rows, "train")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Found out once, and known from then on.
    assert extractor.seen[:3] == [8, 4, 2]
    assert max(extractor.seen[2:]) == 2
