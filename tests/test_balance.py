"""Class balance, the loss of a step over all its images, patches left out, smaller images."""

import numpy as np
import pytest
import torch

from siglip_flowers.model.loading import load_classifier
from siglip_flowers.training.objectives import BalancedImages, adjust_logits, weigh_classes
from tests.small_flowers import build_flowers
from tests.small_runs import make_checkpoint
from tests.small_trainers import copy_weights, list_changed, start_trainer

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(flowers_dir):
    """40 training photographs of 4 classes of 16, 12, 8 and 4."""
    data = build_flowers(flowers_dir)
    labels = np.array(data.splits["train"]["label"])
    classes = [np.flatnonzero(labels == label) for label in range(4)]
    sizes = (16, 12, 8, 4)
    rows = np.concatenate([rows[:size] for rows, size in zip(classes, sizes, strict=True)])
    data.splits["train"] = data.splits["train"].select(sorted(rows))
    assert len(rows) == 40
    return data


def test_weights_and_adjustments_are_those_of_their_formulas():
    weights = weigh_classes(LABELS, 3, 1.0)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 4 / 3, 4 / 3]))
    assert weights[torch.from_numpy(LABELS)].mean().item() == pytest.approx(1)
    expected = 0.5 * torch.tensor([1.5, 0.75, 0.75]).log()
    torch.testing.assert_close(adjust_logits(LABELS, 3, 0.5), expected)
    assert not adjust_logits(np.arange(4), 4, 1.0).any()
    assert adjust_logits(LABELS, 4, 1.0).isfinite().all()  # a class without images


def test_sampler_balances_classes_and_draws_each_epoch_anew():
    class Rows:
        def __getitems__(self, rows):
            return rows

    labels = np.repeat([0, 1, 2], [800, 150, 50])
    images = BalancedImages(Rows(), labels, 1.0, seed=0)
    first = images.__getitems__(range(len(images)))
    shares = np.bincount(labels[first]) / len(labels)
    np.testing.assert_allclose(shares, 1 / 3, atol=0.06)
    images.set_epoch(1)
    assert images.__getitems__(range(len(images))) != first
    images.set_epoch(0)
    assert images.__getitems__(range(len(images))) == first
    half = BalancedImages(Rows(), labels, 0.5, seed=0)
    shares = np.bincount(labels[half.rows]) / len(labels)
    expected = np.sqrt([800, 150, 50]) / np.sqrt([800, 150, 50]).sum()
    np.testing.assert_allclose(shares, expected, atol=0.06)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "cross_entropy", "class_balance": "weights"},
        {"objective": "cross_entropy", "class_balance": "logit_adjustment"},
        {"objective": "sigmoid", "class_balance": "weights", "label_smoothing_factor": 0.1},
        # Crops are drawn by step and image, so that they are the same, too.
        {
            "objective": "sigmoid",
            "model": {"head": "cosine"},
            "augmentation": {"train_resize_scale": 1.0, "crop_min_scale": 0.4},
        },
    ],
)
def test_an_incomplete_step_is_the_mean_over_its_images(tiny, data, tmp_path, options):
    """40 images in batches of 24: 24 and 16 of them, as one batch of 40."""
    options = {**options, "optim": "sgd", "max_steps": 2}
    steps = [
        {"per_device_train_batch_size": 40},
        {"per_device_train_batch_size": 24, "gradient_accumulation_steps": 2},
    ]
    trainers = [
        start_trainer(tiny, data, tmp_path / str(number), **options, **one)
        for number, one in enumerate(steps)
    ]
    for trainer in trainers:
        trainer.train()
    for key in ("loss", "grad_norm", "accuracy"):
        figures = [
            [row[key] for row in trainer.state.log_history if key in row] for trainer in trainers
        ]
        assert len(figures[0]) == 2
        np.testing.assert_allclose(*figures, rtol=1e-4, err_msg=key)
    ours, theirs = (copy_weights(trainer) for trainer in trainers)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-4, msg=name)


def test_weights_are_torchs_weighted_mean(tiny, data, tmp_path):
    trainer = start_trainer(
        tiny, data, tmp_path, class_balance="weights", per_device_train_batch_size=40, max_steps=1
    )
    model = trainer.model
    batch = trainer.train_dataset.__getitems__(range(40))
    with torch.no_grad():
        logits = model(**trainer.normalizer.prepare(batch["pixel_values"])).logits
    weights = 1 / torch.tensor([16.0, 12.0, 8.0, 4.0])
    expected = torch.nn.functional.cross_entropy(logits, batch["labels"], weights)
    trainer.train()
    (loss,) = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert loss == pytest.approx(expected.item(), rel=1e-4)


def test_patches_that_are_left_out_do_not_matter(tiny):
    model = load_classifier(str(tiny), ["a", "b"]).eval()
    size, side = model.config.vision_config.image_size, model.config.vision_config.patch_size
    count = (size // side) ** 2
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    everything = torch.arange(count).flip(0).expand(2, -1)
    with torch.no_grad():
        whole = model(pixels).logits
        torch.testing.assert_close(model(pixels, kept_patches=everything).logits, whole)
        kept = torch.stack([torch.arange(1, count), torch.arange(count - 1)])
        part = model(pixels, kept_patches=kept).logits
        pixels[0, :, :side, :side] += 5  # the first patch of the first image
        pixels[1, :, -side:, -side:] += 5  # the last one of the second
        torch.testing.assert_close(model(pixels, kept_patches=kept).logits, part)
        assert (model(pixels).logits - whole).abs().min() > 1e-4


@pytest.mark.parametrize("patch_drop", [0.0, 0.5])
def test_training_images_may_be_smaller_than_those_of_evaluation(data, tmp_path, patch_drop):
    small, checkpoint = {"train_image_size": 16}, make_checkpoint(tmp_path / "tower", 32)
    options = {"patch_drop": patch_drop, "max_steps": 1, "train_eval_samples": 4}
    trainer = start_trainer(checkpoint, data, tmp_path, augmentation=small, **options)
    tower, before, seen = trainer.model.vision_model, copy_weights(trainer), []
    tower.embeddings.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-1]))
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    trainer.model.train()
    expected = trainer.model.classifier(tower(pixels, interpolate_pos_encoding=True)[1])
    torch.testing.assert_close(trainer.model(pixels).logits, expected)
    seen.clear()
    trainer.train()
    trainer.evaluate()
    assert seen[0] == 16
    assert set(seen[1:]) == {32}
    (positions,) = (name for name in before if "position_embedding" in name)
    assert positions in list_changed(before, copy_weights(trainer))
