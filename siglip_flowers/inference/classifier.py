"""Classify images with a saved classifier: the Python interface."""

import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.paths import enter_run
from siglip_flowers.base.text import abbreviate, count
from siglip_flowers.data.pixels.tensors import read_form
from siglip_flowers.inference.engine import InferenceEngine
from siglip_flowers.inference.reading import ImageBatch, ImageReader, Source, is_single, name_source
from siglip_flowers.inference.sidecars import (
    CALIBRATION_FILE,
    OodDetector,
    load_ood_detector,
    load_temperature,
)
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.loading import load_image_processor, load_saved_classifier
from siglip_flowers.runtime.devices import count_cores, resolve_device

# An accelerator is fastest with many images at once; a CPU with as many as its caches hold.
ACCELERATOR_BATCH_SIZE = 256
CPU_BATCH_SIZE = 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """The result for one image.

    Attributes:
        source: The image as it was given.
        results: ``{"label", "score"}`` of the most probable classes, the most probable first.
        problem: Why the image could not be read, with empty ``results``; "" if it could.
        known: Whether it shows one of the known classes, by the OOD threshold; None without one.
        known_score: The score that was compared with the threshold; None without one.
    """

    source: Source
    results: list[dict[str, Any]]
    problem: str = ""
    known: bool | None = None
    known_score: float | None = None


class SiglipImageClassifier:
    """A trained classifier for images of any size and format.

    Build it with :meth:`from_pretrained`. Images are paths, bytes of image files, PIL images
    or uint8 arrays (H, W), (H, W, 3) or (H, W, 4). They are decoded by threads while the model
    runs, so a folder is classified at the speed of the slower of the two.

    Args:
        model: The classifier.
        processor: Its image processor.
        dtype: ``auto`` (bfloat16 if the device computes it natively, else float32), ``float32``,
            ``bfloat16``, or ``float16`` on CUDA.
        device: Where to run; default: the accelerator if there is one.
        attn_implementation: ``eager``, ``sdpa``, ...; default: the fastest one.
        batch_size: Images per batch; halved automatically when memory runs out.
        num_workers: Decoding threads; default: one per usable core.
        allow_urls: Whether http and https URLs are fetched.
        ood_detector: Score and threshold that detect images of no known class;
            :meth:`from_pretrained` loads the model's own.
        temperature: The logits are divided by it before they become scores.
    """

    def __init__(
        self,
        model: SiglipClassifier,
        processor: Any,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | int | torch.device | None = None,
        attn_implementation: str | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        allow_urls: bool = False,
        ood_detector: OodDetector | None = None,
        temperature: float = 1.0,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("num_workers", num_workers)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1.")
        resolved = resolve_device(device)
        self.engine = InferenceEngine(
            model, processor, device=resolved, dtype=dtype, attn_implementation=attn_implementation
        )
        self.batch_size = batch_size or (
            CPU_BATCH_SIZE if resolved.type == "cpu" else ACCELERATOR_BATCH_SIZE
        )
        self.class_names = model.class_names
        self.ood_detector = ood_detector
        self.temperature = temperature
        self._reader = ImageReader(
            read_form(processor), num_workers=num_workers or count_cores(), allow_urls=allow_urls
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
            pretrained_model_name_or_path: The directory of a model or of its run, or the Hub id.
            threshold: Images that score lower are reported as none of the known classes. ``fitted``
                uses the model's own threshold, if it has one; None uses none. A number is on the
                scale of the fitted score, or of the highest probability if there is none.
            calibrated: Divide the logits by the temperature that was fitted on the validation
                split, so that scores match accuracy. The order of the classes does not change.
            options: Those of the class.

        Raises:
            InputError: Not a trained classifier, an option that cannot be used here, or no
                temperature beside the weights.
            RunError: It, or a file beside it, cannot be reached or read.
        """
        name = enter_run(os.fspath(pretrained_model_name_or_path))
        model, processor = load_saved_classifier(name), load_image_processor(name)
        if calibrated:
            options["temperature"] = load_temperature(name)
            if options["temperature"] is None:
                raise InputError(
                    f"The model {name} has no {CALIBRATION_FILE} with the temperature for "
                    "calibrated scores. Remove --calibrated, or train the model again."
                )
        width = model.config.vision_config.hidden_size
        detector = None if threshold is None else load_ood_detector(name, width)
        if threshold is not None and threshold != "fitted":
            known = detector or OodDetector("max_probability", 0.0)
            detector = dataclasses.replace(known, threshold=float(threshold), accepted=None)
        return cls(model, processor, ood_detector=detector, **options)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.engine.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the encoder."""
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
            top_k: The number of classes to return for each.
            skip_corrupt_images: Return an empty list for an image that cannot be read.

        Returns:
            ``{"label", "score"}`` of the most probable classes; for many images a list of such
            lists.

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
            number = count(len(broken), "image")
            logger.warning("%s cannot be read: %s.", number, abbreviate(broken))
        results = [prediction.results for prediction in predictions]
        return results[0] if single else results

    def stream(self, images: Iterable[Source], top_k: int = 5) -> Iterator[Prediction]:
        """Yield a prediction per image, in order; memory does not grow with their number.

        An image that cannot be read is yielded with its ``problem``.
        """
        if top_k < 1:
            raise InputError(f"top_k is {top_k}; it must be at least 1.")
        return self._stream(images, min(top_k, len(self.class_names)))

    def _stream(self, images: Iterable[Source], top_k: int) -> Iterator[Prediction]:
        waiting: tuple[ImageBatch, torch.Tensor] | None = None
        for batch in self._reader.read_batches(images, self.batch_size):
            outputs = torch.empty(0, len(self.class_names))
            if len(batch.pixels):
                outputs = self.engine.classify_with_features(batch.pixels)
            computed = (batch, outputs)
            # An accelerator computes this batch while the results of the previous one are read.
            if waiting is not None:
                yield from self._unpack(*waiting, top_k)
            waiting = computed
        if waiting is not None:
            yield from self._unpack(*waiting, top_k)

    def _unpack(self, batch: ImageBatch, outputs: torch.Tensor, top_k: int) -> Iterator[Prediction]:
        width = outputs.shape[1] - len(self.class_names)
        features, logits = outputs[:, :width], outputs[:, width:]
        if not logits.isfinite().all():
            raise RunError("The logits are not finite. Use --dtype float32, or another model.")
        top = self.engine.model.to_probabilities(logits / self.temperature).topk(top_k, dim=1)
        known = self._score(features, logits)
        rows = zip(top.values.tolist(), top.indices.tolist(), known, strict=True)
        for source, problem in zip(batch.sources, batch.problems, strict=True):
            if problem:
                yield Prediction(source, [], problem)
                continue
            values, labels, (is_known, score_of_known) = next(rows)
            results = [
                {"label": self.class_names[label], "score": score}
                for score, label in zip(values, labels, strict=True)
            ]
            yield Prediction(source, results, known=is_known, known_score=score_of_known)

    def _score(
        self, features: torch.Tensor, logits: torch.Tensor
    ) -> list[tuple[bool | None, float | None]]:
        """Return for each image whether its class is known, and its OOD score."""
        if self.ood_detector is None or not len(logits):
            return [(None, None)] * len(logits)
        scores = self.ood_detector.score_images(
            features.cpu().numpy(), logits.cpu().numpy(), self.engine.model.config.activation
        )
        return [(score >= self.ood_detector.threshold, score) for score in scores.tolist()]
