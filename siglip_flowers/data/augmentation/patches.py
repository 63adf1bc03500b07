"""Vary a batch of NaFlex images, patches of each one's own aspect ratio, on their device."""

import numpy as np
import torch

from siglip_flowers.base.errors import InputError
from siglip_flowers.config import AugmentationArguments
from siglip_flowers.data.augmentation.auto_augment import send
from siglip_flowers.data.augmentation.images import BatchAugmenter
from siglip_flowers.data.pixels.patches import (
    PatchBudget,
    pack_patches,
    shrink_grids,
    unpack_patches,
)
from siglip_flowers.data.pixels.tensors import ImageSize

# Variations of whole images of one shape, each with the value that leaves it out.
SQUARE_ONLY = {"auto_augment": "none", "random_erasing": 0, "mixup_alpha": 0, "cutmix_alpha": 0}


def check_patch_augmentation(arguments: AugmentationArguments) -> None:
    """Raise InputError for a variation that images of different shapes cannot have."""
    for name, off in SQUARE_ONLY.items():
        value = getattr(arguments, name)
        if arguments.augment and value != off:
            raise InputError(
                f"--{name} {value} needs images of one shape, and a NaFlex checkpoint keeps each "
                f"image's own; set it to {off}, or use a fixed-resolution checkpoint."
            )


class PatchAugmenter(BatchAugmenter):
    """Random resized crop, flip and color changes for packed images of any grid.

    An image keeps its grid: the crop's box, whose aspect ratio is near the image's, is stretched
    over it. The random numbers are those that ``BatchAugmenter`` draws. It takes packed images
    (B, 1 + P, K) uint8 and returns packed ones, float32 on the 0..255 scale.

    Args:
        arguments: Strength of each variation.
        size: The patches that come out; images may come in with more.
        num_labels: C.
        seed: Seed of every random number.

    Raises:
        InputError: See :func:`check_patch_augmentation`.
    """

    def __init__(
        self, arguments: AugmentationArguments, size: PatchBudget, num_labels: int, seed: int
    ) -> None:
        check_patch_augmentation(arguments)
        super().__init__(arguments, size.patch_size, num_labels, seed)
        self.budget = size

    def _crop_and_flip(self, pixels: torch.Tensor, u: np.ndarray) -> torch.Tensor:
        """Resample a random box of each image onto its grid, bilinearly.

        Every patch samples its own pixels, so no image is ever put together.
        """
        patches = unpack_patches(pixels)
        side, count = self.budget.patch_size, self.budget.max_num_patches
        grids = shrink_grids(patches.spatial_shapes, patches.values.shape[1], count)
        width, height, center_x, center_y, mirror = self.draw_boxes(u)
        boxes = np.stack([height, width * mirror, center_y, center_x]).reshape(2, 2, -1)
        (stretch, centers) = send(boxes.astype(np.float32), pixels.device)
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
        valid = mask[..., None]
        flat = values.reshape(len(pixels), -1, 3)
        total = flat.sum(dim=1, keepdim=True)
        area = grids.prod(dim=1).view(-1, 1, 1) * self.budget.patch_size**2
        offset = (total / area) @ shift.transpose(1, 2)
        jittered = torch.baddbmm(offset, flat, color.transpose(1, 2)).clamp_(0, 255)
        return pack_patches(jittered.view_as(values) * valid, grids)


def build_augmenter(
    arguments: AugmentationArguments, size: ImageSize, num_labels: int, seed: int
) -> BatchAugmenter:
    """Return what varies batches of images of this size; see the classes."""
    if isinstance(size, PatchBudget):
        return PatchAugmenter(arguments, size, num_labels, seed)
    return BatchAugmenter(arguments, size, num_labels, seed)
