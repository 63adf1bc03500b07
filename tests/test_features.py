"""Features of a frozen encoder, computed once, and the heads that are fitted on them."""

import json
import re

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import SiglipVisionModel

from siglip_flowers.commands.train import main as train
from siglip_flowers.config import DataArguments
from siglip_flowers.data.pixels.array_cache import locate_cache
from siglip_flowers.evaluation.features import digest_weights, list_poolings, load_features
from siglip_flowers.evaluation.predict import PassOptions, evaluate_split
from siglip_flowers.model.heads import choose_fit, fit_and_validate, fit_logistic_heads, set_head
from siglip_flowers.model.loading import load_classifier, load_image_processor
from tests.small_flowers import build_flowers
from tests.small_runs import make_checkpoint, make_folder, small_options

DECODED = DataArguments(pixel_cache=False)

NAMES = [str(label) for label in range(4)]


@pytest.fixture(scope="module")
def rows(flowers_dir):
    """20 photographs of 4 classes."""
    return build_flowers(flowers_dir, train=5).splits["train"]


@pytest.fixture(scope="module")
def processor(tiny_dir):
    return load_image_processor(str(tiny_dir))


@pytest.fixture
def load(tiny_dir, processor, tmp_path):
    """Load features with a cache of its own, and record the batches that the tower encodes."""

    def load(
        rows, pooling="map", change=None, cache="cache", batch_size=7, dtype="float32", **options
    ):
        arguments = DataArguments(cache_dir=str(tmp_path / cache), **options)
        model = load_classifier(str(tiny_dir), NAMES, pooling=pooling)
        if change is not None:
            change(model)
        load.seen = []
        hook = torch.nn.modules.module.register_module_forward_pre_hook(count_images)
        try:
            return load_features(model, processor, rows, PassOptions(batch_size, arguments, dtype))
        finally:
            hook.remove()

    def count_images(module, args):
        if isinstance(module, torch.nn.Conv2d):
            load.seen.append(len(args[0]))

    load.cache = tmp_path / "cache"
    return load


@pytest.mark.parametrize("pixel_cache", [True, False])
def test_features_are_what_the_model_pools(load, rows, tiny_dir, processor, pixel_cache):
    features = load(rows, pixel_cache=pixel_cache)
    assert list(features) == ["map", "mean"]
    for pooling, found in features.items():
        model = load_classifier(str(tiny_dir), NAMES, pooling=pooling)
        expected = evaluate_split(
            model, processor, rows, "train", PassOptions(20, DECODED)
        ).features
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(features["map"] - features["mean"]).max() > 0.1


def test_a_tower_without_attention_pooling_gives_the_mean_alone(load, rows, tiny_dir):
    model = load_classifier(str(tiny_dir), NAMES, pooling="mean")
    assert list_poolings(model) == ("mean",)
    expected = load(rows)["mean"]
    found = load(rows, pooling="mean")
    assert list(found) == ["mean"]
    np.testing.assert_allclose(found["mean"], expected, atol=2e-5)


def test_every_image_is_encoded_once_until_what_features_depend_on_changes(
    load, rows, processor, monkeypatch
):
    features = load(rows)
    assert sum(load.seen) == len(rows)
    for options in ({}, {"batch_size": 3}, {"change": change_head}):
        np.testing.assert_array_equal(load(rows, **options)["map"], features["map"])
        assert load.seen == []
    changed = load(rows, change=change_tower)
    assert np.abs(changed["map"] - features["map"]).max() > 1e-4
    assert sum(load.seen) == 20
    swapped = load(rows.select(range(19, -1, -1)))
    np.testing.assert_allclose(swapped["map"][::-1], features["map"], atol=2e-5)
    assert sum(load.seen) == 20
    rounded = load(rows, dtype="bfloat16")
    assert sum(load.seen) == 20
    assert 1e-5 < np.abs(rounded["map"] - features["map"]).max() < 0.5
    monkeypatch.setattr(processor, "do_normalize", False)
    assert np.abs(load(rows)["map"] - features["map"]).max() > 1e-4
    cache = locate_cache(DataArguments(cache_dir=str(load.cache)))
    assert len(list(cache.glob("features-*/array.npy"))) == 5


def change_head(model):
    torch.nn.init.ones_(model.classifier.weight)


