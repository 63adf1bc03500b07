"""Strategies for files that are almost right: whole ones with bytes changed, cut or repeated."""

import io
import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st
from PIL import Image

# Numbers that headers are known to choke on.
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutate(content: bytes, edits: Sequence[tuple[str, float, int, bytes]]) -> bytes:
    """Apply edits (kind, place as a share of the length, number, bytes) one after the other."""
    changed = bytearray(content)
    for kind, share, number, piece in edits:
        place = int(share * len(changed))
        if kind == "flip" and place < len(changed):
            changed[place] ^= number % 255 + 1
        elif kind == "write":
            changed[place : place + len(piece)] = piece
        elif kind == "insert":
            changed[place:place] = piece
        elif kind == "cut":
            del changed[place : place + number % 64]
        elif kind == "end":
            del changed[place:]
        elif kind == "edge":
            order: Literal["little", "big"] = "little" if number % 2 else "big"
            value = EDGES[number // 2 % len(EDGES)]
            changed[place : place + 4] = value.to_bytes(4, order)
        elif kind == "repeat":
            changed[place:place] = changed[place : place + 1 + number % 512]
    return bytes(changed)


def edits(near_start: bool = False) -> st.SearchStrategy[list[tuple[str, float, int, bytes]]]:
    """Return a strategy of edits, near the start of a file (its headers) if asked."""
    place = st.floats(0, 0.05 if near_start else 1, allow_nan=False)
    kind = st.sampled_from(["flip", "write", "insert", "cut", "end", "edge", "repeat"])
    edit = st.tuples(kind, place, st.integers(0, 1 << 16), st.binary(max_size=8))
    return st.lists(edit, min_size=1, max_size=6)


def mutated(samples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return a strategy of damaged samples, and now and then of plain bytes."""
    damaged = st.builds(mutate, st.sampled_from(samples), edits() | edits(near_start=True))
    return damaged | st.builds(mutate, st.sampled_from(samples), edits()) | st.binary(max_size=300)


def make_images() -> list[bytes]:
    """Return small images in every usual format and mode."""
    noise = np.random.default_rng(1).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    rgb = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = rgb.convert("P")
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) << 8)
    saved: list[tuple[Image.Image, str, dict[str, object]]] = [
        (rgb, "JPEG", {"exif": exif, "icc_profile": b"garbage" * 20}),
        (rgb.convert("CMYK"), "JPEG", {"progressive": True}),
        (rgb, "PNG", {"exif": exif}),
        (palette, "PNG", {"transparency": 3}),
        (rgb.convert("RGBA"), "PNG", {}),
        (rgb.convert("1"), "PNG", {}),
        (deep, "PNG", {}),
        (rgb, "PNG", {"save_all": True, "append_images": [rgb.rotate(180)]}),
        (palette, "GIF", {"save_all": True, "append_images": [palette.rotate(180)]}),
        (rgb, "WEBP", {"exif": exif, "quality": 50}),
        (rgb.convert("RGBA"), "WEBP", {"lossless": True}),
        (rgb, "BMP", {}),
        (palette, "BMP", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgb, "TIFF", {"compression": "jpeg"}),
        (deep, "TIFF", {}),
        (rgb.convert("F"), "TIFF", {}),
        (rgb, "JPEG2000", {}),
        (rgb, "ICO", {"sizes": [(9, 9)]}),
        (rgb, "TGA", {"compression": "tga_rle"}),
        (rgb, "PPM", {}),
        (rgb, "PCX", {}),
        (rgb, "SGI", {}),
        (rgb, "ICNS", {}),
        (rgb, "DDS", {}),
        (rgb, "EPS", {}),
        (rgb, "IM", {}),
    ]
    samples = []
    for image, form, options in saved:
        stream = io.BytesIO()
        image.save(stream, format=form, **options)
        samples.append(stream.getvalue())
    return samples


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\nshowpage\n%%EOF\n"
PDF = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer << /Root 1 0 R >>\n%%EOF\n"
DOCUMENTS = (SVG, EPS, PDF)

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../../etc/passwd", "evil.Evil", "bitsandbytes", 0, 1, 10**30]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)
JSON_KEYS = st.sampled_from(
    [
        *("model_type", "architectures", "auto_map", "quantization_config", "vision_config"),
        *("text_config", "dtype", "torch_dtype", "id2label", "size", "num_patches"),
        *("transformers_version", "image_processor_type", "processor_class", "_name_or_path"),
    ]
)


def json_texts(whole: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Return a strategy of a JSON file with other values under its keys, or damaged."""
    keys = st.sampled_from(sorted(whole)) | JSON_KEYS
    changes = st.dictionaries(keys, JSON_VALUES, min_size=1, max_size=2)
    changed = changes.map(lambda values: json.dumps({**whole, **values}).encode())
    return (
        changed
        | JSON_VALUES.map(lambda v: json.dumps(v).encode())
        | mutated([json.dumps(whole).encode()])
    )
