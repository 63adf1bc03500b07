"""Heads that know something before the first step, against SiglipModel and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import AutoTokenizer, SiglipModel

from siglip_flowers.base.labels import FLOWER_NAMES
from siglip_flowers.base.prompts import canonicalize
from siglip_flowers.evaluation.predict import PassOptions, extract_features
from siglip_flowers.model.heads import (
    set_calibration,
    set_probe_head,
    set_text_head,
)
from siglip_flowers.model.loading import load_classifier, load_image_processor
from siglip_flowers.model.probe_solvers import PROBE_ITERATIONS, PROBE_STRENGTHS
from siglip_flowers.model.text_head import load_calibration, zero_shot_head
from tests.small_flowers import build_flowers, draw_pixel_values, read_images

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
TEMPLATES = ["a photo of a {}.", "{}"]


@pytest.fixture(scope="module")
def nano(nano_dir):
    return str(nano_dir)


@pytest.mark.parametrize("head", ["linear", "cosine"])
@torch.no_grad()
def test_text_head_is_siglips_own_zero_shot_classifier(nano, flowers_dir, head):
    names = list(FLOWER_NAMES[:12])
    images = read_images(flowers_dir, 6)
    pixels = load_image_processor(nano)(images, return_tensors="pt")["pixel_values"]
    model = load_classifier(nano, names, head=head, normalize_features=True, activation="sigmoid")
    # The features of a cosine head are normalized either way.
    set_text_head(model, zero_shot_head(nano, names, TEMPLATES[:1]))
    siglip = SiglipModel.from_pretrained(nano).eval()
    tokens = AutoTokenizer.from_pretrained(nano)(
        [canonicalize(TEMPLATES[0].format(name.replace("-", " "))) for name in names],
        padding="max_length",
        max_length=16,
        truncation=True,
        return_tensors="pt",
    )
    expected = siglip(input_ids=tokens["input_ids"], pixel_values=pixels).logits_per_image
    logits = model.eval()(pixels).logits
    torch.testing.assert_close(logits, expected, **CLOSE)
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    torch.testing.assert_close(model.fold()(pixels).logits, expected, **CLOSE)
    assert expected.std() > 0.1


@torch.no_grad()
def test_several_templates_are_averaged_as_unit_vectors(nano):
    names = ["rose", "sunflower", "water lily"]
    siglip = SiglipModel.from_pretrained(nano).eval()
    tokenizer = AutoTokenizer.from_pretrained(nano)
    means = []
    for name in names:
        texts = [canonicalize(template.format(name)) for template in TEMPLATES]
        ids = tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt")
        embedded = siglip.text_model(input_ids=ids["input_ids"]).pooler_output
        mean = (embedded / embedded.norm(dim=1, keepdim=True)).mean(0)
        means.append(mean / mean.norm())
    pixels = draw_pixel_values(4)
    images = siglip.vision_model(pixel_values=pixels).pooler_output
    cosine = images / images.norm(dim=1, keepdim=True) @ torch.stack(means).T
    expected = siglip.logit_scale.exp() * cosine + siglip.logit_bias
    for head in ("linear", "cosine"):
        model = load_classifier(nano, names, head=head, normalize_features=head == "linear")
        set_text_head(model, zero_shot_head(nano, names, TEMPLATES))
        torch.testing.assert_close(model.eval()(pixels).logits, expected, **CLOSE)


def test_text_head_refuses_a_linear_head_on_features_of_any_length(nano):
    names = ["rose", "tulip"]
    with pytest.raises(AssertionError):
        set_text_head(load_classifier(nano, names), zero_shot_head(nano, names, TEMPLATES))


def test_calibration_of_the_checkpoint_reaches_a_random_cosine_head(nano, nano_dir):
    siglip = SiglipModel.from_pretrained(nano_dir)
    model = load_classifier(nano, ["rose", "tulip"], head="cosine")
    before = model.classifier.class_embeddings.clone()
    set_calibration(model, *load_calibration(nano))
    assert model.classifier.logit_scale.item() == siglip.logit_scale.item()
    assert model.classifier.logit_bias.item() == siglip.logit_bias.item()
    assert model.classifier.logit_scale.shape == ()
    assert torch.equal(model.classifier.class_embeddings, before)


def fit_by_sklearn(train, validation, class_weight=None):
    """Return scikit-learn's own scaler and best probe of the same protocol."""
    scaler = StandardScaler().fit(train[0].astype(np.float64))
    probes = [
        LogisticRegression(C=strength, max_iter=PROBE_ITERATIONS, class_weight=class_weight).fit(
            scaler.transform(train[0]), train[1]
        )
        for strength in PROBE_STRENGTHS
    ]
    scores = [probe.score(scaler.transform(validation[0]), validation[1]) for probe in probes]
    return scaler, probes[int(np.argmax(scores))]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("classes, class_weight", [(4, None), (4, "balanced"), (2, None)])
def test_probe_gives_sklearns_decision_function_on_standardised_features(
    nano, flowers_dir, classes, class_weight
):
    data = build_flowers(flowers_dir, classes=classes, train=12, validation=6)
    model = load_classifier(nano, data.class_names)
    processor = load_image_processor(nano)
    train, validation = (
        (
            extract_features(model, processor, data.splits[name], PassOptions(5)),
            np.array(data.splits[name]["label"]),
        )
        for name in ("train", "validation")
    )
    assert train[0].shape == (12 * classes, 192)
    strength = set_probe_head(model, train, validation, class_weight)
    scaler, probe = fit_by_sklearn(train, validation, class_weight)
    assert strength == probe.C
    with torch.no_grad():
        logits = model.classify_features(torch.from_numpy(validation[0])).numpy()
    expected = probe.decision_function(scaler.transform(validation[0]))
    if classes == 2:
        # scikit-learn scores the second class only; the softmax sees the difference.
        logits, expected = logits[:, 1] - logits[:, 0], expected
    np.testing.assert_allclose(logits, expected, atol=2e-3, rtol=2e-3)
    probabilities = model.to_probabilities(
        model.classify_features(torch.from_numpy(validation[0]))
    ).detach()
    np.testing.assert_allclose(
        probabilities, probe.predict_proba(scaler.transform(validation[0])), atol=1e-3
    )


def test_probe_is_far_better_than_chance_on_images_it_has_not_seen(nano, flowers_dir):
    data = build_flowers(flowers_dir, classes=8, train=16, validation=5, test=10)
    model = load_classifier(nano, data.class_names)
    processor = load_image_processor(nano)
    features = {
        name: extract_features(model, processor, rows, PassOptions(32))
        for name, rows in data.splits.items()
    }
    labels = {name: np.array(rows["label"]) for name, rows in data.splits.items()}
    set_probe_head(
        model,
        (features["train"], labels["train"]),
        (features["validation"], labels["validation"]),
    )
    with torch.no_grad():
        predicted = model.classify_features(torch.from_numpy(features["test"])).argmax(1).numpy()
    assert (predicted == labels["test"]).mean() > 3 / 8


def test_a_constant_feature_does_not_break_the_probe(nano):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(40, 192)).astype(np.float32)
    labels = np.arange(40) % 4
    features[:, 0] = labels
    features[:, 7] = 3.0
    model = load_classifier(nano, ["a", "b", "c", "d"])
    set_probe_head(model, (features, labels), (features, labels))
    assert model.classifier.weight.isfinite().all()
    with torch.no_grad():
        predicted = model.classify_features(torch.from_numpy(features)).argmax(1).numpy()
    assert (predicted == labels).all()
