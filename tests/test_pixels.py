"""Our input path against the image processor of transformers, to the last bit."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipImageProcessor

from siglip_flowers.data.pixels.tensors import PixelDataset, PixelNormalizer, read_form
from siglip_flowers.model.loading import load_image_processor
from tests.small_flowers import make_rows, read_images


def to_pixel_values(processor, images):
    """The way an image takes in this package: file, decoded row, uint8 batch, normalized."""
    pixels = PixelDataset(make_rows(images), read_form(processor))
    batch = pixels.__getitems__(range(len(pixels)))
    assert batch["pixel_values"].dtype == torch.uint8
    return PixelNormalizer(processor)(batch["pixel_values"])


def put_on_white(image):
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def by_processor(processor, images):
    # In older versions of transformers it ignores transparency.
    images = [put_on_white(image) if image.mode == "RGBA" else image for image in images]
    return torch.cat([processor(p, return_tensors="pt")["pixel_values"] for p in images])


@pytest.fixture(scope="module")
def images(flowers_dir):
    """Real photographs, larger and smaller than the model's size and of other shapes."""
    photographs = read_images(flowers_dir, 8)
    sizes = [(64, 64), (500, 667), (31, 200), (64, 32), (1, 1), (3, 90), (65, 63), (128, 128)]
    return [
        photograph.resize(size) if photograph.size != size else photograph
        for photograph, size in zip(photographs, sizes, strict=True)
    ]


def as_mode(image, mode):
    if mode == "RGBA":
        image = image.convert("RGBA")
        slope = np.linspace(0, 255, image.width * image.height)
        alpha = slope.reshape(image.height, image.width).astype(np.uint8)
        image.putalpha(Image.fromarray(alpha))
        return image
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_pixels_equal_the_checkpoints_processor_bit_for_bit(nano_dir, images, mode):
    processor = load_image_processor(str(nano_dir))
    images = [as_mode(image, mode) for image in images]
    ours = to_pixel_values(processor, images)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, by_processor(processor, images))


@pytest.mark.parametrize(
    "options",
    [
        {"resample": Image.Resampling.BILINEAR},
        {"resample": Image.Resampling.LANCZOS, "size": {"height": 48, "width": 48}},
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"rescale_factor": 1 / 200, "image_mean": [0.3, 0.2, 0.1], "image_std": [1.0] * 3},
        {"size": {"height": 224, "width": 224}},
    ],
)
def test_pixels_follow_another_checkpoints_preprocessing(nano_dir, images, tmp_path, options):
    SiglipImageProcessor.from_pretrained(nano_dir, **options).save_pretrained(tmp_path)
    processor = load_image_processor(str(tmp_path))
    ours = to_pixel_values(processor, images)
    expected = by_processor(processor, images)
    assert torch.equal(ours, expected)
    default = load_image_processor(str(nano_dir))
    plain = by_processor(default, images)
    assert expected.shape != plain.shape or not torch.allclose(expected, plain, atol=1e-3)
