"""Drawing of the invented species: an image adds pose, light, background and clutter to traits.

Images are made with additions, products, quotients and square roots only, whose results IEEE 754
fixes to the last bit, so that the pixels are the same on every machine. Changing a table below, or
the order of random draws, changes every image and figure.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]  # float32 throughout the drawing
Color = tuple[float, float, float]

SUPERSAMPLING = 2
_PROFILE_STEPS = 512
_HALF = np.float32(0.5)
PETAL_COLORS: tuple[Color, ...] = (
    (0.88, 0.10, 0.12), (0.97, 0.52, 0.08), (0.98, 0.86, 0.12), (0.98, 0.62, 0.70),
    (0.85, 0.12, 0.62), (0.48, 0.20, 0.74), (0.22, 0.34, 0.92), (0.96, 0.96, 0.94),
    (0.74, 0.68, 0.96), (0.48, 0.05, 0.18),
)  # fmt: skip
CENTER_COLORS: tuple[Color, ...] = (
    (0.96, 0.82, 0.10), (0.36, 0.19, 0.07), (0.56, 0.74, 0.22), (0.97, 0.96, 0.88),
    (0.17, 0.07, 0.22), (0.90, 0.36, 0.06),
)  # fmt: skip
HABITATS: tuple[tuple[Color, Color], ...] = (
    ((0.08, 0.26, 0.06), (0.36, 0.58, 0.20)),  # foliage
    ((0.22, 0.14, 0.08), (0.52, 0.40, 0.26)),  # soil
    ((0.38, 0.58, 0.86), (0.84, 0.90, 0.96)),  # sky
    ((0.30, 0.32, 0.32), (0.66, 0.66, 0.62)),  # stone
    ((0.02, 0.04, 0.03), (0.14, 0.20, 0.12)),  # shade
    ((0.48, 0.50, 0.16), (0.78, 0.74, 0.40)),  # dry meadow
)
PETAL_COUNTS = (3, 4, 5, 6, 8, 11, 16)
ARRANGEMENTS = ("solitary", "cluster", "spike")
CENTER_RADII = (0.10, 0.18, 0.28, 0.40)
CENTER_TEXTURES = ("dome", "dots", "ring", "stamens")


class Species(NamedTuple):
    """The traits of one species, each an index into its table."""

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


class Pose(NamedTuple):
    """Where a flower is in the image (pixels) and how it is turned and tilted."""

    x: float
    y: float
    radius: float
    matrix: tuple[float, float, float, float]
    perspective: float


def _fraction(values: Array) -> Array:
    return values - np.floor(values)


def _triangle(values: Array) -> Array:
    """A wave of period 1 between 0 (at whole numbers) and 1 (half-way)."""
    return 1 - 2 * np.abs(_fraction(values) - _HALF)


def _blunt(t: Array) -> Array:
    tip = np.maximum(t - 0.75, 0) / 0.25
    return np.sqrt(1 - tip * tip)


# Half-width of a petal at 0..1 of its length, in units of the widest sector it could fill.
SHAPES: dict[str, Callable[[Array], Array]] = {
    "round": lambda t: 1.7 * np.sqrt(np.maximum(1 - t, 0) * (0.15 + t)),
    "lance": lambda t: 3.1 * (0.06 + t) * (1 - t),
    "strap": lambda t: 0.55 * _blunt(t),
    "spoon": lambda t: (0.12 + 0.95 * t * t) * _blunt(t),
    "heart": lambda t: 1.8 * np.sqrt(np.maximum(1 - t * t * t, 0)) * (0.1 + t) / 1.4,
    "ruffle": lambda t: 1.6 * np.sqrt(1 - t * t * t) * (0.35 + t),
    "wedge": lambda t: 1.15 * (1 - t),
    "thread": lambda t: 0.22 + 0 * t,
    "fringe": lambda t: 0.15 + 0.9 * t,
}
# Length of a petal along its cross-section -0.5..0.5, relative to the full length.
TIPS: dict[str, Callable[[Array], Array]] = {
    "heart": lambda u: 1 - 0.30 * np.maximum(1 - 5 * np.abs(u), 0),
    "ruffle": lambda u: 1 - 0.16 * _triangle(u * 4),
    "fringe": lambda u: 1 - 0.30 * _triangle(u * 5 + _HALF),
}
# Weight 0..1 of the accent color at ``t`` along and ``across`` (0 midrib, 1 edge) a petal, of
# which ``u`` is the cross-section.
PATTERNS: dict[str, Callable[[Array, Array, Array], NDArray]] = {
    "plain": lambda t, across, u: np.zeros_like(t),
    "gradient": lambda t, across, u: np.clip(1.5 * t - 0.35, 0, 1),
    "eye": lambda t, across, u: t < 0.52,
    "picotee": lambda t, across, u: (t > 0.80) | (across > 0.78),
    "midrib": lambda t, across, u: across < 0.34,
    "bands": lambda t, across, u: _fraction(t * 3 + np.float32(0.1)) < 0.5,
    "speckle": lambda t, across, u: (
        (_fraction(u * 3) - _HALF) ** 2 + (_fraction(t * 4) - _HALF) ** 2 < 0.09
    ),
}


@cache
def _tabulate_profile(shape: int) -> Array:
    t = np.arange(_PROFILE_STEPS, dtype=np.float64) / (_PROFILE_STEPS - 1)
    return list(SHAPES.values())[shape](t).astype(np.float32)


def _measure_angle(x: Array, y: Array) -> Array:
    """Angle of (x, y) in turns, -0.5..0.5, within 2e-5; the library's atan2 differs by machine."""
    ax, ay = np.abs(x), np.abs(y)
    a = np.minimum(ax, ay) / np.maximum(np.maximum(ax, ay), np.float32(1e-6))
    s = a * a
    turn = a * (0.159155 + s * (-0.052855 + s * (0.030656 + s * (-0.018562 + s * 0.006605))))
    turn = np.where(ay > ax, np.float32(0.25) - turn, turn)
    turn = np.where(x < 0, _HALF - turn, turn)
    return np.where(y < 0, -turn, turn).astype(np.float32)


