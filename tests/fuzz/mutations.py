"""Strategies for files that are almost right: whole ones with bytes changed, cut or repeated."""

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import scipy.io
from hypothesis import strategies as st
from PIL import Image

from siglip_flowers.data.sources.oxford import IMAGE_COUNT, ORIGINAL_SIZES

IMAGE_NAMES = ("image_00001.jpg", "image_00002.jpg")
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


def make_tar(entries: Sequence[tuple[tarfile.TarInfo, bytes]], form: int) -> bytes:
    """Return a tar file; the contents are as long as the entries' sizes say, or shorter."""
    stream = io.BytesIO()
    for member, content in entries:
        stream.write(member.tobuf(form, "utf-8", "surrogateescape"))
        stream.write(content + bytes(-len(content) % tarfile.BLOCKSIZE))
    return stream.getvalue() + bytes(2 * tarfile.BLOCKSIZE)


NAMES = st.sampled_from(
    [
        *(f"jpg/{name}" for name in IMAGE_NAMES),
        *("./jpg/image_00001.jpg", "jpg//image_00001.jpg", "JPG/IMAGE_00001.JPG", "jpg", ""),
        *("../evil.jpg", "/evil.jpg", "jpg/../../evil.jpg", "jpg\\evil.jpg", "C:\\evil.jpg"),
        *("jpg/a\nb.jpg", "jpg/\udc80.jpg", "jpg/" + "x" * 5000, "jpg/image_٠٠٠٠١.jpg", "~/x"),
    ]
) | st.text(max_size=20).filter(lambda name: "\0" not in name)
KINDS = st.sampled_from(
    [
        tarfile.REGTYPE,
        tarfile.AREGTYPE,
        tarfile.REGTYPE,
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        b"?",
    ]
)
PAX_KEYS = st.sampled_from(
    [
        "path",
        "linkpath",
        "size",
        "mtime",
        "uid",
        "hdrcharset",
        "GNU.sparse.map",
        "GNU.sparse.size",
        "GNU.sparse.major",
        "GNU.sparse.minor",
        "GNU.sparse.name",
        "GNU.sparse.realsize",
        "GNU.sparse.numblocks",
        "comment",
    ]
)
PAX_VALUES = st.sampled_from(
    [
        "",
        "0",
        "1",
        "-1",
        "-512",
        "999999999999999999999",
        "nan",
        "1e309",
        "/evil",
        "../evil",
        "0,1,2",
        "0,99999999999",
        "\n",
        "jpg/image_00001.jpg",
        "BINARY",
        "9" * 5000,
    ]
) | st.text(max_size=10)


@st.composite
def archives(draw: Callable[..., Any]) -> bytes:
    """Draw tar files of strange entries, packed by gzip as a whole or damaged."""
    entries = [(_entry(f"jpg/{name}"), name.encode()) for name in IMAGE_NAMES]
    for _ in range(draw(st.integers(0, 3))):
        member = _entry(str(draw(NAMES)))
        member.type = draw(KINDS)
        member.linkname = str(draw(NAMES))
        size = draw(st.sampled_from([0, 7, 512, 513, 1 << 20, 1 << 34, 1 << 62]))
        member.size = size
        member.pax_headers = draw(st.dictionaries(PAX_KEYS, PAX_VALUES, max_size=3))
        content = draw(st.binary(max_size=600))
        place = draw(st.integers(0, len(entries)))
        entries.insert(place, (member, content))
    form = draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    tar = make_tar(entries, form)
    damage = draw(st.sampled_from(["none", "none", "tar", "gzip"]))
    if damage == "tar":
        tar = mutate(tar, draw(edits()))
    packed = gzip.compress(tar, 1)
    return mutate(packed, draw(edits())) if damage == "gzip" else packed


