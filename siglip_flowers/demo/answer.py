"""The answer of the page for one image."""

import threading
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
from PIL import Image

from siglip_flowers.data.pixels.decoding import ImageError, read_image
from siglip_flowers.data.pixels.tensors import read_form
from siglip_flowers.data.rows import select_undecoded
from siglip_flowers.demo.options import DemoArguments
from siglip_flowers.inference.classifier import SiglipImageClassifier
from siglip_flowers.inference.saliency import compute_saliency, draw_overlay
from siglip_flowers.metrics.neighbors import find_neighbors

# JPEG files are decoded at a fraction of their size if this many pixels per side remain, which is
# more than any encoder takes.
DRAFT_PIXELS = 2048
# Larger images are refused before they are decoded.
MAX_PIXELS = 80_000_000
OVERLAY_PIXELS = 448
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
        """Return thumbnail, class name and cosine of the images nearest to features (D,)."""
        rows, cosines = find_neighbors(self.features, query[None], count)
        nearest = []
        for row, cosine in zip(rows[0].tolist(), cosines[0].tolist(), strict=True):
            with read_image(self.images[row]["image"], draft=THUMBNAIL_PIXELS) as image:
                image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
                thumbnail = image.copy()
            nearest.append((thumbnail, self.names[self.labels[row]], cosine))
        return nearest


@dataclass(frozen=True)
class Answer:
    """What was found in an image.

    Attributes:
        results: ``{"label", "score"}`` of the most probable classes, the most probable first.
        known: Whether it shows one of the known classes; None if the model cannot tell.
        overlay: The image, brighter where the model looks.
        neighbors: Thumbnail, class name and cosine of the nearest training images.
        problem: Why the image could not be read; everything else is empty then.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    known: bool | None = None
    overlay: Image.Image | None = None
    neighbors: list[tuple[Image.Image, str, float]] = field(default_factory=list)
    problem: str = ""


class Explainer:
    """Answers for images, one at a time, from any thread.

    Args:
        classifier: The classifier.
        processor: Its image processor.
        options: How many classes and neighbors to show.
        images: The training images to compare with, if any.
    """

    def __init__(
        self,
        classifier: SiglipImageClassifier,
        processor: Any,
        options: DemoArguments,
        images: TrainingImages | None = None,
    ) -> None:
        self.classifier = classifier
        self.options = options
        self.images = images
        self._form = read_form(processor)
        # Memory for one image, and hooks on one model.
        self._busy = threading.Lock()

    def explain(self, content: bytes) -> Answer:
        """Return what an image file shows, or why it cannot be read."""
        with self._busy:
            try:
                with read_image(content, draft=DRAFT_PIXELS, max_pixels=MAX_PIXELS) as image:
                    return self._explain(image)
            except ImageError as error:
                return Answer(problem=str(error))

    def _explain(self, image: Image.Image) -> Answer:
        (prediction,) = self.classifier.stream([image], self.options.top_k)
        if prediction.problem:
            return Answer(problem=prediction.problem)
        pixels = self._form.resize(image)[None]
        engine = self.classifier.engine
        (saliency,) = compute_saliency(engine.model, engine.prepare(pixels))
        nearest = []
        if self.images is not None:
            features = engine.extract_features(pixels)[0].cpu().numpy()
            nearest = self.images.find(features, self.options.neighbors)
        scale = OVERLAY_PIXELS / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        shown = image.resize((width, height))
        return Answer(
            results=prediction.results,
            known=prediction.known,
            overlay=draw_overlay(shown, saliency),
            neighbors=nearest,
        )
