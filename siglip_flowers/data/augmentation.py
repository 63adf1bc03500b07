"""Augment a batch of training images on the device that holds it.

Every random number of a single image is a function of (seed, step, row of the data set): the same
image at the same step is augmented alike whatever device, worker or process it lands on, and after
a resume. Mixup and CutMix draw once per batch, from (seed, step) alone, and mix each image with
the one before it in its batch: there the number of processes and the size of the batch matter.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from siglip_flowers.base.errors import InputError
from siglip_flowers.config import AugmentationArguments
from siglip_flowers.data.pixels.patches import (
    PatchBudget,
    pack_patches,
    shrink_grids,
    unpack_patches,
)
from siglip_flowers.data.pixels.tensors import ImageSize

# Random crops change the aspect ratio by up to this factor (Szegedy et al. 2015, section 6).
CROP_ASPECT_RATIO = 4 / 3
GRAY_WEIGHTS = (0.299, 0.587, 0.114)
NUMBERS_PER_IMAGE = 8


def uniform_numbers(seed: int, step: int, rows: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` uniform numbers in [0, 1) for each row: (B, count) float64.

    A counter-based generator: no state, no order. Source: Steele et al. 2014, "Fast splittable
    pseudorandom number generators" (the SplitMix64 finalizer).
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


def draw_patches(seed: int, step: int, rows: np.ndarray, count: int, kept: int) -> torch.Tensor:
    """Draw ``kept`` of ``count`` patches for each row: (B, kept) int64, ascending."""
    order = np.argsort(uniform_numbers(seed, step, rows, count), axis=1)
    return torch.from_numpy(np.sort(order[:, :kept], axis=1))


def encode_labels(labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Return labels (B,) int64 as distributions (B, C) float32, all on their own class."""
    # Not one_hot, which looks at the labels' values on the host.
    classes = torch.arange(num_labels, device=labels.device)
    return (labels[:, None] == classes).float()


