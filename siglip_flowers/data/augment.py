"""Vary a batch of training pictures on the device it lies on.

Every random number is a function of (seed, step, row of the data set): the same picture at the
same step is varied alike whatever device, worker or process it lands on, and after a resume.
"""

import math

import numpy as np
import torch
from torch.nn import functional

from siglip_flowers.config import AugmentationArguments

# Random crops change the aspect ratio by up to this factor (Szegedy et al. 2015, section 6).
CROP_ASPECT_RATIO = 4 / 3
# Erased area as a share of the picture (Zhong et al. 2020, section 3.1).
ERASED_AREA = (0.02, 1 / 3)
NUMBERS_PER_PICTURE = 16


def uniform_numbers(seed: int, step: int, rows: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` uniform numbers in [0, 1) for each row: (B, count) float64.

    A counter-based generator: no state, no order. Source: Steele et al. 2014, "Fast splittable
    pseudorandom number generators" (the SplitMix64 finaliser).
    """
    stream = _mix(np.array([seed % 2**64], dtype=np.uint64))
    stream = _mix(stream + np.uint64(step))
    per_row = _mix(stream + rows.astype(np.uint64))
    counters = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = _mix(per_row[:, None] + counters[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(value: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


class BatchAugmenter:
    """Random resized crop, flip, colour jitter, erasing, and mixup or CutMix, for whole batches.

    Args:
        arguments: Strength of each variation.
        size: Side in pixels of what comes out.
        num_labels: C, for the soft labels of mixup and CutMix.
        seed: Seed of every random number.
    """

    def __init__(
        self, arguments: AugmentationArguments, size: int, num_labels: int, seed: int
    ) -> None:
        self.arguments = arguments
        self.size = size
        self.num_labels = num_labels
        self.seed = seed

    def __call__(
        self, pixels: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vary one batch.

        Args:
            pixels: (B, 3, H, W) uint8.
            labels: (B,) int64.
            rows: (B,) int64, each picture's row in the data set.
            step: Number of the optimiser step.

        Returns:
            Pixels (B, 3, S, S) float32 on the 0..255 scale; labels (B,) int64, or (B, C) float32
            where pictures were mixed.
        """
        numbers = uniform_numbers(self.seed, step, rows.cpu().numpy(), NUMBERS_PER_PICTURE)
        u = torch.from_numpy(numbers).to(pixels.device, torch.float32)
        arguments = self.arguments
        pixels = self._crop_and_flip(pixels.float(), u[:, 0:5])
        if arguments.color_jitter:
            pixels = self._jitter(pixels, u[:, 5:8])
        if arguments.random_erasing:
            pixels = self._erase(pixels, u[:, 8:13])
        if arguments.mixup_alpha or arguments.cutmix_alpha:
            return self._mix_pictures(pixels, labels, step)
        return pixels, labels

    def _crop_and_flip(self, pixels: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """Cut a random box out of each picture and resize it, by one resampling of the batch."""
        area = self.arguments.crop_min_scale + (1 - self.arguments.crop_min_scale) * u[:, 0]
        # A large box has room for small changes of the ratio only: no side outgrows the picture.
        log_ratio = (-area.log()).clamp(max=math.log(CROP_ASPECT_RATIO))
        ratio = torch.exp(log_ratio * (2 * u[:, 1] - 1))
        width = (area * ratio).sqrt().clamp(max=1.0)
        height = (area / ratio).sqrt().clamp(max=1.0)
        center_x = (1 - width) * (2 * u[:, 2] - 1)
        center_y = (1 - height) * (2 * u[:, 3] - 1)
        mirror = torch.where(u[:, 4] < self.arguments.horizontal_flip, -1.0, 1.0)
        theta = torch.zeros(len(pixels), 2, 3, device=pixels.device)
        theta[:, 0, 0] = width * mirror
        theta[:, 0, 2] = center_x
        theta[:, 1, 1] = height
        theta[:, 1, 2] = center_y
        shape = [len(pixels), 3, self.size, self.size]
        grid = functional.affine_grid(theta, shape, align_corners=False)
        return functional.grid_sample(
            pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False
        )

    def _jitter(self, pixels: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        strength = self.arguments.color_jitter
        brightness, contrast, saturation = (
            1 + strength * (2 * u - 1).view(len(pixels), 3, 1, 1, 1)
        ).unbind(1)
        pixels = pixels * brightness
        weights = torch.tensor([0.299, 0.587, 0.114], device=pixels.device).view(1, 3, 1, 1)
        grey = (pixels * weights).sum(1, keepdim=True)
        mean = grey.mean((2, 3), keepdim=True)
        pixels = grey + (pixels - grey) * saturation
        return (mean + (pixels - mean) * contrast).clamp(0, 255)

    def _erase(self, pixels: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        side = pixels.shape[-1]
        low, high = ERASED_AREA
        area = low + (high - low) * u[:, 1]
        ratio = torch.exp(math.log(10 / 3) * (2 * u[:, 2] - 1))
        height = (area / ratio).sqrt().clamp(max=1) * side
        width = (area * ratio).sqrt().clamp(max=1) * side
        inside = self._inside_box(
            pixels, u[:, 3] * (side - width), u[:, 4] * (side - height), width, height
        )
        erased = inside & (u[:, 0] < self.arguments.random_erasing).view(-1, 1, 1, 1)
        # Half grey is zero after SigLIP's normalisation.
        return torch.where(erased, 127.5, pixels)

    @staticmethod
    def _inside_box(
        pixels: torch.Tensor,
        left: torch.Tensor,
        top: torch.Tensor,
        width: torch.Tensor,
        height: torch.Tensor,
    ) -> torch.Tensor:
        """Return (B, 1, H, W) bool: which pixels lie in each picture's box."""
        position = torch.arange(pixels.shape[-1], device=pixels.device) + 0.5
        left, top = left.view(-1, 1), top.view(-1, 1)
        in_x = (position >= left) & (position < left + width.view(-1, 1))
        in_y = (position >= top) & (position < top + height.view(-1, 1))
        return (in_y[:, :, None] & in_x[:, None, :]).unsqueeze(1)

    def _mix_pictures(
        self, pixels: torch.Tensor, labels: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix each picture with its neighbour in the batch, by mixup or CutMix.

        Sources: Zhang et al. 2018, "mixup"; Yun et al. 2019, "CutMix", equation 1. One draw of
        lambda serves the whole batch, as in both papers' own code.
        """
        arguments = self.arguments
        generator = np.random.Generator(np.random.PCG64([self.seed, step]))
        use_cutmix = arguments.cutmix_alpha > 0 and (
            arguments.mixup_alpha == 0 or generator.random() < 0.5
        )
        alpha = arguments.cutmix_alpha if use_cutmix else arguments.mixup_alpha
        share = float(generator.beta(alpha, alpha))
        partner = pixels.roll(1, dims=0)
        if use_cutmix:
            side = pixels.shape[-1]
            cut = round(side * math.sqrt(1 - share))
            left, top = (int(generator.integers(0, side - cut + 1)) for _ in range(2))
            pixels = pixels.clone()
            box = (..., slice(top, top + cut), slice(left, left + cut))
            pixels[box] = partner[box]
            share = 1 - cut * cut / side**2
        else:
            pixels = share * pixels + (1 - share) * partner
        targets = functional.one_hot(labels, self.num_labels).float()
        return pixels, share * targets + (1 - share) * targets.roll(1, dims=0)
