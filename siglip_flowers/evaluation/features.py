"""Encode every image once: the pooled features of a frozen encoder, kept on disk."""

import hashlib
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import datasets
import numpy as np
import PIL
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from tqdm.auto import tqdm

from siglip_flowers.base.errors import RunError
from siglip_flowers.config import DataArguments, SiglipTrainingArguments
from siglip_flowers.data.augmentation import BatchAugmenter, uniform_numbers
from siglip_flowers.data.inspection import count_workers
from siglip_flowers.data.pixels.array_cache import (
    ArrayEntry,
    find_array,
    locate_cache,
    open_array,
    state_disk_use,
)
from siglip_flowers.data.pixels.cache import open_pixels
from siglip_flowers.data.pixels.fingerprint import fingerprint_images
from siglip_flowers.data.pixels.tensors import (
    ImageSize,
    PixelBatch,
    PixelNormalizer,
    collate_pixels,
    get_image_size,
    get_pixel_shape,
)
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.towers import run_vision_tower
from siglip_flowers.runtime.memory import run_in_parts
from siglip_flowers.runtime.prefetch import map_ahead

# Facts of a vision tower's configuration that change what its weights compute.
TOWER_FACTS = ("hidden_act", "layer_norm_eps", "num_attention_heads", "patch_size", "image_size")
READERS = 4

logger = logging.getLogger(__name__)


def list_poolings(model: SiglipClassifier) -> tuple[str, ...]:
    """Return the poolings that one pass of the model's tower gives, in the order of features."""
    return ("map", "mean") if model.vision_model.use_head else ("mean",)


