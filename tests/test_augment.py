"""Augmentation: its random numbers, and what they do to real and to constructed images."""

import numpy as np
import pytest
import scipy.stats
import torch

from siglip_flowers.config import AugmentationArguments
from siglip_flowers.data.augmentation import BatchAugmenter, uniform_numbers
from siglip_flowers.data.pixels.tensors import PixelDataset, PixelForm
from tests.small_flowers import build_flowers

OFF = {"crop_min_scale": 1.0, "horizontal_flip": 0.0, "color_jitter": 0.0}
ALL = {"crop_min_scale": 0.3, "color_jitter": 0.4}


def make_augmenter(size=64, seed=0, num_labels=4, **options):
    return BatchAugmenter(AugmentationArguments(**options), size, num_labels, seed)


@pytest.fixture(scope="module")
def batch(flowers_dir):
    rows = build_flowers(flowers_dir, train=4).splits["train"]
    return PixelDataset(rows, PixelForm(64, 3)).__getitems__(range(len(rows)))


def augment(augmenter, batch, rows=None, step=0):
    chosen = slice(None) if rows is None else rows
    pixels, labels, index = (batch[key][chosen] for key in ("pixel_values", "labels", "index"))
    return augmenter(pixels, labels, index, step)


def draw_coordinates(count, side=256):
    """Images whose red is the column and whose green is the row, as float in 0..1 units."""
    ramp = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    image = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side)])
    image = torch.cat([image, torch.zeros(1, side, side)])
    return image.expand(count, 3, side, side)


def measure_boxes(count=4000, crop_min_scale=0.35, step=0, **options):
    """Find each crop's box from the coordinates that its pixels came from."""
    augmenter = make_augmenter(size=4, crop_min_scale=crop_min_scale, color_jitter=0.0, **options)
    rows = torch.arange(count)
    cropped, _ = augmenter(draw_coordinates(1).expand(count, -1, -1, -1), rows, rows.numpy(), step)
    x, y = cropped[:, 0, 0, :], cropped[:, 1, :, 0]
    # Four sampled pixels are at 1/8, 3/8, 5/8 and 7/8 of the box.
    width, height = (x[:, 3] - x[:, 0]) / 0.75, (y[:, 3] - y[:, 0]) / 0.75
    return width.numpy(), height.numpy(), x.mean(1).numpy(), y.mean(1).numpy()


def test_uniform_numbers_are_uniform_for_every_counter_and_seed():
    for seed in (0, 1, 42, 2**40, -3):
        numbers = uniform_numbers(seed, 5, np.arange(20_000), 8)
        assert numbers.shape == (20_000, 8)
        assert numbers.dtype == np.float64
        assert numbers.min() >= 0
        assert numbers.max() < 1
        for column in numbers.T:
            assert scipy.stats.kstest(column, "uniform").pvalue > 1e-5
        # All of one row's numbers against each other, too.
        correlation = np.corrcoef(numbers.T) - np.eye(8)
        assert abs(correlation).max() < 5 / np.sqrt(20_000)


def test_neighboring_rows_steps_and_seeds_are_unrelated():
    rows = np.arange(20_001)
    here = uniform_numbers(7, 3, rows, 16)
    others = {
        "row": (here[:-1], here[1:]),
        "step": (here, uniform_numbers(7, 4, rows, 16)),
        "seed": (here, uniform_numbers(8, 3, rows, 16)),
        "row against step": (here[1:], uniform_numbers(7, 4, rows, 16)[:-1]),
        "seed against step": (here, uniform_numbers(8, 2, rows, 16)),
    }
    for name, (one, other) in others.items():
        count = len(one)
        correlation = np.corrcoef(one.T, other.T)[:16, 16:]
        assert abs(correlation).max() < 5.5 / np.sqrt(count), name
        # Not shifted copies of each other either: hardly any number comes twice.
        assert np.intersect1d(one, other).size == 0 or name == "row", name
    assert np.unique(here).size == here.size


def test_same_seed_step_and_row_give_the_same_pixels_in_any_batch(batch):
    augmenter = make_augmenter(seed=5, **ALL)
    pixels, labels = augment(augmenter, batch, step=9)
    assert torch.equal(labels, batch["labels"])
    order = torch.tensor([11, 3, 0, 14])
    shuffled, _ = augment(make_augmenter(seed=5, **ALL), batch, order, step=9)
    assert torch.equal(shuffled, pixels[order])
    single, _ = augment(augmenter, batch, order[:1], step=9)
    assert torch.equal(single, pixels[order[:1]])


@pytest.mark.parametrize("mixing", [{}, {"mixup_alpha": 0.2}, {"cutmix_alpha": 1.0}])
def test_the_host_never_needs_a_value_from_the_device(mixing):
    # The meta device has shapes but no values: whatever reads one raises.
    augmenter = make_augmenter(**ALL, **mixing)
    pixels = torch.empty(64, 3, 70, 70, dtype=torch.uint8, device="meta")
    labels = torch.empty(64, dtype=torch.int64, device="meta")
    varied, _ = augmenter(pixels, labels, np.arange(64), 0)
    assert varied.shape == (64, 3, 64, 64)
    assert varied.device.type == "meta"


