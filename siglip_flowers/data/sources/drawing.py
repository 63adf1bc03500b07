"""Drawing of the invented species: an image adds pose, light, background and clutter to traits.

Images are made with additions, products, quotients and square roots only, whose results IEEE 754
fixes to the last bit, so that the pixels are the same on every machine.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from siglip_flowers.base.errors import InputError
from siglip_flowers.data.sources.species import (
    ARRANGEMENTS,
    CENTRE_COLORS,
    CENTRE_RADII,
    CENTRE_TEXTURES,
    HABITATS,
    PATTERNS,
    PETAL_COLORS,
    PETAL_COUNTS,
    SHAPES,
    SPECIES_COUNT,
    Species,
    describe_species,
    make_generator,
)

MINIMUM_SIZE = 16
SUPERSAMPLING = 2

# Changing these, or the order of random draws, changes every image and figure.
_PROFILE_STEPS = 512

Array = NDArray[np.floating]  # float32 throughout the drawing
Color = tuple[float, float, float]


class Pose(NamedTuple):
    """Where a flower is in the image (pixels) and how it is turned and tilted."""

    x: float
    y: float
    radius: float
    matrix: tuple[float, float, float, float]
    perspective: float


@cache
def _tabulate_profile(shape: str) -> Array:
    """Half-width of a petal at 0..1 of its length, in units of the widest sector it could fill."""
    t = np.arange(_PROFILE_STEPS, dtype=np.float64) / (_PROFILE_STEPS - 1)
    rounded = np.sqrt(np.maximum(1 - t, 0) * (0.15 + t))
    tip = np.maximum(t - 0.75, 0) / 0.25
    blunt = np.sqrt(1 - tip * tip)
    profiles = {
        "round": 1.7 * rounded,
        "lance": 3.1 * (0.06 + t) * (1 - t),
        "strap": 0.55 * blunt,
        "spoon": (0.12 + 0.95 * t * t) * blunt,
        "heart": 1.8 * np.sqrt(np.maximum(1 - t * t * t, 0)) * (0.1 + t) / 1.4,
        "ruffle": 1.6 * np.sqrt(1 - t * t * t) * (0.35 + t),
        "wedge": 1.15 * (1 - t),
        "thread": 0.22 + 0 * t,
        "fringe": (0.15 + 0.9 * t) + 0 * t,
    }
    return profiles[shape].astype(np.float32)


def _measure_angle(x: Array, y: Array) -> Array:
    """Angle of (x, y) in turns, -0.5..0.5, within 2e-5; the library's atan2 differs by machine."""
    ax, ay = np.abs(x), np.abs(y)
    a = np.minimum(ax, ay) / np.maximum(np.maximum(ax, ay), np.float32(1e-6))
    s = a * a
    turn = a * (0.159155 + s * (-0.052855 + s * (0.030656 + s * (-0.018562 + s * 0.006605))))
    turn = np.where(ay > ax, np.float32(0.25) - turn, turn)
    turn = np.where(x < 0, np.float32(0.5) - turn, turn)
    return np.where(y < 0, -turn, turn).astype(np.float32)


def _blend(rgb: Array, color: Array, weight: Array) -> None:
    """Moves ``rgb`` (3, h, w) towards ``color`` (3, 1, 1) or (3, h, w) by ``weight`` (h, w)."""
    rgb += (color - rgb) * weight


def _fraction(values: Array) -> Array:
    return values - np.floor(values)


def _triangle(values: Array) -> Array:
    """A wave of period 1 between 0 (at whole numbers) and 1 (half-way)."""
    return 1 - 2 * np.abs(_fraction(values) - np.float32(0.5))


def _shape_tip(shape: str, u: Array) -> Array | float:
    """Length of a petal along its cross-section ``u`` (-0.5..0.5), relative to the full length."""
    if shape == "heart":
        return 1 - 0.30 * np.maximum(1 - 5 * np.abs(u), 0)
    if shape == "ruffle":
        return 1 - 0.16 * _triangle(u * 4)
    if shape == "fringe":
        return 1 - 0.30 * _triangle(u * 5 + np.float32(0.5))
    return 1.0