def change_tower(model):
    with torch.no_grad():
        model.vision_model.encoder.layers[1].mlp.fc1.bias[5] += 0.5


def test_memory_that_runs_out_loses_no_image(load, rows):
    expected = load(rows, batch_size=8, cache="whole")

    def limit(module, args, kwargs):
        if len(kwargs["pixel_values"]) > 3:
            torch.empty(10**15, dtype=torch.uint8)

    def add_limit(model):
        model.vision_model.register_forward_pre_hook(limit, with_kwargs=True)

    found = load(rows, batch_size=8, change=add_limit)
    np.testing.assert_allclose(found["map"], expected["map"], atol=1e-5)
    assert max(load.seen) == 2


def draw_features(rows, classes=4, width=6, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    centers = np.random.default_rng(1).normal(size=(classes, width))
    features = 3 + (centers[labels] + generator.normal(size=(rows, width))) * np.logspace(
        -1, 1, width
    )
    return features.astype(np.float32), labels


def whiten_halfway(features):
    """Return features along their principal axes, by another route: singular values."""
    centered = features - features.mean(axis=0, dtype=np.float64)
    left, singular, _ = np.linalg.svd(centered, full_matrices=False)
    variances = singular**2 / len(features)
    spread = np.sqrt(variances) * (variances + 0.01 * variances.mean()) ** -0.25
    return left * spread * np.sqrt(len(features) * len(spread) / np.sum(spread**2))


@pytest.mark.parametrize(("classes", "balanced"), [(4, False), (4, True), (2, False)])
def test_heads_are_scikit_learns_logistic_regression_on_half_whitened_features(classes, balanced):
    features, labels = draw_features(120, classes)
    # Classes of unequal size.
    kept = (labels > 0) | (np.arange(120) < 60)
    features, labels = features[kept], labels[kept]
    penalties = (1.0, 0.1, 1e-3)
    heads = fit_logistic_heads(features, labels, classes, penalties, balanced=balanced)
    white = whiten_halfway(features)
    assert white.var(axis=0).mean() == pytest.approx(1)
    for penalty, (weight, bias) in zip(penalties, heads, strict=True):
        # Theirs is the sum over rows, and knows two classes as one logit.
        strength = 1 / (penalty * len(labels)) * (2 if classes == 2 else 1)
        reference = LogisticRegression(
            C=strength, max_iter=2000, tol=1e-8, class_weight="balanced" if balanced else None
        ).fit(white, labels)
        logits = torch.from_numpy(features @ weight.T + bias)
        np.testing.assert_allclose(logits.softmax(1), reference.predict_proba(white), atol=0.02)


def test_validation_chooses_the_penalty(tiny_dir):
    train, validation = draw_features(80, width=32), draw_features(40, width=32, seed=2)
    model = load_classifier(str(tiny_dir), NAMES)
    fits = fit_and_validate(train, validation, 4)
    chosen = choose_fit(fits)
    set_head(model, chosen.head)
    best = max(fit.validation_accuracy for fit in fits)
    equals = [fit for fit in fits if fit.validation_accuracy == best]
    assert chosen.penalty == min(equals, key=lambda fit: fit.validation_nll).penalty
    with torch.no_grad():
        logits = model.classify_features(torch.from_numpy(validation[0]))
    assert (logits.argmax(1).numpy() == validation[1]).mean() == best > 0.5
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(validation[1]))
    assert loss.item() == pytest.approx(chosen.validation_nll, rel=1e-3)


def test_a_run_that_trains_the_head_alone_fits_it_on_features(tmp_path, capsys):
    checkpoint, folder = make_checkpoint(tmp_path / "tiny"), make_folder(tmp_path / "images")
    argv = small_options(checkpoint, folder, tmp_path / "run", "--trainable", "head")
    assert train([*argv, "--augment", "false"]) == 0
    assert re.search(r"\d MB for the model .*\n.* computed once", capsys.readouterr().out)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["training"]["steps"] == 0
    assert metrics["splits"]["test"]["accuracy"] > 0.9
    assert metrics["head_fit"]["validation_accuracy"] == metrics["splits"]["validation"]["accuracy"]
    tower = SiglipVisionModel.from_pretrained(checkpoint)
    saved = load_classifier(str(tmp_path / "run/model"), ["a", "b", "c"]).vision_model
    assert digest_weights(saved) == digest_weights(tower)