@pytest.mark.parametrize("crop_min_scale", [0.1, 0.35, 0.9])
def test_crops_keep_a_uniform_share_of_the_area_and_lie_inside(crop_min_scale):
    width, height, x, y = measure_boxes(crop_min_scale=crop_min_scale, horizontal_flip=0.0)
    area, ratio = width * height, width / height
    tolerance = 1e-3
    assert area.min() > crop_min_scale - tolerance
    assert area.max() < 1 + tolerance
    uniform = scipy.stats.uniform(crop_min_scale, 1 - crop_min_scale)
    assert scipy.stats.kstest(area, uniform.cdf).pvalue > 1e-4
    assert ratio.min() > 3 / 4 - tolerance
    assert ratio.max() < 4 / 3 + tolerance
    # As often wide as high, and as long as the area leaves room, evenly so in the logarithm.
    assert scipy.stats.ttest_1samp(np.log(ratio), 0).pvalue > 1e-4
    free = area < 3 / 4
    if free.any():
        even = scipy.stats.uniform(-np.log(4 / 3), 2 * np.log(4 / 3))
        assert scipy.stats.kstest(np.log(ratio[free]), even.cdf).pvalue > 1e-4
    for center, side in ((x, width), (y, height)):
        assert (center - side / 2 > -tolerance).all()
        assert (center + side / 2 < 1 + tolerance).all()
        room = 1 - side
        place = (center - side / 2)[room > 0.05] / room[room > 0.05]
        assert scipy.stats.kstest(place, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_flips_mirror_left_to_right_with_their_probability(probability):
    width, height, x, _ = measure_boxes(horizontal_flip=probability)
    assert (height > 0).all()
    share = (width < 0).mean()
    assert abs(share - probability) <= 4 * np.sqrt(probability * (1 - probability) / len(width))
    # A mirrored crop comes from the place that the unmirrored one would have come from.
    unmirrored = measure_boxes(horizontal_flip=0.0)
    np.testing.assert_allclose(abs(width), unmirrored[0], atol=1e-4)
    np.testing.assert_allclose(x, unmirrored[2], atol=1e-4)


def test_everything_off_is_the_identity(batch):
    pixels, labels = augment(make_augmenter(**OFF), batch)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, batch["pixel_values"].float(), atol=0.01, rtol=0)
    assert torch.equal(labels, batch["labels"])


def test_color_jitter_keeps_the_range_and_changes_brightness_contrast_and_saturation(batch):
    strength = 0.4
    augmenter = make_augmenter(**{**OFF, "color_jitter": strength})
    pixels, _ = augment(augmenter, batch)
    assert pixels.min() >= 0
    assert pixels.max() <= 255
    # Each factor on an image in which it can be read off, uniform in 1 +- strength.
    rows = torch.arange(3000)
    small = make_augmenter(size=8, **{**OFF, "color_jitter": strength})

    def jitter(image):
        return small(image.expand(3000, 3, 8, 8).to(torch.uint8), rows, rows.numpy(), 0)[0]

    brightness = jitter(torch.full((3, 8, 8), 100)).mean((1, 2, 3)) / 100
    stripes = jitter(torch.tensor([80, 120] * 4).expand(3, 8, 8))
    contrast = (stripes[:, 0, 0, 1] - stripes[:, 0, 0, 0]) / 40 / brightness
    color = jitter(torch.tensor([120, 100, 80]).view(3, 1, 1))
    # Contrast stretches the distance from the mean gray, and with it the color.
    saturation = (color[:, 0] - color[:, 2]).mean((1, 2)) / 40 / brightness / contrast
    factors = np.stack([brightness, contrast, saturation])
    uniform = scipy.stats.uniform(1 - strength, 2 * strength)
    for factor in factors:
        assert scipy.stats.kstest(factor, uniform.cdf).pvalue > 1e-4
    assert abs(np.corrcoef(factors) - np.eye(3)).max() < 0.08


def test_mixup_mixes_pixels_and_targets_by_the_same_share(batch):
    augmenter = make_augmenter(**OFF, mixup_alpha=1.0)
    plain = batch["pixel_values"].float()
    shares = []
    for step in range(20):
        pixels, targets = augment(augmenter, batch, step=step)
        torch.testing.assert_close(targets.sum(1), torch.ones(16))
        # Fit the share that the pixels were mixed by.
        other = plain.roll(1, 0)
        difference = plain - other
        share = ((pixels - other) * difference).sum() / difference.pow(2).sum()
        torch.testing.assert_close(pixels, share * plain + (1 - share) * other, atol=0.05, rtol=0)
        labels = torch.nn.functional.one_hot(batch["labels"], 4).float()
        expected = share * labels + (1 - share) * labels.roll(1, 0)
        torch.testing.assert_close(targets, expected, atol=1e-3, rtol=0)
        shares.append(share.item())
    assert scipy.stats.kstest(shares, "uniform").pvalue > 1e-4


def test_mixup_and_cutmix_together_take_turns(batch):
    both = make_augmenter(**OFF, mixup_alpha=1.0, cutmix_alpha=1.0)
    plain = augment(make_augmenter(**OFF), batch)[0]
    found = [augment(both, batch, step=step)[0] for step in range(40)]
    # CutMix leaves each pixel that of one image.
    cut = [((one == plain) | (one == plain.roll(1, 0))).all().item() for one in found]
    assert 10 <= sum(cut) <= 30


def test_cutmix_targets_follow_the_area_that_was_pasted(batch):
    augmenter = make_augmenter(**OFF, cutmix_alpha=1.0)
    plain = augment(make_augmenter(**OFF), batch)[0]
    shares = []
    for step in range(30):
        pixels, targets = augment(augmenter, batch, step=step)
        pasted = (pixels != plain).any(1).any(0)
        torch.testing.assert_close(
            pixels, torch.where(pasted, plain.roll(1, 0), plain), atol=0.02, rtol=0
        )
        share = 1 - pasted.float().mean()
        labels = torch.nn.functional.one_hot(batch["labels"], 4).float()
        torch.testing.assert_close(targets, share * labels + (1 - share) * labels.roll(1, 0))
        shares.append(share.item())
    assert scipy.stats.kstest(shares, "uniform").pvalue > 1e-4
