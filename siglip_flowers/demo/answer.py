"""What the page says about one image."""

import threading
from dataclasses import dataclass, field
from typing import Any

import PIL.Image
import PIL.ImageOps

from siglip_flowers.data.pixels.decoding import ImageError, read_image
from siglip_flowers.data.pixels.tensors import PixelNormalizer, get_image_size, resize_image
from siglip_flowers.demo.neighbors import TrainingImages
from siglip_flowers.inference.classifier import SiglipImageClassifier
from siglip_flowers.inference.saliency import compute_saliency, draw_overlay

# A JPEG is read at an eighth, quarter or half of its size where that leaves this many pixels a
# side: more than any encoder takes.
DRAFT_PIXELS = 2048
OVERLAY_PIXELS = 448


@dataclass(frozen=True)
class Answer:
    """What was found in an image.

    Attributes:
        results: ``{"label", "score"}`` of the likeliest classes, the likeliest first.
        known: Whether it shows one of the known classes; None where the model cannot tell.
        overlay: The image with what the model looks at lit up.
        neighbors: Thumbnail, class name and cosine of the nearest training images.
        problem: Why the image could not be read; everything else is empty then.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    known: bool | None = None
    overlay: PIL.Image.Image | None = None
    neighbors: list[tuple[PIL.Image.Image, str, float]] = field(default_factory=list)
    problem: str = ""


class Explainer:
    """Answers for images, one at a time, whatever threads ask.

    Args:
        classifier: The classifier.
        processor: Its image processor.
        images: The training images to compare with, if there are any.
        top_k: Classes to name.
        neighbors: Training images to show.
        max_pixels: Larger images are refused before they are decoded.
    """

    def __init__(
        self,
        classifier: SiglipImageClassifier,
        processor: Any,
        *,
        images: TrainingImages | None = None,
        top_k: int = 5,
        neighbors: int = 6,
        max_pixels: int = 80_000_000,
    ) -> None:
        self.classifier = classifier
        self.images = images
        self.top_k = top_k
        self.neighbors = neighbors
        self.max_pixels = max_pixels
        self._size, self._resample = get_image_size(processor), processor.resample
        self._normalizer = PixelNormalizer(processor)
        # Memory for one image, and hooks on one model.
        self._busy = threading.Lock()

    @property
    def pooling(self) -> str:
        """The pooling of the model: ``map`` or ``mean``."""
        pooling: str = self.classifier.engine.model.config.pooling
        return pooling

    def explain(self, content: bytes) -> Answer:
        """Return what an image file shows, or why it cannot be read."""
        with self._busy:
            try:
                with read_image(content, draft=DRAFT_PIXELS, max_pixels=self.max_pixels) as image:
                    return self._explain(image)
            except ImageError as error:
                return Answer(problem=str(error))

    def _explain(self, image: PIL.Image.Image) -> Answer:
        (prediction,) = self.classifier.stream([image], self.top_k)
        if prediction.problem:
            return Answer(problem=prediction.problem)
        pixels = resize_image(image, self._size, self._resample)[None]
        engine = self.classifier.engine
        inputs = self._normalizer.prepare(pixels.to(engine.device))
        inputs["pixel_values"] = inputs["pixel_values"].to(engine.dtype)
        (saliency,) = compute_saliency(engine.model, inputs)
        nearest = []
        if self.images is not None:
            features = engine.extract_features(pixels)[0].cpu().numpy()
            nearest = self.images.find(features, self.neighbors)
        return Answer(
            results=prediction.results,
            known=prediction.known,
            overlay=draw_overlay(
                PIL.ImageOps.contain(image, (OVERLAY_PIXELS, OVERLAY_PIXELS)), saliency
            ),
            neighbors=nearest,
        )
