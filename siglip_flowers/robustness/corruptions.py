"""Corrupted and otherwise changed images, at five strengths.

Lengths, noise and compression are relative to the side of the image: at 224 pixels they are close
to those of ImageNet-C, and an image of another size looks as corrupted when both are shown at one
size. Random numbers depend on the kind and the row number alone, and are the same for all
strengths, so neither batches nor processes nor the other kinds change them.

Source: Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions
and perturbations".
"""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.ndimage
import torch
from PIL import Image
from torch.nn import functional

# Side in pixels that the amounts below are for.
REFERENCE_SIDE = 224
STRENGTHS = (1, 2, 3, 4, 5)
_FLAKE_CELLS = 75
_FOG_OCTAVES = 6
# Subdivisions of a pixel's side at the edge of a disk or a line.
_FINENESS = 8

Generators = list[np.random.Generator]
# Takes images in [0, 1], the amount that belongs to a strength, and a generator for each image.
Change = Callable[[torch.Tensor, Any, Generators], torch.Tensor]


def corrupt(pixels: torch.Tensor, kind: str, strength: int, rows: Sequence[int]) -> torch.Tensor:
    """Return changed copies of images: (B, 3, S, S) uint8.

    Args:
        pixels: (B, 3, S, S) uint8, on the CPU.
        kind: One of ``KINDS``.
        strength: 1 to 5.
        rows: The B row numbers of the images, which their random numbers depend on.
    """
    change, amounts = _CHANGES[kind]
    number = KINDS.index(kind)
    generators = [np.random.default_rng([0, number, int(row)]) for row in rows]
    changed = change(pixels.float() / 255, amounts[strength - 1], generators)
    return (changed * 255).round().clamp(0, 255).to(torch.uint8)


def _scale(pixels: torch.Tensor) -> float:
    return pixels.shape[-1] / REFERENCE_SIDE


def _stack(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays).astype(np.float32))


def _add_gaussian_noise(
    pixels: torch.Tensor, deviation: float, generators: Generators
) -> torch.Tensor:
    shape = tuple(pixels.shape[1:])
    noise = _stack([each.standard_normal(shape, dtype=np.float32) for each in generators])
    # Averaged to a size that is half as long, noise has half the deviation.
    return pixels + deviation * _scale(pixels) * noise


def _add_shot_noise(pixels: torch.Tensor, white: float, generators: Generators) -> torch.Tensor:
    # Photons of a white pixel: each pixel of a smaller image gathers those of a larger area.
    photons = white / _scale(pixels) ** 2
    counts = [
        each.poisson(image * photons)
        for each, image in zip(generators, pixels.double().numpy(), strict=True)
    ]
    return _stack(counts) / photons


def _blur_gaussian(pixels: torch.Tensor, sigma: float, _: Generators) -> torch.Tensor:
    blurred = scipy.ndimage.gaussian_filter(
        pixels.numpy(), sigma * _scale(pixels), mode="mirror", axes=(2, 3)
    )
    return torch.from_numpy(blurred)


def _blur_motion(pixels: torch.Tensor, length: float, generators: Generators) -> torch.Tensor:
    angles = torch.tensor([each.uniform(-45, 45) for each in generators])
    return blur_line(pixels, length * _scale(pixels), angles)


def _add_fog(pixels: torch.Tensor, amount: float, generators: Generators) -> torch.Tensor:
    fog = _draw_clouds(generators, pixels.shape[-1])
    brightest = pixels.amax(dim=(1, 2, 3), keepdim=True)
    # The fog takes from the image what it adds, so brightness stays in range.
    return (pixels + amount * fog) * brightest / (brightest + amount)


def _draw_clouds(generators: Generators, side: int) -> torch.Tensor:
    """Draw clouds as a sum of random grids, each twice as fine and half as strong: (B, 1, S, S)."""
    clouds = torch.zeros(len(generators), 1, side, side)
    for octave in range(_FOG_OCTAVES):
        cells = 2 ** (octave + 1) + 1
        grid = _stack([each.random((1, cells, cells)) for each in generators])
        clouds += 0.6**octave * _resize(grid, side)
    clouds -= clouds.amin(dim=(2, 3), keepdim=True)
    return clouds / clouds.amax(dim=(2, 3), keepdim=True).clamp_min(1e-6)


