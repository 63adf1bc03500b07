"""Images of every kind become upright RGB."""

import io
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps
import pytest
import torch
from PIL.Image import Image

from siglip_flowers.config import DataArguments
from siglip_flowers.data.pixels import decoding
from siglip_flowers.data.pixels.decoding import ImageError, decode_rgb, read_image
from siglip_flowers.data.pixels.tensors import (
    PixelDataset,
    PixelForm,
    PixelNormalizer,
    open_pixels,
    read_form,
)
from siglip_flowers.data.rows import read_images
from siglip_flowers.inference.reading import ImageReader
from siglip_flowers.model.loading import load_image_processor
from tests.small_flowers import make_rows


def draw_gradient(width: int = 8, height: int = 5) -> Image:
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 30, rows * 50, (rows + columns) * 20], axis=-1)
    return PIL.Image.fromarray(pixels.astype(np.uint8))


def read(content: bytes) -> np.ndarray:
    with read_image(content) as image:
        return np.asarray(image)


def save(image: Image | np.ndarray, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image = PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_fewer_bits_in_sixteen_are_told_by_the_brightest_sample(bits: int) -> None:
    ramp = np.linspace(0, 2**bits - 1, 256).round().astype(np.uint16).reshape(16, 16)
    expected = (ramp >> (bits - 8)).astype(np.uint8)
    np.testing.assert_array_equal(read(save(ramp, "TIFF"))[..., 0], expected)
    np.testing.assert_array_equal(read(save(ramp, "PNG"))[..., 0], expected)


@pytest.mark.parametrize("scale, white", [(1, 255), (200, 200), (3000, 255)])
def test_floating_point_samples_are_scaled_by_their_range(scale: float, white: int) -> None:
    ramp = np.linspace(0, scale, 256, dtype=np.float32).reshape(16, 16)
    decoded = read(save(ramp, "TIFF"))[..., 0].astype(int)
    assert abs(decoded - np.linspace(0, white, 256).reshape(16, 16)).max() <= 1


class Broken(PIL.ImageFile.ImageFile):
    """A format whose decoder raises whatever ``Broken.error`` is."""

    format = "BROKEN"
    error: type[BaseException] = Exception

    def _open(self) -> None:
        self._mode, self._size = "RGB", (2, 2)

    def load(self) -> None:
        raise self.error("of the decoder")


@pytest.fixture
def broken(monkeypatch) -> type[Broken]:
    PIL.Image.init()
    monkeypatch.setattr(PIL.Image, "ID", [*PIL.Image.ID, "BROKEN"])
    opener = (Broken, lambda prefix: prefix.startswith(b"BROKEN"))
    monkeypatch.setitem(PIL.Image.OPEN, "BROKEN", opener)
    return Broken


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, struct.error])
def test_whatever_a_decoder_raises_means_that_the_image_cannot_be_read(broken, error) -> None:
    broken.error = error
    with pytest.raises(ImageError, match="of the decoder"):
        read(b"BROKEN")
    (batch,) = ImageReader(PixelForm(8, 2), num_workers=1).read_batches([b"BROKEN", None], 2)
    assert batch.problems == ["of the decoder", "no image"]


def test_metadata_that_cannot_be_read_do_not_make_pixels_unreadable(monkeypatch) -> None:
    image = draw_gradient(32, 32)
    broken_exif = save(image, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 9)
    np.testing.assert_array_equal(read(broken_exif), read(save(image, "JPEG")))

    def fail(self: Image) -> None:
        raise RuntimeError("EXIF")

    monkeypatch.setattr(PIL.Image.Image, "getexif", fail)
    np.testing.assert_array_equal(read(save(image, "PNG")), np.asarray(image))


# One set of odd files, the same pixels for every reader


