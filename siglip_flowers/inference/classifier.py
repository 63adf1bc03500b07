"""Classify pictures with a saved classifier: the Python interface."""

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch

from siglip_flowers.data.inspection import count_workers
from siglip_flowers.data.names import abbreviate
from siglip_flowers.data.pixels import get_picture_size
from siglip_flowers.errors import InputError, RunError
from siglip_flowers.inference.engine import InferenceEngine
from siglip_flowers.inference.precision import resolve_device
from siglip_flowers.inference.reading import PictureBatch, PictureReader
from siglip_flowers.inference.sources import Source, is_single, name_source
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.loading import load_image_processor, load_saved_classifier

# An accelerator wants many pictures at once; a processor's caches do not.
ACCELERATOR_BATCH_SIZE = 256
CPU_BATCH_SIZE = 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What was found in one picture.

    Attributes:
        source: What was given to be classified.
        results: ``{"label", "score"}`` of the likeliest classes, the likeliest first.
        problem: Why the picture could not be read ("" where it could); ``results`` is empty then.
    """

    source: Source
    results: list[dict[str, Any]]
    problem: str = ""


class FlowerClassifier:
    """A trained classifier that takes pictures as they are.

    Build it with :meth:`from_pretrained`. Pictures are paths, bytes of picture files, PIL pictures
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
        batch_size: Pictures a batch; it is halved by itself where memory runs out.
        num_workers: Decoding threads; one for each usable core when left out.
        allow_urls: Whether http and https URLs are fetched.
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
        self._reader = PictureReader(
            get_picture_size(processor),
            processor.resample,
            num_workers=count_workers(num_workers),
            allow_urls=allow_urls,
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any
    ) -> "FlowerClassifier":
        """Load a classifier from a directory or the Hub; the options are those of the class.

        Raises:
            InputError: No trained classifier, or an option that cannot be used here.
            RunError: It cannot be reached or read.
        """
        name = os.fspath(pretrained_model_name_or_path)
        return cls(load_saved_classifier(name), load_image_processor(name), **options)

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
        """Classify one picture or many, as the pipeline of transformers does.

        Args:
            images: A picture, or an iterable of pictures.
            top_k: Number of classes returned for each, at most all.
            skip_corrupt_images: Return an empty list for a picture that cannot be read.

        Returns:
            ``{"label", "score"}`` of the likeliest classes; of many pictures a list of such lists.

        Raises:
            RunError: Pictures cannot be read, unless ``skip_corrupt_images``.
        """
        single = is_single(images)
        sources = cast(Iterable[Source], [images] if single else images)
        predictions = list(self.stream(sources, top_k))
        broken = [f"{name_source(p.source)} ({p.problem})" for p in predictions if p.problem]
        if broken and not skip_corrupt_images:
            raise RunError(
                f"{len(broken)} of {len(predictions)} pictures cannot be read: "
                f"{abbreviate(broken)}; replace them, or pass skip_corrupt_images=True."
            )
        if broken:
            logger.warning("%d pictures cannot be read: %s.", len(broken), abbreviate(broken))
        results = [prediction.results for prediction in predictions]
        return results[0] if single else results

    def stream(self, images: Iterable[Source], top_k: int = 5) -> Iterator[Prediction]:
        """Yield a prediction for each picture, in order; memory does not grow with their number.

        A picture that cannot be read is yielded with its ``problem``.
        """
        if top_k < 1:
            raise InputError(f"--top_k is {top_k}; it must be greater than 0.")
        return self._stream(images, min(top_k, len(self.class_names)))

    def _stream(self, images: Iterable[Source], top_k: int) -> Iterator[Prediction]:
        waiting: tuple[PictureBatch, torch.Tensor, torch.Tensor] | None = None
        for batch in self._reader.read_batches(images, self.batch_size):
            computed = (batch, *self._rank(batch.pixels, top_k))
            # An accelerator computes this batch while the results of the one before are read.
            if waiting is not None:
                yield from self._unpack(*waiting)
            waiting = computed
        if waiting is not None:
            yield from self._unpack(*waiting)

    def _rank(self, pixels: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not len(pixels):
            return torch.empty(0, top_k), torch.empty(0, top_k, dtype=torch.int64)
        scores = self.engine.model.to_probabilities(self.engine.classify(pixels))
        top = scores.topk(top_k, dim=1)
        return top.values, top.indices

    def _unpack(
        self, batch: PictureBatch, scores: torch.Tensor, indices: torch.Tensor
    ) -> Iterator[Prediction]:
        rows = iter(zip(scores.tolist(), indices.tolist(), strict=True))
        for source, problem in zip(batch.sources, batch.problems, strict=True):
            if problem:
                yield Prediction(source, [], problem)
                continue
            values, labels = next(rows)
            results = [
                {"label": self.class_names[label], "score": score}
                for score, label in zip(values, labels, strict=True)
            ]
            yield Prediction(source, results)
