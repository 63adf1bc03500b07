"""Blurs and geometric changes of batches of images: float32 (B, C, S, S) in and out."""

import math

import torch
from torch.nn import functional

# A Gaussian kernel ends at this many standard deviations.
GAUSSIAN_REACH = 4.0
# Subdivisions of a pixel's side at the edge of a disk or a line.
_FINENESS = 8


def blur_gaussian(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur with a Gaussian of standard deviation sigma, in pixels; borders are mirrored."""
    reach = int(GAUSSIAN_REACH * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-((offsets / sigma) ** 2) / 2)
    kernel = (kernel / kernel.sum()).float()
    rows = _convolve(pixels, kernel.view(1, 1, -1))
    return _convolve(rows, kernel.view(1, -1, 1))


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
    """Filter each image by its own kernel (B, H, W), or all by one (1, H, W), of odd sides."""
    batch, channels, side, _ = pixels.shape
    height, width = kernels.shape[1:]
    padded = _mirror(_mirror(pixels, height // 2, 2), width // 2, 3)
    kernels = kernels.expand(batch, -1, -1).repeat_interleave(channels, dim=0)[:, None]
    flat = padded.reshape(1, batch * channels, *padded.shape[2:])
    filtered = functional.conv2d(flat, kernels, groups=batch * channels)
    return filtered.reshape(batch, channels, side, side)


def _mirror(pixels: torch.Tensor, width: int, axis: int) -> torch.Tensor:
    """Extend an axis on both sides by its mirror image, again and again where it is short."""
    side = pixels.shape[axis]
    period = max(1, 2 * (side - 1))
    places = torch.arange(-width, side + width).remainder(period)
    return pixels.index_select(axis, torch.minimum(places, period - places))


def reduce_resolution(pixels: torch.Tensor, share: float, *, smooth: bool) -> torch.Tensor:
    """Scale to a share of the side and back.

    smooth: blurred as by a screen that scales (bilinear, antialiased); else visible square blocks.
    """
    side = pixels.shape[-1]
    small = max(1, round(side * share))
    mode = "bilinear" if smooth else "area"
    # "area" takes no such argument.
    options = {"align_corners": False, "antialias": True} if smooth else {}
    reduced = functional.interpolate(pixels, size=(small, small), mode=mode, **options)
    if smooth:
        return functional.interpolate(reduced, size=(side, side), mode=mode, **options)
    return functional.interpolate(reduced, size=(side, side), mode="nearest-exact")


def rotate(pixels: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate each image around its middle; the corners are filled with its mirror image.

    angles: (B,), degrees anticlockwise.
    """
    radians = torch.deg2rad(angles)
    cosine, sine, zero = torch.cos(radians), torch.sin(radians), torch.zeros_like(radians)
    first = torch.stack([cosine, -sine, zero], dim=1)
    second = torch.stack([sine, cosine, zero], dim=1)
    size = list(pixels.shape)
    grid = functional.affine_grid(torch.stack([first, second], dim=1), size, align_corners=False)
    return functional.grid_sample(
        pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def crop_and_resize(pixels: torch.Tensor, top: int, left: int, side: int) -> torch.Tensor:
    """Crop a square and scale it to the size of the whole image (bilinear, antialiased)."""
    part = pixels[..., top : top + side, left : left + side]
    return functional.interpolate(
        part, size=pixels.shape[-2:], mode="bilinear", align_corners=False, antialias=True
    )


def zoom(pixels: torch.Tensor, factor: float) -> torch.Tensor:
    """Show the middle ``factor`` times as large; below 1 it is surrounded by black."""
    side = pixels.shape[-1]
    if factor >= 1:
        inner = max(1, round(side / factor))
        margin = (side - inner) // 2
        return crop_and_resize(pixels, margin, margin, inner)
    inner = max(1, round(side * factor))
    small = functional.interpolate(
        pixels, size=(inner, inner), mode="bilinear", align_corners=False, antialias=True
    )
    changed = torch.zeros_like(pixels)
    margin = (side - inner) // 2
    changed[..., margin : margin + inner, margin : margin + inner] = small
    return changed
