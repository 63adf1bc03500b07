"""The training images that look most alike to a classifier."""

import datasets
import numpy as np
import PIL
from PIL import Image

from siglip_flowers.config import DataArguments
from siglip_flowers.data.pixels.array_cache import ArrayEntry, locate_cache, open_array
from siglip_flowers.data.pixels.decoding import read_image
from siglip_flowers.data.pixels.tensors import get_image_size, get_pixel_shape
from siglip_flowers.data.rows import fingerprint_images, select_undecoded
from siglip_flowers.evaluation.features import digest_weights
from siglip_flowers.evaluation.predict import PassOptions, extract_features
from siglip_flowers.inference.classifier import SiglipImageClassifier
from siglip_flowers.metrics.neighbors import find_neighbors

BATCH_SIZE = 64
THUMBNAIL_PIXELS = 160


class TrainingImages:
    """Images with their features, to be searched by features.

    Args:
        rows: N rows with the columns ``image`` and ``label``.
        features: (N, D) float32.
    """

    def __init__(self, rows: datasets.Dataset, features: np.ndarray) -> None:
        self.images = select_undecoded(rows)
        self.labels: list[int] = list(rows["label"])
        self.names: list[str] = rows.features["label"].names
        self.features = features

    def find(self, query: np.ndarray, count: int) -> list[tuple[Image.Image, str, float]]:
        """Return thumbnail, class name and cosine of the nearest ones to features (D,).

        The nearest comes first; no file's name is among what is returned.
        """
        found = find_neighbors(self.features, query[None], count)
        return [
            (self._draw_thumbnail(row), self.names[self.labels[row]], cosine)
            for row, cosine in zip(found.rows[0].tolist(), found.cosines[0].tolist(), strict=True)
        ]

    def _draw_thumbnail(self, row: int) -> Image.Image:
        with read_image(self.images[row]["image"], draft=THUMBNAIL_PIXELS) as image:
            image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
            return image


def encode_training_images(
    classifier: SiglipImageClassifier,
    processor: object,
    rows: datasets.Dataset,
    data: DataArguments,
) -> TrainingImages:
    """Encode the images as the classifier sees them, or take their features from the cache."""
    model = classifier.engine.model
    key = {
        "weights": digest_weights(model.vision_model),
        "images": fingerprint_images(rows),
        "pooling": model.config.pooling,
        "attention": model.config.vision_config._attn_implementation,
        "dtype": str(classifier.dtype),
        "device": classifier.device.type,
        "size": list(get_pixel_shape(get_image_size(processor))),
        "pillow": PIL.__version__,
    }
    width: int = model.config.vision_config.hidden_size
    entry = ArrayEntry(kind="features", key=key, shape=(len(rows), width), dtype="float32")

    def encode() -> np.ndarray:
        return extract_features(
            model,
            processor,
            rows,
            PassOptions(
                BATCH_SIZE,
                dtype=str(classifier.dtype).removeprefix("torch."),
                data_arguments=data,
            ),
        )

    stored = open_array(locate_cache(data), entry, lambda array: np.copyto(array, encode()))
    return TrainingImages(rows, encode() if stored is None else stored)
