"""RandAugment and TrivialAugment for whole batches, on the device that the batch lies on.

Which operation an image meets, and how strongly, is drawn on the host from the image's own
uniform numbers. Images that meet the same operation are then varied together.

Sources: Cubuk et al. 2020, "RandAugment"; Mueller and Hutter 2021, "TrivialAugment" (the wide
space of its table 1). The operations are those of PIL, which both papers' own code calls, but for
bilinear instead of nearest resampling.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
GEOMETRIC = OPERATIONS[1:6]
# These are turned round with probability one half: left or right, more or less.
SIGNED = OPERATIONS[1:10]
MAGNITUDE_LEVELS = 30
NUMBERS_PER_OPERATION = 3
# Half gray is zero after SigLIP's normalization.
FILL = 127.5
GRAY_WEIGHTS = (0.299, 0.587, 0.114)


def build_magnitudes(policy: str, size: int) -> np.ndarray:
    """Return each operation's magnitude at each level: (14, 31) float64, without signs.

    Shears are ratios, translations pixels, rotations degrees; brightness, color, contrast and
    sharpness are distances of PIL's factor from 1, posterize the bits that are kept and solarize
    the threshold on the 0..255 scale. Operations without a magnitude have zeros.

    Args:
        policy: ``randaugment`` or ``trivialaugment``.
        size: Side of the images in pixels. RandAugment translates by a share of it,
            TrivialAugment by up to 32 pixels whatever the size, as in its paper.
    """
    wide = policy == "trivialaugment"
    share = np.arange(MAGNITUDE_LEVELS + 1) / MAGNITUDE_LEVELS
    shear = (0.99 if wide else 0.3) * share
    # 150 of the 331 pixels of the images that the search space was made for.
    translate = (32.0 if wide else 150 / 331 * size) * share
    factor = (0.99 if wide else 0.9) * share
    rows = {
        "shear_x": shear,
        "shear_y": shear,
        "translate_x": translate,
        "translate_y": translate,
        "rotate": (135.0 if wide else 30.0) * share,
        "brightness": factor,
        "color": factor,
        "contrast": factor,
        "sharpness": factor,
        "posterize": 8 - np.round((6 if wide else 4) * share),
        "solarize": 256 * (1 - share),
    }
    return np.stack([rows.get(name, np.zeros_like(share)) for name in OPERATIONS])


def draw_operations(
    policy: str, numbers: np.ndarray, level: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose each image's operations and their signed magnitudes.

    Args:
        policy: ``randaugment`` (one level for all) or ``trivialaugment`` (a level for each).
        numbers: (B, K, 3) uniform in [0, 1): operation, level and sign of K operations.
        level: RandAugment's magnitude, 0 to 30.
        size: Side of the images in pixels.

    Returns:
        Indices into ``OPERATIONS`` (B, K) int64; magnitudes (B, K) float64.
    """
    operations = (numbers[..., 0] * len(OPERATIONS)).astype(np.int64)
    levels = np.full_like(operations, level)
    if policy == "trivialaugment":
        levels = (numbers[..., 1] * (MAGNITUDE_LEVELS + 1)).astype(np.int64)
    magnitudes = build_magnitudes(policy, size)[operations, levels]
    turned = np.isin(operations, _indices(SIGNED)) & (numbers[..., 2] < 0.5)
    return operations, np.where(turned, -magnitudes, magnitudes)


def apply_operations(
    pixels: torch.Tensor, operations: np.ndarray, magnitudes: np.ndarray
) -> torch.Tensor:
    """Vary each image by its own operation, in place.

    Args:
        pixels: (B, 3, S, S) float32 on the 0..255 scale.
        operations: (B,) indices into ``OPERATIONS``, on the host.
        magnitudes: (B,) signed magnitudes, on the host.

    Returns:
        ``pixels``.
    """
    # All five geometric operations are one affine resampling.
    geometric = np.isin(operations, _indices(GEOMETRIC))
    kinds = np.where(geometric, OPERATIONS.index("rotate"), operations)
    order = np.argsort(kinds, kind="stable")
    bounds = np.searchsorted(kinds[order], np.arange(len(OPERATIONS) + 1))
    index = send(order, pixels.device)
    strengths = send(magnitudes[order].astype(np.float32), pixels.device)
    for number, name in enumerate(OPERATIONS):
        start, stop = int(bounds[number]), int(bounds[number + 1])
        if name == "identity" or start == stop:
            continue
        chosen = pixels.index_select(0, index[start:stop])
        if name == "rotate":
            rows = order[start:stop]
            matrices = build_matrices(operations[rows], magnitudes[rows], pixels.shape[-1])
            varied = _resample(chosen, send(matrices, pixels.device))
        else:
            varied = _COLOR[name](chosen, strengths[start:stop].view(-1, 1, 1, 1))
        pixels.index_copy_(0, index[start:stop], varied)
    return pixels


