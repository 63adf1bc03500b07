"""Images of a NaFlex SigLIP 2: patches at the image's own aspect ratio, padded to a budget.

An image travels as one array (1 + P, K), so that batches are stacked, cached, copied and divided
like those of square images. Its first row is a header: the numbers of patch rows and patch
columns, two bytes each, the low one first. P rows of patches follow, of K = side * side * 3 bytes
in the order row, column, color; those after the image's last patch are zero.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    convert_image_to_patches,
    get_image_size_for_max_num_patches,
)


@dataclass(frozen=True)
class PatchBudget:
    """How images are cut up: into as many square patches as fit.

    Attributes:
        patch_size: Side of a patch in pixels.
        max_num_patches: P, the most patches an image gets.
    """

    patch_size: int
    max_num_patches: int

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a packed image."""
        return 1 + self.max_num_patches, 3 * self.patch_size**2


class Patches(NamedTuple):
    """A batch of images as patches.

    Attributes:
        values: (B, P, K), uint8 or float on the 0..255 scale.
        mask: (B, P) int32, 1 for patches of the image and 0 after them.
        spatial_shapes: (B, 2) int64, patch rows and patch columns.
    """

    values: torch.Tensor
    mask: torch.Tensor
    spatial_shapes: torch.Tensor


def pack_image(image: Image.Image, budget: PatchBudget, resample: int) -> torch.Tensor:
    """Resize an RGB image to whole patches within the budget and cut it up: (1 + P, K) uint8."""
    side = budget.patch_size
    height, width = get_image_size_for_max_num_patches(
        image.height, image.width, side, budget.max_num_patches
    )
    if image.size != (width, height):
        image = image.resize((width, height), resample=Image.Resampling(resample))
    patches = convert_image_to_patches(np.asarray(image).transpose(2, 0, 1), side)
    packed = np.zeros(budget.shape, dtype=np.uint8)
    grid = np.array([height // side, width // side], dtype="<u2")
    packed[0, :4] = grid.view(np.uint8)
    packed[1 : 1 + len(patches)] = patches
    return torch.from_numpy(packed)


def unpack_patches(packed: torch.Tensor) -> Patches:
    """Split packed images (B, 1 + P, K) into their parts; the values share their memory."""
    header = packed[:, 0, :4].long()
    spatial_shapes = header[:, 0::2] + 256 * header[:, 1::2]
    values = packed[:, 1:]
    numbers = torch.arange(values.shape[1], device=packed.device)
    mask = (numbers < spatial_shapes.prod(dim=1, keepdim=True)).int()
    return Patches(values, mask, spatial_shapes)


def pack_patches(values: torch.Tensor, spatial_shapes: torch.Tensor) -> torch.Tensor:
    """Join patches (B, P, K) and their grids (B, 2) to packed images (B, 1 + P, K)."""
    header = values.new_zeros(len(values), 1, values.shape[2])
    header[:, 0, 0:4:2] = (spatial_shapes % 256).to(values.dtype)
    header[:, 0, 1:4:2] = (spatial_shapes // 256).to(values.dtype)
    return torch.cat([header, values], dim=1)


def shrink_grids(spatial_shapes: torch.Tensor, available: int, budget: int) -> torch.Tensor:
    """Return smaller grids (B, 2) for images that were cut up for more patches than wanted.

    Args:
        spatial_shapes: (B, 2) int64, grids of at most ``available`` patches.
        available: Patches that they were cut up for.
        budget: The most patches that are wanted.
    """
    if available <= budget:
        return spatial_shapes
    wanted = (spatial_shapes * math.sqrt(budget / available)).round().long().clamp(1, budget)
    rows = wanted[:, 0]
    # Rounding both up may exceed the budget.
    columns = torch.minimum(wanted[:, 1], budget // rows)
    return torch.stack([rows, columns], dim=1)