def _add_snow(
    pixels: torch.Tensor, amount: tuple[float, float], generators: Generators
) -> torch.Tensor:
    density, whiteness = amount
    cells = (1, _FLAKE_CELLS, _FLAKE_CELLS)
    # The flakes of a lighter fall are among those of a heavier one.
    flakes = _stack([each.random(cells) < density for each in generators])
    angles = torch.tensor([each.uniform(60, 120) for each in generators])
    falling = blur_line(_resize(flakes, pixels.shape[-1]), 12 * _scale(pixels), angles)
    gray = pixels.mean(dim=1, keepdim=True)
    # Light is scattered into what is dark, and colors fade.
    pale = torch.lerp(pixels, torch.maximum(pixels, gray * 0.5 + 0.5), whiteness)
    return 1 - (1 - pale) * (1 - (2 * falling).clamp(0, 1))


def _brighten(pixels: torch.Tensor, added: float, _: Generators) -> torch.Tensor:
    """Add to the value of the hue-saturation-value model, which keeps hue and saturation."""
    value = pixels.amax(dim=1, keepdim=True)
    wanted = (value + added).clamp_max(1)
    return torch.where(value > 0, pixels * wanted / value.clamp_min(1e-6), wanted)


def _flatten_contrast(pixels: torch.Tensor, kept: float, _: Generators) -> torch.Tensor:
    mean = pixels.mean(dim=(2, 3), keepdim=True)
    return mean + kept * (pixels - mean)


def scale_quality(quality: int, side: int) -> int:
    """Return the JPEG quality, 1 to 100, for a side that corresponds to one at 224 pixels.

    ImageNet-C's qualities 25 to 7 correspond to a quantization step, in percent of JPEG's standard
    one; it is proportional to the side, as the noise is.
    """
    step = 5000 / quality * side / REFERENCE_SIDE
    return max(1, round(5000 / step if step > 100 else (200 - step) / 2))


def _compress_jpeg(pixels: torch.Tensor, quality: int, _: Generators) -> torch.Tensor:
    images = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    decoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=scale_quality(quality, len(image)))
        with Image.open(buffer) as opened:
            decoded.append(np.asarray(opened))
    return _stack(decoded).permute(0, 3, 1, 2) / 255


def _rotate(pixels: torch.Tensor, angle: float, generators: Generators) -> torch.Tensor:
    signs = torch.tensor([1.0 if each.random() < 0.5 else -1.0 for each in generators])
    return rotate(pixels, signs * angle)


# Filters of batches of images: float32 (B, C, S, S) in and out.


def blur_disk(pixels: torch.Tensor, radius: float) -> torch.Tensor:
    """Blur like a lens out of focus: the mean over a disk with a radius in pixels."""
    reach = math.ceil(radius)
    fine = (torch.arange((2 * reach + 1) * _FINENESS) + 0.5) / _FINENESS - reach - 0.5
    inside = (fine[:, None] ** 2 + fine[None, :] ** 2 <= radius**2).float()
    # The share of each pixel that is inside.
    kernel = functional.avg_pool2d(inside[None], _FINENESS)
    return _convolve(pixels, kernel / kernel.sum())


def blur_line(pixels: torch.Tensor, length: float, angles: torch.Tensor) -> torch.Tensor:
    """Blur along a straight line of a length in pixels, each image along its own angle.

    angles: (B,), degrees anticlockwise from the horizontal.
    """
    reach = math.ceil(length / 2)
    points = math.ceil(length * _FINENESS)
    along = length * ((torch.arange(points) + 0.5) / points - 0.5)
    radians = torch.deg2rad(angles)
    x = along * torch.cos(radians)[:, None] + reach
    y = -along * torch.sin(radians)[:, None] + reach
    kernels = torch.zeros(len(angles), 2 * reach + 2, 2 * reach + 2)
    left, top = x.floor().long(), y.floor().long()
    image = torch.arange(len(angles))[:, None].expand_as(left)
    # Each point is shared by the four pixels around it, with more for the nearer ones.
    for right in (0, 1):
        for below in (0, 1):
            share_x = x - left if right else 1 - (x - left)
            share_y = y - top if below else 1 - (y - top)
            places = (image, top + below, left + right)
            kernels.index_put_(places, share_x * share_y, accumulate=True)
    kernels = kernels[:, :-1, :-1]
    return _convolve(pixels, kernels / kernels.sum(dim=(1, 2), keepdim=True))