def _round_unit_vector(turn: float) -> tuple[float, float]:
    """Cosine and sine, rounded to hide the last bits, which differ by machine."""
    angle = 2 * math.pi * turn
    return round(math.cos(angle), 9), round(math.sin(angle), 9)


def _list_places(size: int) -> Array:
    """The centers of the pixels of a row, in 0..1."""
    return (np.arange(size, dtype=np.float32) + _HALF) / np.float32(size)


def _blend(rgb: Array, color: Array, weight: Array) -> None:
    """Move ``rgb`` (3, h, w) towards ``color`` (3, 1, 1) or (3, h, w) by ``weight`` (h, w)."""
    rgb += (color - rgb) * weight


def _tint(color: Color, rng: np.random.Generator, spread: float) -> Array:
    shifted = np.array(color) + spread * (rng.random(3) - 0.5)
    return np.clip(shifted, 0, 1).astype(np.float32).reshape(3, 1, 1)


def _paint_petals(
    rgb: Array, alpha: Array, r: Array, turn: Array, species: Species, rng: np.random.Generator
) -> None:
    petals = PETAL_COUNTS[species.petals]
    shape, pattern = list(SHAPES)[species.shape], list(PATTERNS)[species.pattern]
    color = _tint(PETAL_COLORS[species.color], rng, 0.16)
    accent = _tint(PETAL_COLORS[species.accent], rng, 0.16)
    for layer in range(species.layers + 1):
        reach = 1.0 - 0.30 * layer
        lengths = reach * (0.88 + 0.12 * rng.random(petals))
        if species.lip == 1:  # one petal is longer, as an orchid's lip is
            lengths[1:] *= 0.72
        v = turn * petals + np.float32(0.5 * (layer % 2) + petals)
        cell = np.floor(v)
        u = v - cell - _HALF
        length = lengths.astype(np.float32)[cell.astype(np.intp) % petals]
        t = r / (length * (TIPS[shape](u) if shape in TIPS else 1.0))
        step = np.minimum(t * (_PROFILE_STEPS - 1), _PROFILE_STEPS - 1).astype(np.intp)
        widest = np.float32(reach * min(math.pi / petals, 0.8))
        half_width = _tabulate_profile(species.shape)[step] * widest + np.float32(1e-4)
        across = np.abs(u) * r * np.float32(2 * math.pi / petals) / half_width
        inside = ((across < 1) & (t < 1)).astype(np.float32)
        mark = PATTERNS[pattern](t, across, u).astype(np.float32)
        shade = (1 - 0.30 * across * across) * (0.70 + 0.30 * np.minimum(1.6 * t, 1))
        shade *= np.where(np.abs(u) > 0.46, np.float32(0.72), np.float32(1 - 0.08 * layer))
        _blend(rgb, (color + (accent - color) * mark) * shade, inside)
        np.maximum(alpha, inside, out=alpha)


def _paint_center(
    rgb: Array, alpha: Array, r: Array, turn: Array, species: Species, rng: np.random.Generator
) -> None:
    radius = CENTER_RADII[species.center_radius]
    texture = CENTER_TEXTURES[species.center_texture]
    color = _tint(CENTER_COLORS[species.center_color], rng, 0.08)
    t = r * np.float32(1 / radius)
    inside = (t < 1).astype(np.float32)
    shade = 1.05 - 0.35 * t * t
    if texture == "dots":
        rings = t * 4
        along, around = _fraction(rings), _fraction(turn * 12 + 0.5 * np.floor(rings))
        along, around = along - _HALF, around - _HALF
        shade = np.where(along * along + around * around < 0.10, shade * np.float32(0.45), shade)
    elif texture == "ring":
        shade = np.where(t > 0.6, shade * _HALF, shade)
    elif texture == "stamens":
        spoke = np.abs(_fraction(turn * 9) - _HALF) * r * np.float32(2 * math.pi / 9)
        reach = radius + 0.16
        thread = (spoke < 0.022) & (r < reach) | (spoke < 0.05) & (np.abs(r - reach) < 0.05)
        inside = np.maximum(inside, thread.astype(np.float32))
        shade = np.maximum(shade, np.float32(0.6))
    _blend(rgb, color * shade, inside)
    np.maximum(alpha, inside, out=alpha)


