"""Drawings of no known class, to fit and test out-of-distribution (OOD) detection."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 96
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789?!&%"


def draw_ood_image(kind: str, number: int, seed: int = 0, size: int = SIZE) -> Image.Image:
    """Draw image ``number`` of a kind, one of ``KINDS``, ``size`` pixels square, in RGB.

    The same arguments draw the same image.
    """
    random = np.random.default_rng([seed, list(KINDS).index(kind), number])
    return KINDS[kind](random, size)


def draw_ood_images(count: int, seed: int = 0) -> dict[str, list[Image.Image]]:
    """Return ``count`` images of every kind, by kind, the same for the same seed."""
    return {kind: [draw_ood_image(kind, n, seed) for n in range(count)] for kind in KINDS}


def _to_image(pixels: np.ndarray) -> Image.Image:
    """Turn (S, S, 3) values between 0 and 1 into an image."""
    return Image.fromarray(np.round(255 * pixels.clip(0, 1)).astype(np.uint8))


def _draw_noise(random: np.random.Generator, size: int) -> Image.Image:
    return _to_image(random.uniform(size=(size, size, 3)))


def _draw_blotches(random: np.random.Generator, size: int) -> Image.Image:
    cells = int(random.integers(2, 9))
    small = _to_image(random.uniform(size=(cells, cells, 3)))
    return small.resize((size, size), Image.Resampling.BICUBIC)


def _draw_gradient(random: np.random.Generator, size: int) -> Image.Image:
    share = (_draw_ramp(random, size) + 1) / 2
    return _to_image(_mix(random, share))


def _draw_stripes(random: np.random.Generator, size: int) -> Image.Image:
    waves = np.sin(np.pi * random.uniform(2, 12) * _draw_ramp(random, size))
    return _to_image(_mix(random, (waves > 0) * 1.0 if random.integers(2) else (waves + 1) / 2))


def _draw_checkers(random: np.random.Generator, size: int) -> Image.Image:
    cell = int(random.integers(size // 16, size // 3))
    rows, columns = np.indices((size, size)) // cell
    return _to_image(_mix(random, (rows + columns) % 2 * 1.0))


def _draw_shapes(random: np.random.Generator, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), _draw_color(random))
    pen = ImageDraw.Draw(image)
    for _ in range(random.integers(3, 12)):
        (left, right), (top, bottom) = np.sort(random.integers(0, size, (2, 2)), axis=1).tolist()
        box = (left, top, right, bottom)
        if random.integers(3):
            pen.rectangle(box, fill=_draw_color(random))
        else:
            pen.line(box, fill=_draw_color(random), width=int(random.integers(1, size // 10)))
    return image


def _draw_text(random: np.random.Generator, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), _draw_color(random))
    pen = ImageDraw.Draw(image)
    height = int(random.integers(size // 8, size // 2))
    font = ImageFont.load_default(height)
    color = _draw_color(random)
    for top in range(0, size, height):
        line = "".join(random.choice(list(LETTERS), 24))
        pen.text((int(-random.integers(0, height)), top), line, fill=color, font=font)
    return image


def _draw_ramp(random: np.random.Generator, size: int) -> np.ndarray:
    """Return (S, S) values from -1 to 1 that grow in a random direction."""
    angle = random.uniform(0, 2 * np.pi)
    rows, columns = np.indices((size, size)) / (size - 1) * 2 - 1
    ramp: np.ndarray = (rows * np.sin(angle) + columns * np.cos(angle)) / np.sqrt(2)
    return ramp


def _mix(random: np.random.Generator, share: np.ndarray) -> np.ndarray:
    """Blend two random colors by a share (S, S)."""
    first, second = random.uniform(size=(2, 3))
    mixed: np.ndarray = share[..., None] * first + (1 - share[..., None]) * second
    return mixed


def _draw_color(random: np.random.Generator) -> tuple[int, ...]:
    return tuple(random.integers(0, 256, 3).tolist())


KINDS: dict[str, Callable[[np.random.Generator, int], Image.Image]] = {
    "noise": _draw_noise, "blotches": _draw_blotches, "gradient": _draw_gradient,
    "stripes": _draw_stripes, "checkers": _draw_checkers, "shapes": _draw_shapes,
    "text": _draw_text,
}  # fmt: skip