def _convolve(pixels: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Filter each image by its own kernel (B, K, K), or all by one (1, K, K), K odd.

    Borders are mirrored, so a kernel is less than twice as long as the image.
    """
    batch, channels, side, _ = pixels.shape
    padded = functional.pad(pixels, [kernels.shape[-1] // 2] * 4, mode="reflect")
    kernels = kernels.expand(batch, -1, -1).repeat_interleave(channels, dim=0)[:, None]
    flat = padded.reshape(1, batch * channels, *padded.shape[2:])
    filtered = functional.conv2d(flat, kernels, groups=batch * channels)
    return filtered.reshape(batch, channels, side, side)


def _resize(pixels: torch.Tensor, side: int) -> torch.Tensor:
    return functional.interpolate(
        pixels, size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )


def reduce_resolution(pixels: torch.Tensor, share: float) -> torch.Tensor:
    """Scale to a share of the side and back, smoothly."""
    side = pixels.shape[-1]
    return _resize(_resize(pixels, max(1, round(side * share))), side)


def pixelate(pixels: torch.Tensor, share: float) -> torch.Tensor:
    """Scale to a share of the side and back in visible square blocks."""
    side = pixels.shape[-1]
    small = max(1, round(side * share))
    reduced = functional.interpolate(pixels, size=(small, small), mode="area")
    return functional.interpolate(reduced, size=(side, side), mode="nearest-exact")


def rotate(pixels: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate each image around its middle; the corners are filled with its mirror image.

    angles: (B,), degrees anticlockwise.
    """
    radians = torch.deg2rad(angles)
    cosine, sine, zero = torch.cos(radians), torch.sin(radians), torch.zeros_like(radians)
    matrices = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(matrices, list(pixels.shape), align_corners=False)
    return functional.grid_sample(
        pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def crop_and_resize(pixels: torch.Tensor, top: int, left: int, side: int) -> torch.Tensor:
    """Crop a square and scale it to the size of the whole image (bilinear, antialiased)."""
    return _resize(pixels[..., top : top + side, left : left + side], pixels.shape[-1])


def zoom(pixels: torch.Tensor, factor: float) -> torch.Tensor:
    """Show the middle ``factor`` times as large; below 1 it is surrounded by black."""
    side = pixels.shape[-1]
    if factor >= 1:
        inner = max(1, round(side / factor))
        margin = (side - inner) // 2
        return crop_and_resize(pixels, margin, margin, inner)
    inner = max(1, round(side * factor))
    margin = (side - inner) // 2
    rest = side - inner - margin
    return functional.pad(_resize(pixels, inner), (margin, rest, margin, rest))


# Each kind with the amounts of the five strengths.
_CORRUPTIONS: dict[str, tuple[Change, tuple[Any, ...]]] = {
    "gaussian_noise": (_add_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_add_shot_noise, (60, 25, 12, 5, 3)),
    "gaussian_blur": (_blur_gaussian, (2, 3, 4, 6, 8)),
    "defocus_blur": (lambda x, radius, _: blur_disk(x, radius * _scale(x)), (3, 4, 6, 8, 10)),
    "motion_blur": (_blur_motion, (10, 15, 22, 30, 40)),
    "fog": (_add_fog, (0.7, 1.1, 1.6, 2.2, 3.0)),
    "snow": (_add_snow, ((0.02, 0.1), (0.04, 0.2), (0.07, 0.3), (0.11, 0.4), (0.16, 0.5))),
    "brightness": (_brighten, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_flatten_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "jpeg": (_compress_jpeg, (25, 18, 15, 10, 7)),
    "pixelate": (lambda x, share, _: pixelate(x, share), (0.5, 0.4, 0.3, 0.2, 0.15)),
}
_VIEWS: dict[str, tuple[Change, tuple[Any, ...]]] = {
    "rotation": (_rotate, (5, 10, 20, 30, 45)),
    "zoom_in": (lambda x, factor, _: zoom(x, factor), (1.15, 1.3, 1.5, 1.8, 2.2)),
    "zoom_out": (lambda x, factor, _: zoom(x, factor), (0.85, 0.7, 0.55, 0.4, 0.3)),
    "resolution": (
        lambda x, share, _: reduce_resolution(x, share),
        (0.75, 0.5, 0.375, 0.25, 0.125),
    ),
}
_CHANGES = {**_CORRUPTIONS, **_VIEWS}
# Corrupted images, and the same object rotated, nearer, farther away or at a lower resolution.
CORRUPTIONS = tuple(_CORRUPTIONS)
VIEWS = tuple(_VIEWS)
# The position of a kind is part of its random seed.
KINDS = (*CORRUPTIONS, *VIEWS)
