"""Corruptions: each grows with its strength, repeats by seed and row, and is what it says."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from siglip_flowers.robustness.corruptions import KINDS, STRENGTHS, corrupt, rotate, scale_quality
from tests.small_flowers import read_images


@pytest.fixture(scope="module")
def photographs(flowers_dir) -> torch.Tensor:
    images = [image.resize((64, 64)) for image in read_images(flowers_dir, 12)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def measure_distances(pixels: torch.Tensor, kind: str) -> list[float]:
    rows = range(len(pixels))
    return [
        float((corrupt(pixels, kind, strength, rows).double() - pixels.double()).abs().mean())
        for strength in STRENGTHS
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_each_strength_is_farther_from_photographs_than_the_one_before(kind, photographs):
    distances = measure_distances(photographs, kind)
    assert all(low < high for low, high in itertools.pairwise(distances)), distances
    # Seen at once, and something is left.
    assert distances[0] > 0.5
    assert distances[-1] < 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_changed_alike_in_every_batch_and_otherwise_in_another_row(kind, photographs):
    pixels = photographs[:4]
    before = pixels.clone()
    whole = corrupt(pixels, kind, 3, [5, 6, 7, 8])
    assert torch.equal(pixels, before)
    parts = [corrupt(pixels[i : i + 1], kind, 3, [5 + i]) for i in (3, 1)]
    assert torch.equal(torch.cat(parts), whole[[3, 1]])
    if kind in ("gaussian_noise", "shot_noise", "motion_blur", "fog", "snow"):
        assert not torch.equal(whole[:1], corrupt(pixels[:1], kind, 3, [6]))


def test_noise_has_its_deviation_by_the_side_of_the_image_and_photons_their_variance():
    for side, deviation in ((64, 0.12 * 64 / 224), (224, 0.12)):
        gray = torch.full((2, 3, side, side), 128, dtype=torch.uint8)
        noise = corrupt(gray, "gaussian_noise", 2, [0, 1]).double() - 128
        assert float(noise.std()) == pytest.approx(255 * deviation, rel=0.02)
    # Bright counts are cut off at white, which is rare here.
    gray = torch.full((2, 3, 224, 224), 102, dtype=torch.uint8)
    changed = corrupt(gray, "shot_noise", 2, [0, 1]).double() / 255
    assert float(changed.mean()) == pytest.approx(0.4, abs=0.005)
    assert float(changed.var()) == pytest.approx(0.4 / 25, rel=0.03)


@pytest.mark.parametrize("angle", [-45.0, 30.0])
def test_a_rotation_is_that_of_pillow(angle, photographs):
    pixels = photographs[:2]
    turned = rotate(pixels.float(), torch.tensor([angle, angle])).permute(0, 2, 3, 1).numpy()
    y, x = np.mgrid[:64, :64] - 31.5
    inside = np.hypot(x, y) < 30
    for image, mine in zip(pixels, turned, strict=True):
        pil = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = np.asarray(pil.rotate(angle, Image.Resampling.BILINEAR), dtype=float)
        assert np.abs(mine - expected)[inside].mean() < 0.6
        assert np.abs(mine - expected)[inside].max() < 4


def test_jpeg_is_pillow_with_the_quality_of_imagenet_c_scaled_by_the_side(photographs):
    qualities = (25, 18, 15, 10, 7)
    assert [scale_quality(quality, 224) for quality in qualities] == list(qualities)
    assert [scale_quality(quality, 64) for quality in qualities] == [71, 60, 52, 35, 24]
    assert min(scale_quality(7, side) for side in (8, 512, 4096)) >= 1
    pixels = photographs[:2]
    for image, mine in zip(pixels, corrupt(pixels, "jpeg", 2, [0, 1]), strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=60)
        np.testing.assert_array_equal(mine.permute(1, 2, 0).numpy(), np.asarray(Image.open(buffer)))