def _mark_pattern(pattern: str, t: Array, across: Array, u: Array) -> Array:
    """Weight 0..1 of the accent color at ``t`` along and ``across`` (0 midrib, 1 edge) a petal."""
    if pattern == "gradient":
        return np.clip(1.5 * t - 0.35, 0, 1)
    if pattern == "eye":
        return (t < 0.52).astype(np.float32)
    if pattern == "picotee":
        return ((t > 0.80) | (across > 0.78)).astype(np.float32)
    if pattern == "midrib":
        return (across < 0.34).astype(np.float32)
    if pattern == "bands":
        return (_fraction(t * 3 + np.float32(0.1)) < 0.5).astype(np.float32)
    if pattern == "speckle":
        du, dt = _fraction(u * 3) - np.float32(0.5), _fraction(t * 4) - np.float32(0.5)
        return (du * du + dt * dt < 0.09).astype(np.float32)
    return np.zeros_like(t)


def _tint(color: Color, rng: np.random.Generator, spread: float) -> Array:
    shifted = np.array(color) + spread * (rng.random(3) - 0.5)
    return np.clip(shifted, 0, 1).astype(np.float32).reshape(3, 1, 1)


def _paint_petals(
    rgb: Array, alpha: Array, r: Array, turn: Array, species: Species, rng: np.random.Generator
) -> None:
    petals, shape = PETAL_COUNTS[species.petals], SHAPES[species.shape]
    color = _tint(PETAL_COLORS[species.color][1], rng, 0.16)
    accent = _tint(PETAL_COLORS[species.accent][1], rng, 0.16)
    for layer in range(species.layers + 1):
        reach = 1.0 - 0.30 * layer
        lengths = reach * (0.88 + 0.12 * rng.random(petals))
        if species.lip == 1:  # one petal stands out, as an orchid's lip does
            lengths[1:] *= 0.72
        v = turn * petals + np.float32(0.5 * (layer % 2) + petals)
        cell = np.floor(v)
        u = v - cell - np.float32(0.5)
        length = lengths.astype(np.float32)[cell.astype(np.intp) % petals]
        t = r / (length * _shape_tip(shape, u))
        step = np.minimum(t * (_PROFILE_STEPS - 1), _PROFILE_STEPS - 1).astype(np.intp)
        widest = np.float32(reach * min(math.pi / petals, 0.8))
        half_width = _tabulate_profile(shape)[step] * widest + np.float32(1e-4)
        across = np.abs(u) * r * np.float32(2 * math.pi / petals) / half_width
        inside = ((across < 1) & (t < 1)).astype(np.float32)
        mark = _mark_pattern(PATTERNS[species.pattern], t, across, u)
        shade = (1 - 0.30 * across * across) * (0.70 + 0.30 * np.minimum(1.6 * t, 1))
        shade *= np.where(np.abs(u) > 0.46, np.float32(0.72), np.float32(1 - 0.08 * layer))
        _blend(rgb, (color + (accent - color) * mark) * shade, inside)
        np.maximum(alpha, inside, out=alpha)


def _paint_center(
    rgb: Array, alpha: Array, r: Array, turn: Array, species: Species, rng: np.random.Generator
) -> None:
    radius = CENTRE_RADII[species.center_radius]
    texture = CENTRE_TEXTURES[species.center_texture]
    color = _tint(CENTRE_COLORS[species.center_color], rng, 0.08)
    t = r * np.float32(1 / radius)
    inside = (t < 1).astype(np.float32)
    shade = 1.05 - 0.35 * t * t
    if texture == "dots":
        rings = t * 4
        along, around = _fraction(rings), _fraction(turn * 12 + 0.5 * np.floor(rings))
        along, around = along - np.float32(0.5), around - np.float32(0.5)
        shade = np.where(along * along + around * around < 0.10, shade * np.float32(0.45), shade)
    elif texture == "ring":
        shade = np.where(t > 0.6, shade * np.float32(0.5), shade)
    elif texture == "stamens":
        spoke = np.abs(_fraction(turn * 9) - np.float32(0.5)) * r * np.float32(2 * math.pi / 9)
        reach = radius + 0.16
        thread = (spoke < 0.022) & (r < reach) | (spoke < 0.05) & (np.abs(r - reach) < 0.05)
        inside = np.maximum(inside, thread.astype(np.float32))
        shade = np.maximum(shade, np.float32(0.6))
    _blend(rgb, color * shade, inside)
    np.maximum(alpha, inside, out=alpha)


