"""What the page says about one picture."""

import io
import threading
import warnings
from dataclasses import dataclass, field
from typing import Any

import PIL.Image
import PIL.ImageOps

from siglip_flowers.data.decoding import DECODING_ERRORS, decode_rgb, open_picture
from siglip_flowers.data.pixels import PixelNormalizer, get_picture_size, resize_picture
from siglip_flowers.inference.classifier import FlowerClassifier
from siglip_flowers.inference.reading import explain_problem
from siglip_flowers.inference.saliency import compute_saliency
from siglip_flowers.page.neighbours import TrainingPictures
from siglip_flowers.reporting.attention import draw_overlay

# A JPEG is read at an eighth, quarter or half of its size where that leaves this many pixels a
# side: more than any encoder takes.
DRAFT_PIXELS = 2048
OVERLAY_PIXELS = 448


@dataclass(frozen=True)
class Answer:
    """What was found in a picture.

    Attributes:
        results: ``{"label", "score"}`` of the likeliest classes, the likeliest first.
        known: Whether it shows one of the known classes; None where the model cannot tell.
        overlay: The picture with what the model looks at lit up.
        neighbours: Thumbnail, class name and cosine of the nearest training pictures.
        problem: Why the picture could not be read; everything else is empty then.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    known: bool | None = None
    overlay: PIL.Image.Image | None = None
    neighbours: list[tuple[PIL.Image.Image, str, float]] = field(default_factory=list)
    problem: str = ""


class Explainer:
    """Answers for pictures, one at a time, whatever threads ask.

    Args:
        classifier: The classifier.
        processor: Its image processor.
        pictures: The training pictures to compare with, if there are any.
        top_k: Classes to name.
        neighbours: Training pictures to show.
        max_pixels: Larger pictures are refused before they are decoded.
    """

    def __init__(
        self,
        classifier: FlowerClassifier,
        processor: Any,
        *,
        pictures: TrainingPictures | None = None,
        top_k: int = 5,
        neighbours: int = 6,
        max_pixels: int = 80_000_000,
    ) -> None:
        self.classifier = classifier
        self.pictures = pictures
        self.top_k = top_k
        self.neighbours = neighbours
        self.max_pixels = max_pixels
        self._size, self._resample = get_picture_size(processor), processor.resample
        self._normalizer = PixelNormalizer(processor)
        # Memory for one picture, and hooks on one model.
        self._busy = threading.Lock()

    @property
    def pooling(self) -> str:
        """The pooling of the model: ``map`` or ``mean``."""
        pooling: str = self.classifier.engine.model.config.pooling
        return pooling

    def explain(self, content: bytes) -> Answer:
        """Return what a picture file shows, or why it cannot be read."""
        with self._busy:
            try:
                picture = self._read(content)
            except DECODING_ERRORS as error:
                return Answer(problem=explain_problem(error))
            return self._explain(picture)

    def _read(self, content: bytes) -> PIL.Image.Image:
        with warnings.catch_warnings():
            # The limit below is the page's own.
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            image = open_picture(io.BytesIO(content))
        with image:
            width, height = image.size
            if width * height > self.max_pixels:
                raise ValueError(
                    f"it has {width * height / 1e6:.0f} megapixels, and at most "
                    f"{self.max_pixels / 1e6:g} are taken"
                )
            image.draft("RGB", (DRAFT_PIXELS, DRAFT_PIXELS))
            return decode_rgb(image)

    def _explain(self, picture: PIL.Image.Image) -> Answer:
        (prediction,) = self.classifier.stream([picture], self.top_k)
        if prediction.problem:
            return Answer(problem=prediction.problem)
        pixels = resize_picture(picture, self._size, self._resample)[None]
        engine = self.classifier.engine
        inputs = self._normalizer.prepare(pixels.to(engine.device))
        inputs["pixel_values"] = inputs["pixel_values"].to(engine.dtype)
        (saliency,) = compute_saliency(engine.model, inputs)
        nearest = []
        if self.pictures is not None:
            features = engine.extract_features(pixels)[0].cpu().numpy()
            nearest = self.pictures.find(features, self.neighbours)
        return Answer(
            results=prediction.results,
            known=prediction.known,
            overlay=draw_overlay(
                PIL.ImageOps.contain(picture, (OVERLAY_PIXELS, OVERLAY_PIXELS)), saliency
            ),
            neighbours=nearest,
        )
