"""An invented flora: 102 species of flower drawn from a seed, for demos and tests without network.

A species is a fixed combination of traits; no two images of it are alike.
"""

import io

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from numpy.typing import NDArray
from PIL import Image as PILImage

from siglip_flowers.base.errors import InputError
from siglip_flowers.data.sources.drawing import draw_flower
from siglip_flowers.data.sources.species import (
    SPECIES_COUNT,
    SPECIES_NAMES,
    describe_species,
    make_generator,
)

__all__ = ["SPECIES_NAMES", "describe_species", "draw_flower", "load_procedural"]

MINIMUM_IMAGES_PER_CLASS = 5


def _encode_png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _draw_split(indices: range, image_size: int, seed: int, split_number: int) -> Dataset:
    rows = [(species, index) for species in range(SPECIES_COUNT) for index in indices]
    order = make_generator(seed, SPECIES_COUNT, split_number).random(len(rows)).argsort()
    shuffled = [rows[place] for place in order]
    images = [
        {
            "bytes": _encode_png(draw_flower(species, index, image_size, seed)),
            "path": f"procedural_{species:03d}_{index:04d}.png",
        }
        for species, index in shuffled
    ]
    features = Features({"image": Image(), "label": ClassLabel(names=list(SPECIES_NAMES))})
    labels = [species for species, _ in shuffled]
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def load_procedural(images_per_class: int, image_size: int, seed: int) -> DatasetDict:
    """Draws the data set: train, validation and test, 3:1:1 in every class, each shuffled.

    Columns ``image`` (PNG, ``image_size`` square, RGB) and ``label`` (0..101, SPECIES_NAMES).

    Raises InputError for fewer than 5 images per class, a side below 16 or a negative seed.
    """
    if images_per_class < MINIMUM_IMAGES_PER_CLASS:
        raise InputError(
            f"{images_per_class} procedural images per class are too few; ask for at least "
            f"{MINIMUM_IMAGES_PER_CLASS}, so that every split has an image of every class."
        )
    held_out = round(images_per_class / 5)
    test_start = images_per_class - held_out
    validation_start = test_start - held_out
    splits = {
        "train": range(validation_start),
        "validation": range(validation_start, test_start),
        "test": range(test_start, images_per_class),
    }
    return DatasetDict(
        {
            name: _draw_split(indices, image_size, seed, number)
            for number, (name, indices) in enumerate(splits.items())
        }
    )
