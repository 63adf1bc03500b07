"""An invented flora: 102 species of flower drawn from a seed, for demos and tests without network.

A species is a fixed combination of traits; no two images of it are alike.
"""

import io
from functools import cache

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from numpy.typing import NDArray
from PIL import Image as PILImage

from siglip_flowers.data.sources.drawing import PATTERNS, SHAPES, Species, draw_scene
from siglip_flowers.data.splits import SPLIT_NAMES

SPECIES_COUNT = 102
# Changing these, or the order of random draws, changes every image and figure.
_FLORA_SEED = 20240102
# How many values each trait has, and how much a differing value sets two species apart.
_TRAIT_SIZES = Species(10, 10, len(SHAPES), 7, 3, len(PATTERNS), 3, 4, 6, 4, 2, 6)
_TRAIT_WEIGHTS = Species(4, 2, 4, 2, 1, 3, 1, 2, 3, 1, 1, 0)
_PLAIN_SHARE = 0.5  # of the candidates are made solitary, and as many lipless

# The words of names, by petal color, shape and pattern.
_COLOR_WORDS = (
    ("scarlet", "ruby", "cinnabar"), ("amber", "copper", "tawny"),
    ("golden", "saffron", "honey"), ("blush", "coral", "rosy"),
    ("fuchsia", "magenta", "damask"), ("violet", "amethyst", "plum"),
    ("azure", "cobalt", "sapphire"), ("snowy", "pearl", "ivory"),
    ("lilac", "hazy", "misty"), ("garnet", "dusky", "claret"),
)  # fmt: skip
_SHAPE_STEMS = ("moon", "star", "ribbon", "ladle", "heart", "frill", "crown", "spark", "feather")
_PATTERN_ENDINGS = ("wort", "bloom", "eye", "hem", "blade", "wheel", "freckle")


def _make_generator(*key: int) -> np.random.Generator:
    """Return the same stream of numbers for the same key, on every machine."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


@cache
def describe_species() -> tuple[Species, ...]:
    """The 102 species: colors and shapes evenly shared, the other traits as far apart as found.

    Each new species is the one of 64 random candidates whose nearest relative is farthest.
    """
    rng = _make_generator(_FLORA_SEED)
    sizes, weights = np.array(_TRAIT_SIZES), np.array(_TRAIT_WEIGHTS)
    colors, shapes = _TRAIT_SIZES.color, _TRAIT_SIZES.shape
    chosen = np.empty((0, len(sizes)), dtype=np.int64)
    for number in range(SPECIES_COUNT):
        candidates = np.floor(rng.random((64, len(sizes))) * sizes).astype(np.int64)
        color, accent, shape, arrangement, lip = (candidates[:, k] for k in (0, 1, 2, 6, 10))
        color[:] = number % colors
        accent[:] = (color + 1 + accent % (colors - 1)) % colors  # never the petal's own
        shape[:] = (number + number // colors) % shapes
        arrangement[rng.random(64) < _PLAIN_SHARE] = 0
        lip[rng.random(64) < _PLAIN_SHARE] = 0
        apart = ((candidates[:, None] != chosen[None]) * weights).sum(axis=2)
        nearest = apart.min(axis=1, initial=weights.sum())
        chosen = np.vstack([chosen, candidates[nearest.argmax()]])
    return tuple(Species(*row) for row in chosen.tolist())


def _name_species() -> tuple[str, ...]:
    names: list[str] = []
    for species in describe_species():
        tail = _SHAPE_STEMS[species.shape] + _PATTERN_ENDINGS[species.pattern]
        words = _COLOR_WORDS[species.color]
        names.append(next(f"{w} {tail}" for w in words if f"{w} {tail}" not in names))
    return tuple(names)


SPECIES_NAMES: tuple[str, ...] = _name_species()


def draw_flower(species: int, index: int, size: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """Draw image ``index`` of a species (0..101), (size, size, 3) uint8, the same everywhere.

    Another size, of at least 16, shows the same scene with other grain.
    """
    rng = _make_generator(seed, species, index)
    return draw_scene(describe_species()[species], size, rng)


def _encode_png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _draw_split(indices: range, image_size: int, seed: int, split_number: int) -> Dataset:
    rows = [(species, index) for species in range(SPECIES_COUNT) for index in indices]
    order = _make_generator(seed, SPECIES_COUNT, split_number).random(len(rows)).argsort()
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
    """Draw the data set: train, validation and test, 3:1:1 in every class, each shuffled.

    Columns ``image`` (PNG, ``image_size`` square, RGB) and ``label`` (0..101, SPECIES_NAMES).
    """
    held_out = round(images_per_class / 5)
    starts = np.cumsum([0, images_per_class - 2 * held_out, held_out, held_out]).tolist()
    return DatasetDict(
        {
            name: _draw_split(range(starts[n], starts[n + 1]), image_size, seed, n)
            for n, name in enumerate(SPLIT_NAMES)
        }
    )