def digest_weights(module: nn.Module) -> str:
    """Return a digest of a module's parameters and buffers: names, shapes, types and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        values = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(memoryview(values.numpy()))
    return digest.hexdigest()


class FeatureExtractor:
    """Gives the features of a data set, computing them where the cache does not hold them.

    Features are those that training with a frozen encoder sees, computed under the same autocast.

    Args:
        model: The encoder; only its vision tower is used, and lies on the device from then on.
        processor: Its image processor.
        data: Where the cache is and how images are decoded.
        training: Device, number format and batch size.
    """

    def __init__(
        self,
        model: SiglipClassifier,
        processor: Any,
        data: DataArguments,
        training: SiglipTrainingArguments,
    ) -> None:
        self.model = model
        self.data = data
        self.poolings = list_poolings(model)
        self.width: int = model.config.vision_config.hidden_size
        self.size, self.resample = get_image_size(processor), processor.resample
        self.normalizer = PixelNormalizer(processor)
        self.device: torch.device = training.device
        self.batch_size: int = training.per_device_eval_batch_size
        self._largest_batch: int | None = None
        self.autocast_dtype = (
            torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None
        )
        config = model.config.vision_config
        self.facts: dict[str, Any] = {
            "weights": digest_weights(model.vision_model),
            # A NaFlex tower has no image_size.
            "tower": {name: getattr(config, name, None) for name in TOWER_FACTS},
            "poolings": list(self.poolings),
            "attention": config._attn_implementation,
            "autocast": str(self.autocast_dtype),
            "tf32": bool(training.tf32),
            "device": self.device.type,
            "resample": int(self.resample),
            "mean": list(self.normalizer.mean),
            "std": list(self.normalizer.std),
            "rescale_factor": self.normalizer.rescale_factor,
            "pillow": PIL.__version__,
        }
        # Images that the tower saw, in all processes.
        self.encoded = 0
        model.vision_model.eval().to(self.device)  # type: ignore[arg-type]

    def open(
        self,
        rows: datasets.Dataset,
        name: str,
        *,
        augmenter: BatchAugmenter | None = None,
        pixel_size: ImageSize | None = None,
        view: int = 0,
    ) -> np.ndarray:
        """Return the features of all rows: (N, P, D) float32, a memory map where there is room.

        Args:
            rows: A data set with the columns ``image`` and ``label``.
            name: What the progress bar calls the images.
            augmenter: Varies the images; None encodes them as they are.
            pixel_size: Size that images to be varied are decoded to.
            view: Number of the variation: the one that training sees in the step of this number.

        Raises:
            RunError: One image is too much for the memory.
        """
        key = {**self.facts, "images": fingerprint_images(rows)}
        key["size"] = list(get_pixel_shape(self.size))
        if augmenter is not None:
            arguments = dict(vars(augmenter.arguments))
            pixels = list(get_pixel_shape(pixel_size or self.size))
            key["view"] = {"number": view, "seed": augmenter.seed, "pixels": pixels}
            key["augmentation"] = arguments
        entry = ArrayEntry(
            kind="features",
            key=key,
            shape=(len(rows), len(self.poolings), self.width),
            dtype="float32",
        )
        directory = locate_cache(self.data)
        found = find_array(directory, entry)
        # All processes encode, or none: they divide the images among them.
        if all(gather_object([found is not None])):
            assert found is not None
            return found

        def encode() -> np.ndarray:
            return self._encode_all(rows, name, augmenter, pixel_size or self.size, view)

        if PartialState().num_processes > 1:
            if PartialState().is_main_process:
                state_disk_use(directory, entry)
            features = encode()
            stored = open_array(
                directory, entry, lambda array: np.copyto(array, features), quiet=True
            )
            return features if stored is None else stored
        # Within the lock of the cache, so that a second run waits instead of encoding as well.
        stored = open_array(directory, entry, lambda array: np.copyto(array, encode()))
        return encode() if stored is None else stored

    def _encode_all(
        self,
        rows: datasets.Dataset,
        name: str,
        augmenter: BatchAugmenter | None,
        pixel_size: ImageSize,
        view: int,
    ) -> np.ndarray:
        """Encode this process's share of the rows and gather the others'."""
        state = PartialState()
        pixels = open_pixels(rows, pixel_size, self.resample, self.data)
        share = np.array_split(np.arange(len(rows)), state.num_processes)[state.process_index]
        # A process without rows still has an array to gather.
        parts = [np.empty((0, len(self.poolings), self.width), dtype=np.float32)]
        pin = self.device.type == "cuda"

        def read(start: int) -> PixelBatch:
            numbers = share[start : start + self.batch_size].tolist()
            batch = collate_pixels(pixels.__getitems__(numbers))
            if pin:
                batch["pixel_values"] = batch["pixel_values"].pin_memory()
            return batch

        workers = max(1, min(READERS, count_workers(self.data.image_workers)))
        starts = range(0, len(share), self.batch_size)
        with tqdm(
            total=len(share),
            desc=f"encoding {name}",
            unit="img",
            leave=False,
            disable=not state.is_main_process or None,
        ) as bar:
            for batch in map_ahead(read, starts, workers=workers, ahead=workers + 1):
                inputs = batch.to(self.device).wait()["pixel_values"]
                if augmenter is not None:
                    inputs, _ = augmenter(inputs, batch["labels"], batch["index"], view)
                parts.append(self.encode(inputs).cpu().numpy())
                bar.update(len(inputs))
        gathered: list[np.ndarray] = gather_object(parts)
        self.encoded += len(rows)
        return np.concatenate(gathered)

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels, uint8 or on the 0..255 scale, to features (B, P, D) float32.

        In halves where a batch is too large for the memory, from then on at once.
        """
        size = self._largest_batch or len(pixels)
        features, fitted = run_in_parts(
            lambda part, _: self._run_tower(self.normalizer.prepare(part)),
            pixels,
            size,
            lambda size: (
                None
                if size > 1
                else RunError("There is too little memory to encode a single image.")
            ),
        )
        if fitted < size:
            self._largest_batch = fitted
            logger.warning("Memory ran out; encoding %d images at once.", fitted)
        return features

    def _run_tower(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with self._autocast():
            pooled = run_vision_tower(self.model.vision_model, **inputs)
        found = [features.float() for features in pooled if features is not None]
        return torch.stack(found, dim=1)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self.autocast_dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)


class FeatureDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Features of images in the place of the images.

    A batch is ``features`` (B, P, D) float32, ``labels`` (B,) and ``index`` (B,) int64.

    Args:
        views: One array (N, P, D) float32 or several, of which an epoch sees one for each row.
        labels: N class numbers.
        columns: The poolings to give, as positions in P.
        seed: Seed of the view that a row begins with.
    """

    def __init__(
        self, views: Sequence[np.ndarray], labels: np.ndarray, columns: Sequence[int], seed: int = 0
    ) -> None:
        self.views = list(views)
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        self.columns = list(columns)
        self.epoch = 0
        numbers = uniform_numbers(seed, 0, np.arange(len(self.labels)), 1)[:, 0]
        self.first_view = (numbers * len(self.views)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return a batch, gathered at once."""
        rows = np.asarray(indices, dtype=np.int64)
        index = torch.from_numpy(rows)
        return {
            "features": torch.from_numpy(self.gather(rows)),
            "labels": self.labels[index],
            "index": index,
        }

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return the features of rows as this epoch sees them: (B, P, D) float32."""
        if len(self.views) == 1:
            return np.ascontiguousarray(self.views[0][rows][:, self.columns])
        # Every row goes through all its views before one of them returns.
        chosen = (self.first_view[rows] + self.epoch) % len(self.views)
        picked = [self.views[view][row] for view, row in zip(chosen, rows, strict=True)]
        return np.stack(picked)[:, self.columns]


def collate_features(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a batch, which ``FeatureDataset`` reads as one."""
    return batch