def _halve(values: Array) -> Array:
    """Mean over 2x2 blocks of the last two axes, in a fixed order of additions."""
    rows = values[:, 0::2] + values[:, 1::2]
    return (rows[:, :, 0::2] + rows[:, :, 1::2]) * np.float32(0.25)


def _paint_flower(canvas: Array, species: Species, pose: Pose, rng: np.random.Generator) -> None:
    """Draw one flower head into ``canvas`` (3, h, w), supersampled within its bounding box."""
    size, n = canvas.shape[1], SUPERSAMPLING
    left, right = (max(0, min(size, int(pose.x + d * pose.radius))) for d in (-1.25, 1.25))
    top, bottom = (max(0, min(size, int(pose.y + d * pose.radius))) for d in (-1.25, 1.25))
    if left >= right or top >= bottom:
        return
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
    region = canvas[:, top:bottom, left:right]
    region *= 1 - _halve(alpha[None])
    region += _halve(rgb)


def _draw_pose(rng: np.random.Generator, x: float, y: float, radius: float, tilt: float) -> Pose:
    """A pose with free rotation, foreshortened by up to ``tilt`` (0..1) along a free direction."""
    turn, direction, squash = rng.random(3)
    cos, sin = _round_unit_vector(turn)
    ux, uy = _round_unit_vector(direction)
    stretch = 1 / (1 - tilt * squash) - 1
    sxx, sxy, syy = 1 + stretch * ux * ux, stretch * ux * uy, 1 + stretch * uy * uy
    matrix = (
        *(cos * sxx - sin * sxy, cos * sxy - sin * syy),
        *(sin * sxx + cos * sxy, sin * sxy + cos * syy),
    )
    return Pose(x, y, radius, matrix, 0.25 * (rng.random() - 0.5))


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
    places = _list_places(canvas.shape[1])
    cx, cy, length, slimness, kind = (float(value) for value in rng.random(5))
    cos, sin = _round_unit_vector(rng.random())
    half_length = 0.08 + 0.20 * length if blossom else 0.15 + 0.35 * length
    half_width = half_length * (0.6 + 0.4 * slimness if blossom else 0.10 + 0.25 * slimness)
    xs, ys = places[None, :] - np.float32(cx), places[:, None] - np.float32(cy)
    along = (np.float32(cos) * xs + np.float32(sin) * ys) / np.float32(half_length)
    off = (np.float32(cos) * ys - np.float32(sin) * xs) / np.float32(half_width)
    d = along * along + off * off
    if blossom:
        color = _tint(PETAL_COLORS[int(10 * kind)], rng, 0.2)
        _blend(canvas, color, 0.75 * np.clip(1.6 - 1.6 * d, 0, 1))
    else:
        color = _tint((0.12 + 0.25 * kind, 0.36 + 0.25 * kind, 0.12), rng, 0.1)
        _blend(canvas, color * (1 - 0.3 * np.minimum(np.abs(off), 1)), np.clip(5 - 5 * d, 0, 1))


def _light_scene(canvas: Array, rng: np.random.Generator) -> Array:
    """Brightness, tint, a slanting gradient of light, contrast and sensor noise."""
    gain = 0.55 + 0.70 * rng.random()
    tint = (gain * (0.84 + 0.32 * rng.random(3))).astype(np.float32).reshape(3, 1, 1)
    slope_x, slope_y = (0.8 * (rng.random(2) - 0.5)).astype(np.float32)
    places = _list_places(canvas.shape[1]) - _HALF
    light = 1 + slope_x * places[None, :] + slope_y * places[:, None]
    lift = np.float32(0.16 * rng.random())
    grain = rng.random(canvas.shape, dtype=np.float32) - _HALF
    return canvas * tint * light * (1 - lift) + lift + np.float32(0.16 * rng.random()) * grain


def draw_scene(species: Species, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one image of a species, (size, size, 3) uint8, the same pixels on every machine."""
    canvas = _paint_background(species, size, rng)
    for pose in _arrange_flowers(species, size, rng):
        _paint_flower(canvas, species, pose, rng)
    if rng.random() < 0.3:
        _paint_ellipse(canvas, rng, blossom=False)
    canvas = _light_scene(canvas, rng)
    pixels = np.clip(canvas * 255 + _HALF, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))
