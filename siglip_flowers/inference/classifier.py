"""Classify images with a saved classifier: the Python interface."""

import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.data.inspection import count_workers
from siglip_flowers.data.names import abbreviate
from siglip_flowers.data.pixels.tensors import get_image_size
from siglip_flowers.inference.engine import InferenceEngine
from siglip_flowers.inference.reading import ImageBatch, ImageReader, Source, is_single, name_source
from siglip_flowers.inference.sidecars import OpenSet, load_open_set, require_temperature
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.loading import load_image_processor, load_saved_classifier
from siglip_flowers.runtime.devices import resolve_device

# An accelerator wants many images at once; a processor's caches do not.
ACCELERATOR_BATCH_SIZE = 256
CPU_BATCH_SIZE = 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What was found in one image.

    Attributes:
        source: What was given to be classified.
        results: ``{"label", "score"}`` of the likeliest classes, the likeliest first.
        problem: Why the image could not be read ("" where it could); ``results`` is empty then.
        known: Whether it shows one of the known classes, by the threshold; None where the
            classifier has none.
        known_score: What was compared with the threshold; None likewise.
    """

    source: Source
    results: list[dict[str, Any]]
    problem: str = ""
    known: bool | None = None
    known_score: float | None = None


class SiglipImageClassifier:
    """A trained classifier that takes images as they are.

    Build it with :meth:`from_pretrained`. Images are paths, bytes of image files, PIL images
    or uint8 arrays (H, W), (H, W, 3) or (H, W, 4). They are decoded by threads while the model
    works, so a folder is classified at the speed of the slower of the two.

    Args:
        model: The classifier.
        processor: Its image processor.
        dtype: Number format: ``auto`` (bfloat16 where the device computes it natively, else
            float32), ``float32``, ``bfloat16``, or ``float16`` on CUDA.
        device: Where to run; the accelerator if there is one when left out.
        compile: Compile the model: a tenth faster, after seconds to a minute at the first batch.
        attn_implementation: ``eager``, ``sdpa``, ...; the fastest one when left out.
        batch_size: Images a batch; it is halved by itself where memory runs out.
        num_workers: Decoding threads; one for each usable core when left out.
        allow_urls: Whether http and https URLs are fetched.
        open_set: The score and threshold that tell images of no known class;
            :meth:`from_pretrained` takes those that lie beside the model.
        temperature: What the logits are divided by before they become scores.
    """

    def __init__(
        self,
        model: SiglipClassifier,
        processor: Any,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | int | torch.device | None = None,
        compile: bool = False,
        attn_implementation: str | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        allow_urls: bool = False,
        open_set: OpenSet | None = None,
        temperature: float = 1.0,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("num_workers", num_workers)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1.")
        resolved = resolve_device(device)
        self.engine = InferenceEngine(
            model,
            processor,
            device=resolved,
            dtype=dtype,
            compile=compile,
            attn_implementation=attn_implementation,
        )
        self.batch_size = batch_size or (
            CPU_BATCH_SIZE if resolved.type == "cpu" else ACCELERATOR_BATCH_SIZE
        )
        self.class_names = model.class_names
        self.open_set = open_set
        self.temperature = temperature
        self._reader = ImageReader(
            get_image_size(processor),
            processor.resample,
            num_workers=count_workers(num_workers),
            allow_urls=allow_urls,
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        threshold: float | Literal["fitted"] | None = "fitted",
        calibrated: bool = False,
        **options: Any,
    ) -> "SiglipImageClassifier":
        """Load a classifier from a directory or the Hub.

        Args:
            pretrained_model_name_or_path: The directory or the Hub id.
            threshold: Images that score below it show none of the known classes; ``fitted`` takes
                the threshold that lies beside the model, if there is one, and None does without. A
                number is on the scale of the fitted score, or else of the highest probability.
            calibrated: Divide the logits by the temperature that was fitted on the validation
                split, so that scores are as often right as they say. The order of classes stays.
            options: Those of the class.

        Raises:
            InputError: No trained classifier, an option that cannot be used here, or no
                temperature beside the model.
            RunError: It cannot be reached or read.
        """
        name = os.fspath(pretrained_model_name_or_path)
        if calibrated:
            options["temperature"] = require_temperature(name)
        model, processor = load_saved_classifier(name), load_image_processor(name)
        return cls(model, processor, open_set=choose_open_set(name, threshold), **options)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.engine.device

    @property
    def dtype(self) -> torch.dtype:
        """What the encoder computes in."""
        return self.engine.dtype

    def __call__(
        self,
        images: Source | Iterable[Source],
        top_k: int = 5,
        *,
        skip_corrupt_images: bool = False,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Classify one image or many, as the pipeline of transformers does.

        Args:
            images: An image, or an iterable of images.
            top_k: Number of classes returned for each, at most all.
            skip_corrupt_images: Return an empty list for an image that cannot be read.

        Returns:
            ``{"label", "score"}`` of the likeliest classes; of many images a list of such lists.

        Raises:
            RunError: Images cannot be read, unless ``skip_corrupt_images``.
        """
        single = is_single(images)
        sources = cast(Iterable[Source], [images] if single else images)
        predictions = list(self.stream(sources, top_k))
        broken = [f"{name_source(p.source)} ({p.problem})" for p in predictions if p.problem]
        if broken and not skip_corrupt_images:
            raise RunError(
                f"{len(broken)} of {len(predictions)} images cannot be read: "
                f"{abbreviate(broken)}; replace them, or pass skip_corrupt_images=True."
            )
        if broken:
            logger.warning("%d images cannot be read: %s.", len(broken), abbreviate(broken))
        results = [prediction.results for prediction in predictions]
        return results[0] if single else results

    def stream(self, images: Iterable[Source], top_k: int = 5) -> Iterator[Prediction]:
        """Yield a prediction for each image, in order; memory does not grow with their number.

        An image that cannot be read is yielded with its ``problem``.
        """
        if top_k < 1:
            raise InputError(f"--top_k is {top_k}; it must be greater than 0.")
        return self._stream(images, min(top_k, len(self.class_names)))

    def _stream(self, images: Iterable[Source], top_k: int) -> Iterator[Prediction]:
        waiting: tuple[ImageBatch, torch.Tensor] | None = None
        for batch in self._reader.read_batches(images, self.batch_size):
            computed = (batch, self._compute(batch.pixels))
            # An accelerator computes this batch while the results of the one before are read.
            if waiting is not None:
                yield from self._unpack(*waiting, top_k)
            waiting = computed
        if waiting is not None:
            yield from self._unpack(*waiting, top_k)

    def _compute(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C) on the device, behind the features where a threshold needs them."""
        if not len(pixels):
            return torch.empty(0, len(self.class_names))
        if self.open_set is None:
            return self.engine.classify(pixels)
        return self.engine.classify_with_features(pixels)

    def _unpack(self, batch: ImageBatch, outputs: torch.Tensor, top_k: int) -> Iterator[Prediction]:
        width = outputs.shape[1] - len(self.class_names)
        features, logits = outputs[:, :width], outputs[:, width:]
        top = self.engine.model.to_probabilities(logits / self.temperature).topk(top_k, dim=1)
        rows = iter(
            zip(
                top.values.tolist(),
                top.indices.tolist(),
                self._judge(features, logits),
                strict=True,
            )
        )
        for source, problem in zip(batch.sources, batch.problems, strict=True):
            if problem:
                yield Prediction(source, [], problem)
                continue
            values, labels, (known, known_score) = next(rows)
            results = [
                {"label": self.class_names[label], "score": score}
                for score, label in zip(values, labels, strict=True)
            ]
            yield Prediction(source, results, known=known, known_score=known_score)

    def _judge(
        self, features: torch.Tensor, logits: torch.Tensor
    ) -> list[tuple[bool | None, float | None]]:
        """Return for each image whether it is known, and its score."""
        if self.open_set is None or not len(logits):
            return [(None, None)] * len(logits)
        scores = self.open_set.score_images(
            features.cpu().numpy(), logits.cpu().numpy(), self.engine.model.config.activation
        )
        return [(score >= self.open_set.threshold, score) for score in scores.tolist()]


def choose_open_set(model: str, threshold: float | Literal["fitted"] | None) -> OpenSet | None:
    """Return the score and threshold to use with a model; see ``SiglipImageClassifier``."""
    if threshold is None:
        return None
    fitted = load_open_set(model)
    if threshold == "fitted":
        return fitted
    if fitted is None:
        return OpenSet("max_probability", float(threshold))
    return dataclasses.replace(fitted, threshold=float(threshold), accepted=None)