def _paint_flower(canvas: Array, species: Species, pose: Pose, rng: np.random.Generator) -> None:
    """Draws one flower head into ``canvas`` (3, h, w), supersampled within its bounding box."""
    size = canvas.shape[1]
    left, right = (max(0, min(size, int(pose.x + d * pose.radius))) for d in (-1.25, 1.25))
    top, bottom = (max(0, min(size, int(pose.y + d * pose.radius))) for d in (-1.25, 1.25))
    if left >= right or top >= bottom:
        return
    n = SUPERSAMPLING
    xs = (np.arange(left * n, right * n) + 0.5) / n - pose.x
    ys = (np.arange(top * n, bottom * n) + 0.5) / n - pose.y
    xs32 = (xs / pose.radius).astype(np.float32)[None, :]
    ys32 = (ys / pose.radius).astype(np.float32)[:, None]
    a, b, c, d = (np.float32(value) for value in pose.matrix)
    depth = 1 + np.float32(pose.perspective) * (c * xs32 + d * ys32)
    x, y = (a * xs32 + b * ys32) / depth, (c * xs32 + d * ys32) / depth
    r, turn = np.sqrt(x * x + y * y), _measure_angle(x, y)
    rgb = np.zeros((3, *r.shape), dtype=np.float32)
    alpha = np.zeros_like(r)
    _paint_petals(rgb, alpha, r, turn, species, rng)
    _paint_center(rgb, alpha, r, turn, species, rng)
    rgb, alpha = _halve(rgb), _halve(alpha[None])
    region = canvas[:, top:bottom, left:right]
    region *= 1 - alpha
    region += rgb


def _halve(values: Array) -> Array:
    """Mean over 2x2 blocks of the last two axes, in a fixed order of additions."""
    rows = values[:, 0::2] + values[:, 1::2]
    return (rows[:, :, 0::2] + rows[:, :, 1::2]) * np.float32(0.25)


def _draw_pose(rng: np.random.Generator, x: float, y: float, radius: float, tilt: float) -> Pose:
    """A pose with free rotation, foreshortened by up to ``tilt`` (0..1) along a free direction."""
    turn, direction, squash = rng.random(3)
    # Rounding hides the last bits of the machine's sine and cosine.
    cos, sin = _round_unit_vector(turn)
    ux, uy = _round_unit_vector(direction)
    stretch = 1 / (1 - tilt * squash) - 1
    sxx, sxy, syy = 1 + stretch * ux * ux, stretch * ux * uy, 1 + stretch * uy * uy
    matrix = (
        cos * sxx - sin * sxy,
        cos * sxy - sin * syy,
        sin * sxx + cos * sxy,
        sin * sxy + cos * syy,
    )
    return Pose(x, y, radius, matrix, 0.25 * (rng.random() - 0.5))


def _round_unit_vector(turn: float) -> tuple[float, float]:
    angle = 2 * math.pi * turn
    return round(math.cos(angle), 9), round(math.sin(angle), 9)


def _arrange_flowers(species: Species, size: int, rng: np.random.Generator) -> list[Pose]:
    """Poses of the flower heads of one plant, far to near."""
    arrangement = ARRANGEMENTS[species.arrangement]
    x, y = (0.5 + 0.34 * (rng.random(2) - 0.5)) * size
    scale = (0.70 + 0.45 * rng.random()) * size
    if arrangement == "solitary":
        return [_draw_pose(rng, x, y, 0.40 * scale, 0.35)]
    axis_x, axis_y = _round_unit_vector(rng.random())
    poses = []
    if arrangement == "cluster":
        count = 5 + int(3 * rng.random())
        for k in range(count):
            dx, dy = _round_unit_vector((k + 0.6 * rng.random()) / count)
            away = (0.26 + 0.06 * rng.random()) * scale if k else 0.0
            poses.append(_draw_pose(rng, x + away * dx, y + away * dy, 0.20 * scale, 0.30))
        return poses[1:] + poses[:1]
    for k in range(5):  # a spike: heads along a stem, smaller towards its top
        along = (k - 2) * 0.18 * scale
        radius = (0.22 - 0.025 * k) * scale
        poses.append(_draw_pose(rng, x + along * axis_x, y + along * axis_y, radius, 0.30))
    return poses


def _spread_noise(rng: np.random.Generator, cells: int, size: int) -> Array:
    """Smooth noise (size, size) in 0..1: a random grid of cells, interpolated linearly."""
    grid = rng.random((cells + 1, cells + 1), dtype=np.float32)
    places = (np.arange(size) + 0.5) * (cells / size)
    low = places.astype(np.intp)
    part = (places - low).astype(np.float32)
    rows = grid[low] + (grid[low + 1] - grid[low]) * part[:, None]
    return rows[:, low] + (rows[:, low + 1] - rows[:, low]) * part[None, :]