def _entry(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = len(IMAGE_NAMES[0])
    return member


def make_mats() -> list[bytes]:
    """Return .mat files that the readers of labels and split ids take, or look like it."""
    generator = np.random.default_rng(0)
    numbers = generator.permutation(IMAGE_COUNT) + 1
    ends = np.cumsum(list(ORIGINAL_SIZES.values()))
    ids = dict(zip(ORIGINAL_SIZES, np.split(numbers, ends[:-1]), strict=True))
    labels = {"labels": generator.integers(1, 103, IMAGE_COUNT)}
    cell = np.empty((1, 3), dtype=object)
    cell[:] = [["a", np.ones((2, 2)), np.array([])]]
    strange = {"labels": {"a": cell, "b": np.array([1 + 2j])}, "trnid": cell, "valid": "text"}
    narrow = [{k: v.astype(np.uint16) for k, v in content.items()} for content in (labels, ids)]
    plain: list[dict[str, Any]] = [*narrow, strange]
    saved = [(content, {"do_compression": packed}) for content in plain for packed in (0, 1)]
    saved += [(content, {"format": "4"}) for content in (labels, ids)]
    samples = []
    for content, options in saved:
        stream = io.BytesIO()
        scipy.io.savemat(stream, content, **options)
        samples.append(stream.getvalue())
    return samples


@st.composite
def packed_mats(draw: Callable[..., Any], samples: Sequence[bytes]) -> bytes:
    """Draw .mat files whose compressed parts unpack to damaged ones."""
    plain = draw(st.sampled_from(samples))
    assert isinstance(plain, bytes)
    body = mutate(plain[128:], draw(edits(near_start=True)))
    packed = zlib.compress(body)
    tag = (15).to_bytes(4, "little") + len(packed).to_bytes(4, "little")
    return plain[:128] + tag + packed


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


WHOLE_YAML = b"""# A whole file
shots: 4
learning_rate: 1.0e-3
lr_scheduler_kwargs: {num_cycles: 2, list: [1, 2]}
trainable: "last:2"
report_to: [none]
"""
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\nshowpage\n%%EOF\n"
PDF = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer << /Root 1 0 R >>\n%%EOF\n"
DOCUMENTS = (SVG, EPS, PDF)

YAML_PIECES = st.sampled_from(
    [
        "shots",
        "learning_rate",
        "data_dir",
        "trainable",
        "augment",
        "model_name_or_path",
        "<<",
        "?",
        "lr_scheduler_kwargs",
        ": ",
        ":",
        "- ",
        "-",
        "\n",
        "\n  ",
        "\t",
        " ",
        "|",
        ">",
        "#",
        "%",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "&a ",
        "*a",
        "!!python/object/apply:os.system [id]",
        "!!binary ",
        "!!python/name:os.system",
        "!!set",
        "!!omap",
        "!!timestamp ",
        "!!int ",
        "!!float ",
        "!x ",
        "2024-01-01",
        "2024-99-99",
        ".nan",
        ".inf",
        "-.inf",
        "0x" + "f" * 40,
        "9" * 5000,
        "0b",
        "0o9",
        "1:60",
        "190:20:30",
        "yes",
        "no",
        "null",
        "~",
        "'",
        '"',
        "\\x00",
        "\\ud800",
        "---",
        "...",
        "\ufeff",
        "\x00",
        "\x1b",
        "\x85",
        "\u2028",
        "é",
        "😀",
        "1",
        "-1",
        "1e3",
        "=",
        "=cmd()",
    ]
)


def yaml_texts() -> st.SearchStrategy[bytes]:
    """Return a strategy of YAML texts made of telling pieces, in several encodings."""
    line = st.builds("{}: {}\n".format, YAML_PIECES, st.lists(YAML_PIECES, max_size=4).map("".join))
    text = st.lists(line, max_size=5).map("".join) | st.lists(YAML_PIECES, max_size=30).map("".join)
    encoded = st.builds(
        lambda text, encoding: text.encode(encoding, "replace"),
        text,
        st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]).filter(bool),
    )
    return encoded


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
