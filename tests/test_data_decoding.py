"""Images of every kind become upright RGB."""

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import Dataset
from PIL.Image import Image
from transformers.image_transforms import convert_to_rgb

from siglip_flowers.data.pixels.decoding import DECODING_ERRORS, decode_rgb, list_image_extensions


def draw_gradient(width: int = 8, height: int = 5) -> Image:
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 30, rows * 50, (rows + columns) * 20], axis=-1)
    return PIL.Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV"])
def test_opaque_modes_convert_as_the_image_processor_does(mode: str) -> None:
    image = draw_gradient().convert(mode)
    decoded = decode_rgb(image)
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), convert_to_rgb(image, return_numpy=True))


def test_transparency_is_put_on_white_whatever_color_it_hides() -> None:
    image = PIL.Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 255))
    assert list(decode_rgb(image).get_flattened_data()) == [(255, 255, 255), (200, 0, 0)]


def test_half_transparency_blends_with_white() -> None:
    image = PIL.Image.new("LA", (1, 1), (100, 51))  # alpha 0.2
    assert decode_rgb(image).getpixel((0, 0)) == (224, 224, 224)  # 0.2 * 100 + 0.8 * 255


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_a_transparent_color_becomes_white(tmp_path, mode: str) -> None:
    image = PIL.Image.new("L", (2, 1))
    image.putpixel((1, 0), 90)
    image = image.convert(mode)
    key = {"P": image.getpixel((0, 0)), "RGB": (0, 0, 0), "L": 0}[mode]
    image.save(tmp_path / "a.png", transparency=key)
    decoded = decode_rgb(PIL.Image.open(tmp_path / "a.png"))
    assert list(decoded.get_flattened_data()) == [(255, 255, 255), (90, 90, 90)]


def test_sixteen_bit_samples_keep_their_high_bits(tmp_path) -> None:
    samples = np.array([[0, 255, 256, 0x8000, 0xFFFF]], dtype=np.uint16)
    PIL.Image.fromarray(samples).save(tmp_path / "a.png")
    with PIL.Image.open(tmp_path / "a.png") as image:
        decoded = np.asarray(decode_rgb(image))
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 0, 1, 128, 255])
    assert (decoded == decoded[..., :1]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_exactly_once(tmp_path, orientation: int) -> None:
    # What undoes each orientation, from the EXIF 2.32 table of where row and column 0 lie.
    upright = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, 1),
    }[orientation]
    image = draw_gradient()
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    image.save(path, exif=exif)
    expected = upright(np.asarray(image))
    rows = Dataset.from_dict({"image": [str(path)]}).cast_column("image", datasets.Image())
    through_datasets = decode_rgb(rows[0]["image"])
    with PIL.Image.open(path) as raw:
        directly = decode_rgb(raw)
    np.testing.assert_array_equal(np.asarray(directly), expected)
    np.testing.assert_array_equal(np.asarray(through_datasets), expected)
    np.testing.assert_array_equal(np.asarray(decode_rgb(directly)), expected)


def test_a_single_pixel_stays_a_single_pixel() -> None:
    assert decode_rgb(PIL.Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)


def test_a_truncated_file_raises_a_decoding_error(tmp_path) -> None:
    path = tmp_path / "a.jpg"
    draw_gradient(300, 300).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with PIL.Image.open(path) as image, pytest.raises(DECODING_ERRORS):
        decode_rgb(image)


def test_extensions_are_those_pillow_can_open() -> None:
    extensions = list_image_extensions()
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".gif"} <= extensions
    assert not {".pdf", ".txt", ".json"} & extensions