def _paint_background(species: Species, size: int, rng: np.random.Generator) -> Array:
    """A habitat (the species' own in 3 of 10 images) with leaves, blades and blossom."""
    habitat = species.habitat
    if rng.random() < 0.7:
        habitat = int(len(HABITATS) * rng.random())
    dark, light = (_tint(color, rng, 0.35) for color in HABITATS[habitat])
    noise = 0.6 * _spread_noise(rng, 4, size) + 0.4 * _spread_noise(rng, 12, size)
    canvas = dark + (light - dark) * noise
    for _ in range(3 + int(6 * rng.random())):
        _paint_ellipse(canvas, rng, blossom=bool(rng.random() < 0.5))
    return canvas


def _paint_ellipse(canvas: Array, rng: np.random.Generator, blossom: bool) -> None:
    """One piece of clutter: a green leaf or blade, or a soft spot of any petal color."""
    size = canvas.shape[1]
    places = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    cx, cy, length, slimness, kind = (float(value) for value in rng.random(5))
    cos, sin = _round_unit_vector(rng.random())
    half_length = 0.08 + 0.20 * length if blossom else 0.15 + 0.35 * length
    half_width = half_length * (0.6 + 0.4 * slimness if blossom else 0.10 + 0.25 * slimness)
    xs, ys = places[None, :] - np.float32(cx), places[:, None] - np.float32(cy)
    along = (np.float32(cos) * xs + np.float32(sin) * ys) / np.float32(half_length)
    off = (np.float32(cos) * ys - np.float32(sin) * xs) / np.float32(half_width)
    d = along * along + off * off
    if blossom:
        color = _tint(PETAL_COLORS[int(10 * kind)][1], rng, 0.2)
        _blend(canvas, color, 0.75 * np.clip(1.6 - 1.6 * d, 0, 1))
    else:
        color = _tint((0.12 + 0.25 * kind, 0.36 + 0.25 * kind, 0.12), rng, 0.1)
        _blend(canvas, color * (1 - 0.3 * np.minimum(np.abs(off), 1)), np.clip(5 - 5 * d, 0, 1))


def _light_scene(canvas: Array, rng: np.random.Generator) -> Array:
    """Brightness, tint, a slanting gradient of light, contrast and sensor noise."""
    size = canvas.shape[1]
    gain = 0.55 + 0.70 * rng.random()
    tint = (gain * (0.84 + 0.32 * rng.random(3))).astype(np.float32).reshape(3, 1, 1)
    slope_x, slope_y = (0.8 * (rng.random(2) - 0.5)).astype(np.float32)
    places = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size) - np.float32(
        0.5
    )
    light = 1 + slope_x * places[None, :] + slope_y * places[:, None]
    lift = np.float32(0.16 * rng.random())
    grain = rng.random(canvas.shape, dtype=np.float32) - np.float32(0.5)
    return canvas * tint * light * (1 - lift) + lift + np.float32(0.16 * rng.random()) * grain


def draw_flower(species: int, index: int, size: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """Draws image ``index`` of a species, the same pixels on every machine.

    Returns a uint8 array (size, size, 3). Another size shows the same scene, with other grain.

    Raises InputError for a species outside 0..101, a negative index or seed, or a size below 16.
    """
    if not 0 <= species < SPECIES_COUNT:
        raise InputError(f"Species {species} does not exist; choose 0 to {SPECIES_COUNT - 1}.")
    if index < 0 or seed < 0:
        raise InputError(f"Image index {index} and seed {seed} must be 0 or greater.")
    if size < MINIMUM_SIZE:
        raise InputError(f"Image size {size} is too small; it must be at least {MINIMUM_SIZE}.")
    rng = make_generator(seed, species, index)
    traits = describe_species()[species]
    canvas = _paint_background(traits, size, rng)
    for pose in _arrange_flowers(traits, size, rng):
        _paint_flower(canvas, traits, pose, rng)
    if rng.random() < 0.3:
        _paint_ellipse(canvas, rng, blossom=False)
    canvas = _light_scene(canvas, rng)
    pixels = np.clip(canvas * 255 + np.float32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))