def build_matrices(operations: np.ndarray, magnitudes: np.ndarray, size: int) -> np.ndarray:
    """Return the (B, 2, 3) float32 maps from output to input places, both in -1..1.

    Shears keep the upper left corner and rotations the center in its place, as in PIL.
    """
    matrices = np.zeros((len(operations), 2, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1.0
    for axis, suffix in enumerate("xy"):
        shear = operations == OPERATIONS.index(f"shear_{suffix}")
        matrices[shear, axis, 1 - axis] = matrices[shear, axis, 2] = magnitudes[shear]
        translate = operations == OPERATIONS.index(f"translate_{suffix}")
        matrices[translate, axis, 2] = 2 * magnitudes[translate] / size
    rotate = operations == OPERATIONS.index("rotate")
    angle = np.radians(magnitudes[rotate])
    matrices[rotate, 0, 0] = matrices[rotate, 1, 1] = np.cos(angle)
    matrices[rotate, 0, 1] = -np.sin(angle)
    matrices[rotate, 1, 0] = np.sin(angle)
    return matrices.astype(np.float32)


def send(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy an array of the host to a device without waiting for the device."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _indices(names: tuple[str, ...]) -> list[int]:
    return [OPERATIONS.index(name) for name in names]


def _resample(pixels: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    size = pixels.shape[-1]
    axis = (2 * torch.arange(size, device=pixels.device) + 1) / size - 1
    rows = matrices.view(-1, 2, 3, 1, 1)
    # (B, 2, S, S): where each output pixel's x and y come from.
    places = rows[:, :, 0] * axis + rows[:, :, 1] * axis[:, None] + rows[:, :, 2]
    outside = (places.abs() > 1).any(1, keepdim=True)
    sampled = functional.grid_sample(
        pixels,
        places.permute(0, 2, 3, 1),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return sampled.masked_fill_(outside, FILL)


def _gray(pixels: torch.Tensor) -> torch.Tensor:
    """Return (B, 1, H, W) in whole levels: PIL's conversion to "L", exact for whole levels."""
    # PIL's 16-bit weights; the sums stay below 2**24, where float32 counts exactly.
    red, green, blue = (
        channel * weight
        for channel, weight in zip(pixels.split(1, dim=1), (19595, 38470, 7471), strict=True)
    )
    return red.add_(green).add_(blue).add_(32768).mul_(2.0**-16).floor_()


def _blend(degenerate: torch.Tensor, pixels: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Move from the degenerate image to the real one and, by more than 1, beyond it."""
    return torch.lerp(degenerate, pixels, 1 + strength).clamp_(0, 255)


def _change_brightness(pixels: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return (pixels * (1 + strength)).clamp_(0, 255)


def _change_color(pixels: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return _blend(_gray(pixels).expand_as(pixels), pixels, strength)


def _change_contrast(pixels: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    mean = _gray(pixels).mean((1, 2, 3), keepdim=True).round_()
    return _blend(mean.expand_as(pixels), pixels, strength)


def _change_sharpness(pixels: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    # PIL's SMOOTH: the center counts five times, its neighbors once; the border stays.
    inner = (..., slice(1, -1), slice(1, -1))
    smooth = pixels.clone()
    # Sums of shifted images: several times quicker on a CPU than a pooling or a convolution.
    around = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    around = around[..., :-2] + around[..., 1:-1] + around[..., 2:]
    smooth[inner] = around.add_(pixels[inner], alpha=4).div_(13).round_()
    return _blend(smooth, pixels, strength)


def _posterize(pixels: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    step = torch.exp2(8 - bits)
    return (pixels.round() / step).floor_() * step


def _solarize(pixels: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    return torch.where(pixels.round() < threshold, pixels, 255 - pixels)


def _stretch_contrast(pixels: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    low = pixels.amin((2, 3), keepdim=True).round_()
    high = pixels.amax((2, 3), keepdim=True).round_()
    # A channel of one level only stays as it is.
    flat = high <= low
    scale = torch.where(flat, 1.0, 255 / (high - low).clamp(min=1))
    return ((pixels - low.masked_fill_(flat, 0)) * scale).clamp_(0, 255)


def _equalize(pixels: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    levels = pixels.round().long().flatten(2).flatten(0, 1)
    channel = torch.arange(len(levels), device=pixels.device)[:, None] * 256
    counts = torch.zeros(len(levels) * 256, dtype=torch.int64, device=pixels.device)
    places = (levels + channel).flatten()
    counts = counts.scatter_add_(0, places, torch.ones_like(places)).view(-1, 256)
    # The brightest level that occurs does not count towards the step, as in PIL.
    brightest = levels.amax(1, keepdim=True)
    step = (counts.sum(1, keepdim=True) - counts.gather(1, brightest)) // 255
    below = counts.cumsum(1) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    equalized = table.gather(1, levels).view_as(pixels).float()
    return torch.where((step == 0).view(*pixels.shape[:2], 1, 1), pixels, equalized)


_COLOR: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "brightness": _change_brightness,
    "color": _change_color,
    "contrast": _change_contrast,
    "sharpness": _change_sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _stretch_contrast,
    "equalize": _equalize,
}
