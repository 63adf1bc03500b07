"""RandAugment and TrivialAugment: operations against PIL's, and what is drawn for whom."""

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image, ImageEnhance, ImageOps

from siglip_flowers.data.augmentation.auto_augment import (
    GEOMETRIC,
    MAGNITUDE_LEVELS,
    OPERATIONS,
    SIGNED,
    apply_operations,
    build_magnitudes,
    draw_operations,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
POLICIES = ("randaugment", "trivialaugment")
WITHOUT_MAGNITUDE = ("identity", "autocontrast", "equalize")
SIZE = 48
GRAY = (128, 128, 128)


def draw_images():
    """Noise, ramps, pale and flat ones: (8, 48, 48, 3) uint8."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (SIZE, SIZE, 3))
    ramp = np.stack([*np.meshgrid(np.arange(SIZE) * 5, np.arange(SIZE) * 4), noise[..., 0]], -1)
    waves = 128 + 100 * np.sin(np.arange(SIZE)[:, None, None] / [[[3, 5, 9]]] + noise[:1] / 99)
    flat = np.full((SIZE, SIZE, 3), [30, 140, 255])
    one_flat_channel = np.concatenate([ramp[..., :2], flat[..., 1:2]], -1)
    # Two levels; few pixels besides one level.
    black_and_white = (noise > 128) * 255
    dotted = np.where(noise > 253, noise, 7)
    kinds = [noise, ramp, waves, 100 + noise // 8, flat, one_flat_channel, black_and_white, dotted]
    return np.stack(kinds).astype(np.uint8)


IMAGES = draw_images()


def apply_one(name, magnitude, device="cpu", images=IMAGES):
    """Vary all images by one operation: (B, H, W, 3) float32."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous().to(device)
    operations = np.full(len(pixels), OPERATIONS.index(name))
    varied = apply_operations(pixels, operations, np.full(len(pixels), float(magnitude)))
    return varied.permute(0, 2, 3, 1).cpu().numpy()


def apply_pil(name, magnitude, image):
    pil = Image.fromarray(image)
    enhancers = ("Brightness", "Color", "Contrast", "Sharpness")
    if name.capitalize() in enhancers:
        return getattr(ImageEnhance, name.capitalize())(pil).enhance(1 + magnitude)
    bilinear = {"resample": Image.Resampling.BILINEAR, "fillcolor": GRAY}
    affine = {
        "shear_x": (1, magnitude, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, magnitude, 1, 0),
        "translate_x": (1, 0, magnitude, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, magnitude),
    }
    if name in affine:
        return pil.transform(pil.size, Image.Transform.AFFINE, affine[name], **bilinear)
    match name:
        case "identity":
            return pil
        case "rotate":
            return pil.rotate(magnitude, **bilinear)
        case "posterize":
            return ImageOps.posterize(pil, int(magnitude))
        case "solarize":
            return ImageOps.solarize(pil, magnitude)
    return getattr(ImageOps, name)(pil)


def list_magnitudes(name):
    """Return the magnitudes that either policy can draw, of both signs."""
    number = OPERATIONS.index(name)
    values = np.concatenate([build_magnitudes(policy, SIZE)[number, ::5] for policy in POLICIES])
    return np.unique([*values, *(-values if name in SIGNED else [])])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_do_what_pil_does(name, device):
    exact = name in ("identity", "posterize", "solarize", "equalize")
    for magnitude in list_magnitudes(name):
        varied = apply_one(name, magnitude, device)
        for ours, image in zip(varied, IMAGES, strict=True):
            expected = np.asarray(apply_pil(name, magnitude, image)).astype(float)
            difference = abs(ours - expected).max(-1)
            if name in GEOMETRIC:
                # Where a place is on the image's very edge, rounding decides on the filling.
                difference = np.sort(difference.ravel())[: -SIZE // 4]
            # PIL cuts fractions off, we keep them.
            assert difference.max() <= (0 if exact else 1.001), (name, magnitude)


def test_every_operation_with_a_magnitude_changes_images_more_when_it_is_larger():
    for name in set(OPERATIONS) - set(WITHOUT_MAGNITUDE):
        for policy in POLICIES:
            levels = build_magnitudes(policy, SIZE)[OPERATIONS.index(name)]
            # A ramp with a little texture: in noise alone any movement changes as much.
            ramp = np.add.outer(np.arange(SIZE), np.arange(SIZE) * 3)[..., None]
            smooth = (ramp + [0, 10, 20] + IMAGES[0] // 16)[None].astype(np.uint8)
            changes = [abs(apply_one(name, m, images=smooth) - smooth).mean() for m in levels]
            assert changes[0] < 1e-3, name
            assert changes[-1] > 1, name
            # Beyond a third, what a movement brings in may be as gray as what it took out.
            last = 11 if name in GEOMETRIC else 31
            assert scipy.stats.spearmanr(changes[:last], range(last)).statistic > 0.9, name


def test_the_ranges_are_those_of_the_papers():
    random, trivial = (build_magnitudes(policy, 331) for policy in POLICIES)
    ends = dict(zip(OPERATIONS, zip(random[:, -1], trivial[:, -1], strict=True), strict=True))
    assert ends["shear_x"] == ends["shear_y"] == (0.3, 0.99)
    assert ends["translate_x"] == ends["translate_y"] == (150.0, 32.0)
    assert ends["rotate"] == (30.0, 135.0)
    for name in ("brightness", "color", "contrast", "sharpness"):
        assert ends[name] == (0.9, 0.99)
    assert ends["posterize"] == (4, 2)
    assert ends["solarize"] == (0, 0)
    assert (random[OPERATIONS.index("posterize"), 0], random[11, 0]) == (8, 256)
    for name in WITHOUT_MAGNITUDE:
        assert not random[OPERATIONS.index(name)].any()


def test_operations_of_a_mixed_batch_are_those_of_each_image_alone():
    numbers = np.random.default_rng(1).random((200, 1, 3))
    operations, magnitudes = draw_operations("trivialaugment", numbers, 0, SIZE)
    batch = torch.from_numpy(np.resize(IMAGES, (200, SIZE, SIZE, 3))).permute(0, 3, 1, 2)
    varied = apply_operations(batch.float().contiguous(), operations[:, 0], magnitudes[:, 0])
    assert set(operations[:, 0]) == set(range(14))
    for row in range(200):
        alone = apply_operations(
            batch[row : row + 1].float().contiguous(), operations[row], magnitudes[row]
        )
        assert torch.equal(alone[0], varied[row]), OPERATIONS[operations[row, 0]]


def test_float_pixels_just_beside_whole_levels_are_varied_like_these():
    # Resampling leaves 99.99999 for 100; an operation with thresholds must not mind.
    noise = np.random.default_rng(2).uniform(-1e-3, 1e-3, IMAGES.shape).astype(np.float32)
    for name in set(OPERATIONS) - set(GEOMETRIC):
        for magnitude in list_magnitudes(name):
            shaken = apply_one(name, magnitude, images=IMAGES.astype(np.float32) + noise)
            # Gray is in whole levels, and may be one more or less.
            assert abs(shaken - apply_one(name, magnitude)).max() < 1.01, (name, magnitude)


@pytest.mark.parametrize("policy", POLICIES)
def test_operations_and_signs_are_drawn_evenly(policy):
    numbers = np.random.default_rng(3).random((14_000, 2, 3))
    operations, magnitudes = draw_operations(policy, numbers, 9, SIZE)
    for place in range(2):
        counts = np.bincount(operations[:, place], minlength=14)
        assert scipy.stats.chisquare(counts).pvalue > 1e-4
    # The two of an image do not depend on each other.
    pairs = np.histogram2d(operations[:, 0], operations[:, 1], bins=14)[0]
    assert scipy.stats.chi2_contingency(pairs).pvalue > 1e-4
    for number, name in enumerate(OPERATIONS):
        drawn = magnitudes[(operations == number) & (magnitudes != 0)]
        if name in SIGNED:
            negative = int((drawn < 0).sum())
            assert scipy.stats.binomtest(negative, len(drawn)).pvalue > 1e-4
        else:
            assert (drawn > 0).all()


def test_trivialaugment_draws_every_level_evenly():
    numbers = np.random.default_rng(4).random((60_000, 1, 3))
    operations, magnitudes = draw_operations("trivialaugment", numbers, 9, SIZE)
    table = build_magnitudes("trivialaugment", SIZE)
    for number, name in enumerate(OPERATIONS):
        if name in (*WITHOUT_MAGNITUDE, "posterize"):
            continue
        drawn = abs(magnitudes[operations == number])
        counts = (drawn[:, None] == table[number]).sum(0)
        assert counts.sum() == len(drawn)
        assert scipy.stats.chisquare(counts).pvalue > 1e-4, name


@pytest.mark.parametrize("level", [0, 9, MAGNITUDE_LEVELS])
def test_randaugment_uses_one_level(level):
    numbers = np.random.default_rng(5).random((2000, 2, 3))
    operations, magnitudes = draw_operations("randaugment", numbers, level, SIZE)
    expected = build_magnitudes("randaugment", SIZE)[:, level]
    np.testing.assert_array_equal(abs(magnitudes), expected[operations])
