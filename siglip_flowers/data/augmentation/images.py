"""Vary a batch of training images on the device it lies on.

Every random number of a single image is a function of (seed, step, row of the data set): the same
image at the same step is varied alike whatever device, worker or process it lands on, and after a
resume. Mixup and CutMix draw once for a batch, from (seed, step) alone, and mix each image with
the one before it in its batch: there the number of processes and the size of the batch matter.
"""

import math

import numpy as np
import torch
from torch.nn import functional

from siglip_flowers.config import AugmentationArguments
from siglip_flowers.data.augmentation.auto_augment import (
    FILL,
    GRAY_WEIGHTS,
    NUMBERS_PER_OPERATION,
    apply_operations,
    draw_operations,
    send,
)

# Random crops change the aspect ratio by up to this factor (Szegedy et al. 2015, section 6).
CROP_ASPECT_RATIO = 4 / 3
# Erased area as a share of the image (Zhong et al. 2020, section 3.1).
ERASED_AREA = (0.02, 1 / 3)
# Larger intermediate results leave the processor's cache, and from 32 MiB on the C library asks the
# system for their pages anew every time.
CPU_BYTES_AT_ONCE = 4 * 2**20
NUMBERS_PER_IMAGE = 16


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


def _count_images_at_once(pixels: torch.Tensor) -> int:
    """Return how many images of a batch to vary at once: on a GPU all of them."""
    varied_bytes = 4 * pixels.numel()
    if pixels.device.type != "cpu" or varied_bytes <= CPU_BYTES_AT_ONCE:
        return len(pixels)
    return max(1, CPU_BYTES_AT_ONCE * len(pixels) // varied_bytes)


class BatchAugmenter:
    """Random resized crop, flip, color changes, erasing, and mixup or CutMix, for whole batches.

    Everything that is drawn is worked out on the host, in float64, and sent as a few numbers an
    image; the device is never waited for.

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
        # TrivialAugment is one operation by definition.
        random = arguments.auto_augment == "randaugment"
        self.num_operations = arguments.randaugment_num_ops if random else 1

    def __call__(
        self,
        pixels: torch.Tensor,
        labels: torch.Tensor,
        rows: np.ndarray | torch.Tensor,
        step: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vary one batch.

        Args:
            pixels: (B, 3, H, W) uint8; left as they are.
            labels: (B,) int64.
            rows: (B,) int64, each image's row in the data set. An array or a tensor of the
                host costs no wait for the device.
            step: Number of the optimizer step.

        Returns:
            Pixels (B, 3, S, S) float32 on the 0..255 scale; labels (B,) int64, or (B, C) float32
            where images were mixed.
        """
        rows = rows.cpu().numpy() if isinstance(rows, torch.Tensor) else rows
        arguments = self.arguments
        count = NUMBERS_PER_IMAGE
        if arguments.auto_augment != "none":
            count += NUMBERS_PER_OPERATION * self.num_operations
        u = uniform_numbers(self.seed, step, rows, count)
        share = _count_images_at_once(pixels)
        parts = [
            self._augment_images(pixels[start : start + share], u[start : start + share])
            for start in range(0, len(pixels), share)
        ]
        varied = parts[0] if len(parts) == 1 else torch.cat(parts)
        if arguments.mixup_alpha or arguments.cutmix_alpha:
            return self._mix_images(varied, labels, step)
        return varied, labels

    def _augment_images(self, pixels: torch.Tensor, u: np.ndarray) -> torch.Tensor:
        """Vary every image by itself."""
        arguments = self.arguments
        pixels = self._crop_and_flip(pixels, u[:, 0:5])
        # All that follows may write into these pixels: nobody else holds them.
        if arguments.auto_augment != "none":
            self._auto_augment(pixels, u[:, NUMBERS_PER_IMAGE:])
        elif arguments.color_jitter:
            pixels = self._jitter(pixels, u[:, 5:8])
        if arguments.random_erasing:
            self._erase(pixels, u[:, 8:13])
        return pixels

    def draw_boxes(self, u: np.ndarray) -> tuple[np.ndarray, ...]:
        """Draw the box that is cut out of each image, and whether it is mirrored.

        The area is uniform and the logarithm of the aspect ratio is uniform within what that area
        has room for, as in Szegedy et al. 2015, section 6 (sizes "distributed evenly", ratios
        constrained); torchvision draws both anew where a box does not fit, which makes large boxes
        rarer. The ratio is one of shares of the image, squashed to a square as the model sees
        it; torchvision's is one of pixels of the file.

        Args:
            u: (B, 5) uniform numbers.

        Returns:
            Width and height as shares of the image, the center's x and y in -1..1, and 1, or
            -1 where the image is mirrored: each (B,) float64.
        """
        area = self.arguments.crop_min_scale + (1 - self.arguments.crop_min_scale) * u[:, 0]
        # A large box has room for small changes of the ratio only: no side outgrows the image.
        log_ratio = np.minimum(-np.log(area), math.log(CROP_ASPECT_RATIO))
        ratio = np.exp(log_ratio * (2 * u[:, 1] - 1))
        width = np.minimum(np.sqrt(area * ratio), 1.0)
        height = np.minimum(np.sqrt(area / ratio), 1.0)
        center_x = (1 - width) * (2 * u[:, 2] - 1)
        center_y = (1 - height) * (2 * u[:, 3] - 1)
        mirror = np.where(u[:, 4] < self.arguments.horizontal_flip, -1.0, 1.0)
        return width, height, center_x, center_y, mirror

    def _crop_and_flip(self, pixels: torch.Tensor, u: np.ndarray) -> torch.Tensor:
        """Cut a random box out of each image and resize it, by one resampling of the batch."""
        width, height, center_x, center_y, mirror = self.draw_boxes(u)
        # Output pixels in -1..1, and from there the places in the input: x by column, y by row.
        axis = (2 * np.arange(self.size) + 1) / self.size - 1
        x = (width * mirror)[:, None] * axis + center_x[:, None]
        y = height[:, None] * axis + center_y[:, None]
        places = send(np.stack([x, y], axis=1).astype(np.float32), pixels.device)
        # Planes of x and y instead of pairs: quicker to fill, and to sample from.
        grid = places.new_empty(len(pixels), 2, self.size, self.size)
        grid[:, 0] = places[:, 0, None, :]
        grid[:, 1] = places[:, 1, :, None]
        return functional.grid_sample(
            pixels.to(torch.float32, memory_format=torch.contiguous_format),
            grid.permute(0, 2, 3, 1),
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )

    def _auto_augment(self, pixels: torch.Tensor, u: np.ndarray) -> None:
        numbers = u.reshape(len(u), self.num_operations, NUMBERS_PER_OPERATION)
        operations, magnitudes = draw_operations(
            self.arguments.auto_augment, numbers, self.arguments.randaugment_magnitude, self.size
        )
        for place in range(self.num_operations):
            apply_operations(pixels, operations[:, place], magnitudes[:, place])

    def draw_color_maps(self, u: np.ndarray, device: torch.device) -> torch.Tensor:
        """Draw a change of brightness, saturation and contrast, in this order, for each image.

        One affine map of the colors: with brightness b, saturation s, contrast k and the gray
        weights w, p becomes k (s b p + (1 - s) b w.p) + (1 - k) b w.mean(p).

        Args:
            u: (B, 3) uniform numbers.
            device: Where the maps go.

        Returns:
            (2, B, 3, 3) float32: what a pixel's color is multiplied by, and the mean color.
        """
        strength = self.arguments.color_jitter
        brightness, contrast, saturation = (1 + strength * (2 * u - 1)).T[:, :, None, None]
        weights = np.array(GRAY_WEIGHTS)
        color = contrast * brightness * (saturation * np.eye(3) + (1 - saturation) * weights)
        shift = (1 - contrast) * brightness * np.tile(weights, (3, 1))
        return send(np.stack([color, shift]).astype(np.float32), device)

    def _jitter(self, pixels: torch.Tensor, u: np.ndarray) -> torch.Tensor:
        maps = self.draw_color_maps(u, pixels.device)
        flat = pixels.flatten(2)
        offset = maps[1] @ flat.mean(2, keepdim=True)
        return torch.baddbmm(offset, maps[0], flat).clamp_(0, 255).view_as(pixels)

    def _erase(self, pixels: torch.Tensor, u: np.ndarray) -> None:
        side = pixels.shape[-1]
        low, high = ERASED_AREA
        area = low + (high - low) * u[:, 1]
        ratio = np.exp(math.log(10 / 3) * (2 * u[:, 2] - 1))
        # No box, but for those whose turn it is.
        turn = u[:, 0] < self.arguments.random_erasing
        width = np.minimum(np.sqrt(area * ratio), 1) * side * turn
        height = np.minimum(np.sqrt(area / ratio), 1) * side * turn
        left, top = u[:, 3] * (side - width), u[:, 4] * (side - height)
        center = np.arange(side) + 0.5
        in_x = (center >= left[:, None]) & (center < (left + width)[:, None])
        in_y = (center >= top[:, None]) & (center < (top + height)[:, None])
        inside = send(np.stack([in_x, in_y]), pixels.device)
        pixels.masked_fill_(inside[0, :, None, None, :] & inside[1, :, None, :, None], FILL)

    def _mix_images(
        self, pixels: torch.Tensor, labels: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix each image with the one before it in the batch, by mixup or CutMix.

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
        if use_cutmix:
            side = pixels.shape[-1]
            cut = round(side * math.sqrt(1 - share))
            left, top = (int(generator.integers(0, side - cut + 1)) for _ in range(2))
            box = (..., slice(top, top + cut), slice(left, left + cut))
            pixels[box] = pixels[box].roll(1, dims=0)
            share = 1 - cut * cut / side**2
        else:
            pixels = pixels.roll(1, dims=0).lerp_(pixels, share)
        # Not one_hot, which looks at the labels' values on the host.
        classes = torch.arange(self.num_labels, device=labels.device)
        targets = (labels[:, None] == classes).float()
        return pixels, share * targets + (1 - share) * targets.roll(1, dims=0)