def _send(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy an array to a device without waiting for the device."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class BatchAugmenter:
    """Random resized crop, flip, color jitter, and mixup or CutMix, for whole batches.

    The random choices are made on the host, in float64, and sent to the device as a few numbers
    per image, so the host never waits for the device.

    Attributes:
        arguments: Strength of each augmentation.
        size: S, the side in pixels of the augmented images.
        num_labels: C, for the soft labels of mixup and CutMix.
        seed: Seed of every random number.
    """

    arguments: AugmentationArguments
    size: Any
    num_labels: int
    seed: int

    def __call__(
        self, pixels: torch.Tensor, labels: torch.Tensor, rows: np.ndarray, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment one batch.

        Args:
            pixels: (B, 3, H, W) uint8; not modified.
            labels: (B,) int64.
            rows: (B,) int64, each image's row in the data set.
            step: Number of the optimizer step.

        Returns:
            Pixels (B, 3, S, S) float32 on the 0..255 scale; labels (B,) int64, or (B, C) float32
            if images were mixed.
        """
        u = uniform_numbers(self.seed, step, rows, NUMBERS_PER_IMAGE)
        # From here on the pixels are a private copy and may be modified in place.
        augmented = self._crop_and_flip(pixels, u[:, 0:5])
        if self.arguments.color_jitter:
            augmented = self._jitter(augmented, u[:, 5:8])
        if self.arguments.mixup_alpha or self.arguments.cutmix_alpha:
            return self._mix_images(augmented, labels, step)
        return augmented, labels

    def draw_boxes(self, u: np.ndarray) -> tuple[np.ndarray, ...]:
        """Draw the box that is cut out of each image, and whether it is mirrored.

        The area is uniform and the logarithm of the aspect ratio is uniform within what that area
        has room for, as in Szegedy et al. 2015, section 6 (sizes "distributed evenly", ratios
        constrained); torchvision redraws both when a box does not fit, which makes large boxes
        rarer. The ratio is one of shares of the image, squashed to a square as the model sees
        it; torchvision's is one of pixels of the file.

        Args:
            u: (B, 5) uniform numbers.

        Returns:
            Width and height as shares of the image, the center's x and y in -1..1, and -1 for a
            mirrored image, else 1: each (B,) float64.
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
        # The border repeats beyond the outermost centers of pixels. grid_sample's own border mode
        # does not exist on MPS below torch 2.13.
        limit = 1 - 1 / pixels.shape[-1]
        x, y = np.clip(x, -limit, limit), np.clip(y, -limit, limit)
        places = _send(np.stack([x, y], axis=1).astype(np.float32), pixels.device)
        # Planes of x and y instead of pairs: quicker to fill, and to sample from.
        grid = places.new_empty(len(pixels), 2, self.size, self.size)
        grid[:, 0] = places[:, 0, None, :]
        grid[:, 1] = places[:, 1, :, None]
        return functional.grid_sample(
            pixels.to(torch.float32, memory_format=torch.contiguous_format),
            grid.permute(0, 2, 3, 1),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )

    def draw_color_maps(self, u: np.ndarray, device: torch.device) -> torch.Tensor:
        """Draw a change of brightness, saturation and contrast, in this order, for each image.

        One affine map of the colors: with brightness b, saturation s, contrast k and the gray
        weights w, p becomes k (s b p + (1 - s) b w.p) + (1 - k) b w.mean(p).

        Args:
            u: (B, 3) uniform numbers.
            device: Device of the result.

        Returns:
            (2, B, 3, 3) float32: the factors of a pixel's color, and of the image's mean color.
        """
        strength = self.arguments.color_jitter
        brightness, contrast, saturation = (1 + strength * (2 * u - 1)).T[:, :, None, None]
        weights = np.array(GRAY_WEIGHTS)
        color = contrast * brightness * (saturation * np.eye(3) + (1 - saturation) * weights)
        shift = (1 - contrast) * brightness * np.tile(weights, (3, 1))
        return _send(np.stack([color, shift]).astype(np.float32), device)

    def _jitter(self, pixels: torch.Tensor, u: np.ndarray) -> torch.Tensor:
        maps = self.draw_color_maps(u, pixels.device)
        flat = pixels.flatten(2)
        offset = maps[1] @ flat.mean(2, keepdim=True)
        return torch.baddbmm(offset, maps[0], flat).clamp_(0, 255).view_as(pixels)

    def _mix_images(
        self, pixels: torch.Tensor, labels: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix each image with the one before it in the batch, by mixup or CutMix.

        Sources: Zhang et al. 2018, "mixup"; Yun et al. 2019, "CutMix", equation 1. One lambda is
        drawn per batch, as in both papers' own code.
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
        targets = encode_labels(labels, self.num_labels)
        return pixels, share * targets + (1 - share) * targets.roll(1, dims=0)


def check_patch_augmentation(arguments: AugmentationArguments) -> None:
    """Raise InputError for an augmentation that needs images of one shape."""
    if arguments.augment and (arguments.mixup_alpha or arguments.cutmix_alpha):
        raise InputError(
            "--mixup_alpha and --cutmix_alpha need images of one shape, but a NaFlex checkpoint "
            "keeps each image's aspect ratio. Set them to 0, or use a fixed-resolution checkpoint."
        )


class PatchAugmenter(BatchAugmenter):
    """Random resized crop, flip and color jitter for packed images of any grid.

    An image keeps its grid: the crop's box, whose aspect ratio is near the image's, is stretched
    over it. The random numbers are those that ``BatchAugmenter`` draws. It takes packed images
    (B, 1 + P, K) uint8 and returns packed ones, float32 on the 0..255 scale. Its ``size`` is the
    patch budget of the augmented images; the input may have more patches.
    """

    def _crop_and_flip(self, pixels: torch.Tensor, u: np.ndarray) -> torch.Tensor:
        """Resample a random box of each image onto its grid, bilinearly.

        Every patch samples its own pixels, so no image is ever assembled.
        """
        patches = unpack_patches(pixels)
        side, count = self.size.patch_size, self.size.max_num_patches
        grids = shrink_grids(patches.spatial_shapes, patches.values.shape[1], count)
        width, height, center_x, center_y, mirror = self.draw_boxes(u)
        boxes = np.stack([height, width * mirror, center_y, center_x]).reshape(2, 2, -1)
        (stretch, centers) = _send(boxes.astype(np.float32), pixels.device)
        # The places of output patches in the grid, and from there of their pixels in the input:
        # (B, P, side), rows first and then columns.
        numbers = torch.arange(count, device=pixels.device)
        columns = grids[:, 1:]
        corners = (numbers // columns, numbers % columns)
        low, high, weight = [], [], []
        for axis in range(2):
            within = torch.arange(side, device=pixels.device)
            place = (corners[axis] * side)[..., None] + within
            length = (grids[:, axis] * side).view(-1, 1, 1)
            unit = (2 * place + 1) / length - 1
            unit = stretch[axis].view(-1, 1, 1) * unit + centers[axis].view(-1, 1, 1)
            source_length = (patches.spatial_shapes[:, axis] * side).view(-1, 1, 1)
            source = ((unit + 1) * source_length - 1) / 2
            # Beyond the edge the edge is repeated; output padding is beyond every edge.
            source = source.clamp(min=0).minimum(source_length - 1)
            floor = source.floor()
            low.append(floor.long())
            high.append((floor.long() + 1).minimum(source_length - 1))
            weight.append(source - floor)
        flat = patches.values.reshape(-1, 3)
        offsets = torch.arange(len(pixels), device=pixels.device) * patches.values.shape[1]
        source_columns = patches.spatial_shapes[:, 1].view(-1, 1, 1, 1)

        def sample(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
            rows, columns = rows[..., :, None], columns[..., None, :]
            patch = rows // side * source_columns + columns // side + offsets.view(-1, 1, 1, 1)
            return flat[(patch * side + rows % side) * side + columns % side].float()

        down, right = weight[0][..., :, None, None], weight[1][..., None, :, None]
        above = torch.lerp(sample(low[0], low[1]), sample(low[0], high[1]), right)
        below = torch.lerp(sample(high[0], low[1]), sample(high[0], high[1]), right)
        values = torch.lerp(above, below, down).reshape(len(pixels), count, -1)
        inside = numbers < grids.prod(dim=1, keepdim=True)
        return pack_patches(values.masked_fill_(~inside[..., None], 0), grids)

    def _jitter(self, pixels: torch.Tensor, u: np.ndarray) -> torch.Tensor:
        values, mask, grids = unpack_patches(pixels)
        color, shift = self.draw_color_maps(u, pixels.device)
        flat = values.reshape(len(pixels), -1, 3)
        total = flat.sum(dim=1, keepdim=True)
        area = grids.prod(dim=1).view(-1, 1, 1) * self.size.patch_size**2
        offset = (total / area) @ shift.transpose(1, 2)
        jittered = torch.baddbmm(offset, flat, color.transpose(1, 2)).clamp_(0, 255)
        return pack_patches(jittered.view_as(values) * mask[..., None], grids)


def build_augmenter(
    arguments: AugmentationArguments, size: ImageSize, num_labels: int, seed: int
) -> BatchAugmenter:
    """Return the augmenter for images of this size."""
    if isinstance(size, PatchBudget):
        return PatchAugmenter(arguments, size, num_labels, seed)
    return BatchAugmenter(arguments, size, num_labels, seed)
