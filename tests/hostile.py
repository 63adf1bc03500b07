"""Files that are almost right, and what a reader must make of any bytes.

The contract: a value that is right, or one sentence about the file (:class:`InputError` or
:class:`RunError`); no other exception, no wait, and nothing written where it does not belong.
"""

import io
import json
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.data.pixels import decoding
from siglip_flowers.data.pixels.tensors import PixelForm, PixelNormalizer, read_form
from siglip_flowers.inference.reading import ImageReader
from siglip_flowers.model.loading import load_classifier, load_image_processor

# By the clock: a machine that is busy gives a process a tenth of its time.
SECONDS = 200
# Numbers that headers are known to choke on.
EDGES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\nshowpage\n%%EOF\n"
PDF = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer << /Root 1 0 R >>\n%%EOF\n"
DOCUMENTS = (SVG, EPS, PDF)
_IMAGES = ImageReader(PixelForm(8, 2), num_workers=1)


class Hang(BaseException):
    """A reader took too long; not an ``Exception``, which a reader might take for bad data."""


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise :class:`Hang` in the block once it has taken too long."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mutate(content: bytes, edits: Sequence[tuple[str, float, int, bytes]]) -> bytes:
    """Apply edits (kind, place as a share of the length, number, bytes) one after the other."""
    changed = bytearray(content)
    for kind, share, number, piece in edits:
        place = int(share * len(changed))
        if kind == "write":
            changed[place : place + len(piece)] = piece
        elif kind == "insert":
            changed[place:place] = piece
        elif kind == "cut":
            del changed[place : place + number % 64]
        elif kind == "end":
            del changed[place:]
        elif kind == "edge":
            value = EDGES[number % len(EDGES)]
            changed[place : place + 4] = value.to_bytes(4, "little" if number % 2 else "big")
    return bytes(changed)


def damage(samples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return a strategy of damaged samples, in half of them near the start, where headers are."""
    place = st.floats(0, 0.05) | st.floats(0, 1)
    kind = st.sampled_from(["write", "insert", "cut", "end", "edge"])
    edit = st.tuples(kind, place, st.integers(0, 1 << 16), st.binary(max_size=8))
    edits = st.lists(edit, min_size=1, max_size=6)
    return st.builds(mutate, st.sampled_from(samples), edits) | st.binary(max_size=300)


def damage_json(whole: dict) -> st.SearchStrategy[bytes]:
    """Return a strategy of a JSON file with other values under its keys, or damaged."""
    plain = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text()
    values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
    changes = st.dictionaries(st.sampled_from(sorted(whole)), values, min_size=1, max_size=2)
    changed = changes.map(lambda found: json.dumps({**whole, **found}).encode())
    return changed | damage([json.dumps(whole).encode()])


def make_images() -> list[bytes]:
    """Return small images in the usual formats and modes."""
    noise = np.random.default_rng(1).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    rgb = Image.fromarray(noise)
    palette, exif = rgb.convert("P"), Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) << 8)
    saved: list[tuple[Image.Image, str, dict[str, object]]] = [
        (rgb, "JPEG", {"exif": exif, "icc_profile": b"garbage" * 20}),
        (rgb.convert("CMYK"), "JPEG", {"progressive": True}),
        (palette, "PNG", {"transparency": 3}),
        (rgb.convert("RGBA"), "PNG", {"exif": exif}),
        (deep, "PNG", {}),
        (palette, "GIF", {"save_all": True, "append_images": [palette.rotate(180)]}),
        (rgb, "WEBP", {"exif": exif, "quality": 50}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgb.convert("F"), "TIFF", {}),
        *((rgb, form, {}) for form in ("BMP", "JPEG2000", "PPM", "DDS", "TGA")),
    ]
    samples = []
    for image, form, options in saved:
        stream = io.BytesIO()
        image.save(stream, format=form, **options)
        samples.append(stream.getvalue())
    return samples


def read_image(content: bytes) -> bool:
    """Return whether an image can be read, in which training and prediction must agree."""
    problem = ""
    try:
        with decoding.read_image({"bytes": content, "path": None}) as image:
            assert image.mode == "RGB"
    except decoding.ImageError as error:
        problem = str(error)
    [batch] = _IMAGES.read_batches([content], 1)
    assert batch.problems == [problem]
    assert len(problem.splitlines()) <= 1, problem
    assert len(batch.pixels) == (0 if problem else 1)
    return not problem


def read_checkpoint(whole: Path, name: str, content: bytes, folder: Path) -> None:
    """Load a checkpoint of which one file is replaced: it is usable, or refused by a sentence."""
    checkpoint = Path(shutil.copytree(whole, folder / "checkpoint"))
    (checkpoint / name).write_bytes(content)
    try:
        load_classifier(str(checkpoint), ["a", "b"])
        processor = load_image_processor(str(checkpoint))
        read_form(processor)
        PixelNormalizer(processor)
    except (InputError, RunError) as error:
        message = str(error)
        assert len(message.splitlines()) == 1, message
        assert len(message) < 2000, message
        assert str(checkpoint) in message or name in message, message
    finally:
        shutil.rmtree(checkpoint)