def make_odd_files(folder: Path) -> list[str]:
    photograph = draw_gradient(40, 24)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    clear = photograph.convert("RGBA")
    clear.putalpha(PIL.Image.linear_gradient("L").resize(clear.size))
    deep = np.linspace(0, 4095, 40 * 24).reshape(24, 40).astype(np.uint16)
    files: dict[str, tuple[Image, dict[str, object]]] = {
        "rotated.jpg": (photograph, {"exif": exif}),
        "transparent.png": (clear, {}),
        "transparent.webp": (clear, {"lossless": True}),
        "palette.png": (photograph.convert("P"), {"transparency": 3}),
        "bits.tif": (PIL.Image.fromarray(deep), {}),
        "deep.png": (PIL.Image.fromarray(deep * 16), {}),
        "float.tif": (PIL.Image.fromarray((deep / 4095).astype(np.float32)), {}),
        "cmyk.jpg": (photograph.convert("CMYK"), {}),
        "animated.gif": (photograph, {"save_all": True, "append_images": [clear]}),
        "wide.png": (photograph.resize((900, 2)), {}),
        "tall.png": (photograph.resize((1, 700)), {}),
        "dot.png": (photograph.resize((1, 1)), {}),
    }
    paths = []
    for name, (image, options) in files.items():
        paths.append(str(folder / name))
        image.save(paths[-1], **options)
    return paths


def test_odd_files_are_the_same_pixels_for_every_reader(tmp_path, nano_dir) -> None:
    paths = make_odd_files(tmp_path)
    processor = load_image_processor(str(nano_dir))
    form = read_form(processor)
    rows = make_rows(paths)
    training = PixelDataset(rows, form).__getitems__(range(len(paths)))
    cache = DataArguments(cache_dir=str(tmp_path / "cache"))
    evaluation = open_pixels(rows, form, cache).__getitems__(range(len(paths)))
    contents = [Path(path).read_bytes() for path in paths]
    opened = [PIL.Image.open(path) for path in paths]
    for sources in (paths, contents, opened):
        (batch,) = ImageReader(form, num_workers=2).read_batches(sources, 64)
        assert batch.problems == [""] * len(paths)
        assert torch.equal(batch.pixels, training["pixel_values"])
    assert torch.equal(evaluation["pixel_values"], training["pixel_values"])
    # And the image processor's own, from the upright RGB image.
    by_processor = processor(read_images(rows, range(len(paths))), return_tensors="pt")
    ours = PixelNormalizer(processor)(training["pixel_values"])
    assert torch.equal(ours, by_processor["pixel_values"])


# Size and memory


def make_png_head(width: int, height: int, color_type: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, part in ((b"IHDR", head), (b"IDAT", b"")):
        content += struct.pack(">I", len(part)) + kind + part
        content += struct.pack(">I", zlib.crc32(kind + part))
    return content


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "content, problem",
    [
        (make_png_head(20_000, 8_850, 6), "it has 177 megapixels, more than the limit of 134"),
        (make_png_head(20_000, 9_500, 0), "it has more than 179 megapixels"),
    ],
    ids=["alpha", "larger"],
)
def test_too_large_images_are_refused_by_the_size_in_the_header(content, problem) -> None:
    with pytest.raises(ImageError, match=problem):
        read(content)


def test_memory_in_flight_is_bounded_over_all_threads(monkeypatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXEL_BYTES", 3 * 4 * 100 * 100)
    content = save(PIL.Image.new("RGB", (100, 100)), "PNG")
    running, most = [], []
    gate = threading.Lock()

    def decode(number: int) -> None:
        with read_image(content):
            with gate:
                running.append(number)
                most.append(len(running))
            time.sleep(0.01)
            with gate:
                running.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, range(24)))
    assert max(most) == 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_exactly_once(tmp_path, orientation: int) -> None:
    image = draw_gradient()
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    image.save(path, exif=exif)
    with PIL.Image.open(path) as raw:
        expected = np.asarray(PIL.ImageOps.exif_transpose(raw))
        directly = decode_rgb(raw)
    np.testing.assert_array_equal(np.asarray(directly), expected)
    np.testing.assert_array_equal(np.asarray(decode_rgb(directly)), expected)
