"""The traits and names of 102 invented species of flower."""

from functools import cache
from typing import NamedTuple

import numpy as np

SPECIES_COUNT = 102

# Changing any table below, or the order of random draws, changes every image and figure.
_FLORA_SEED = 20240102

PETAL_COLORS = (
    (("scarlet", "ruby", "cinnabar"), (0.88, 0.10, 0.12)),
    (("amber", "copper", "tawny"), (0.97, 0.52, 0.08)),
    (("golden", "saffron", "honey"), (0.98, 0.86, 0.12)),
    (("blush", "coral", "rosy"), (0.98, 0.62, 0.70)),
    (("fuchsia", "magenta", "damask"), (0.85, 0.12, 0.62)),
    (("violet", "amethyst", "plum"), (0.48, 0.20, 0.74)),
    (("azure", "cobalt", "sapphire"), (0.22, 0.34, 0.92)),
    (("snowy", "pearl", "ivory"), (0.96, 0.96, 0.94)),
    (("lilac", "hazy", "misty"), (0.74, 0.68, 0.96)),
    (("garnet", "dusky", "claret"), (0.48, 0.05, 0.18)),
)
CENTRE_COLORS = (
    (0.96, 0.82, 0.10),
    (0.36, 0.19, 0.07),
    (0.56, 0.74, 0.22),
    (0.97, 0.96, 0.88),
    (0.17, 0.07, 0.22),
    (0.90, 0.36, 0.06),
)
SHAPES = ("round", "lance", "strap", "spoon", "heart", "ruffle", "wedge", "thread", "fringe")
_SHAPE_STEMS = ("moon", "star", "ribbon", "ladle", "heart", "frill", "crown", "spark", "feather")
PETAL_COUNTS = (3, 4, 5, 6, 8, 11, 16)
PATTERNS = ("plain", "gradient", "eye", "picotee", "midrib", "bands", "speckle")
_PATTERN_ENDINGS = ("wort", "bloom", "eye", "hem", "blade", "wheel", "freckle")
ARRANGEMENTS = ("solitary", "cluster", "spike")
CENTRE_RADII = (0.10, 0.18, 0.28, 0.40)
CENTRE_TEXTURES = ("dome", "dots", "ring", "stamens")
HABITATS = (
    ((0.08, 0.26, 0.06), (0.36, 0.58, 0.20)),  # foliage
    ((0.22, 0.14, 0.08), (0.52, 0.40, 0.26)),  # soil
    ((0.38, 0.58, 0.86), (0.84, 0.90, 0.96)),  # sky
    ((0.30, 0.32, 0.32), (0.66, 0.66, 0.62)),  # stone
    ((0.02, 0.04, 0.03), (0.14, 0.20, 0.12)),  # shade
    ((0.48, 0.50, 0.16), (0.78, 0.74, 0.40)),  # dry meadow
)


class Species(NamedTuple):
    """The traits of one species, each an index into its table above."""

    color: int
    accent: int
    shape: int
    petals: int
    layers: int
    pattern: int
    arrangement: int
    center_radius: int
    center_color: int
    center_texture: int
    lip: int
    habitat: int


# How many values each trait has, and how much a differing value sets two species apart.
_TRAIT_SIZES = Species(10, 10, 9, 7, 3, 7, 3, 4, 6, 4, 2, 6)
_TRAIT_WEIGHTS = Species(4, 2, 4, 2, 1, 3, 1, 2, 3, 1, 1, 0)
_PLAIN_SHARE = 0.5  # of the candidates are made solitary, and as many lipless


def make_generator(*key: int) -> np.random.Generator:
    """Return the same stream of numbers for the same key, on every machine."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


@cache
def describe_species() -> tuple[Species, ...]:
    """The 102 species: colors and shapes evenly shared, the other traits as far apart as found.

    Each new species is the one of 64 random candidates whose nearest relative is farthest.
    """
    rng = make_generator(_FLORA_SEED)
    sizes, weights = np.array(_TRAIT_SIZES), np.array(_TRAIT_WEIGHTS)
    colors = len(PETAL_COLORS)
    chosen = np.empty((0, len(sizes)), dtype=np.int64)
    for number in range(SPECIES_COUNT):
        candidates = np.floor(rng.random((64, len(sizes))) * sizes).astype(np.int64)
        color, accent, shape, arrangement, lip = (candidates[:, k] for k in (0, 1, 2, 6, 10))
        color[:] = number % colors
        accent[:] = (color + 1 + accent % (colors - 1)) % colors  # never the petal's own
        shape[:] = (number + number // colors) % len(SHAPES)
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
        words = PETAL_COLORS[species.color][0]
        names.append(next(f"{w} {tail}" for w in words if f"{w} {tail}" not in names))
    return tuple(names)


SPECIES_NAMES: tuple[str, ...] = _name_species()
