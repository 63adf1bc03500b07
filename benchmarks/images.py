"""Images for benchmarks: photographs of full size, and a checkpoint without a download."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from benchmarks.harness import REPOSITORY
from siglip_flowers.config import DataArguments
from siglip_flowers.config.fields import check_choice, positive
from siglip_flowers.data.sources.load import load_data
from siglip_flowers.data.sources.procedural import SPECIES_COUNT, draw_flower

SHARED = REPOSITORY.parent / "shared"
FULL_SIZES = ((667, 500), (500, 667))
JPEG_QUALITY = 90
DRAWN_SIDE = 128
EVALUATED_PER_CLASS = 2


@dataclass
class SourceOptions:
    """The model and the images of a training benchmark."""

    preset: str = field(
        default="cpu",
        metadata={
            "help": "cpu: the small SigLIP on the 64-pixel photographs; gpu: SigLIP B/16 at 224 "
            "pixels with fresh weights, on full-size JPEG files that are written for the purpose."
        },
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Another checkpoint than the preset's."}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Another data set than the preset's, used as it is."}
    )
    batch_size: int | None = field(default=None, metadata={"help": "Default: 64; gpu: 256."})
    per_class: int = field(default=40, metadata={"help": "gpu: images written per class."})

    def __post_init__(self) -> None:
        check_choice("preset", self.preset, ("cpu", "gpu"))
        for name in ("batch_size", "per_class"):
            positive(name, getattr(self, name))


def fill_sources(options: SourceOptions, work_dir: Path) -> None:
    """Fill in the batch size, model and data that the preset means, where they were left out.

    For ``gpu``, a checkpoint and full-size images are written below ``work_dir``.
    """
    gpu = options.preset == "gpu"
    options.batch_size = options.batch_size or (256 if gpu else 64)
    photographs = SHARED / "flowers102-64px"
    if options.model_name_or_path is None:
        options.model_name_or_path = str(
            write_checkpoint(work_dir / "model", base_config()) if gpu else SHARED / "siglip-nano"
        )
    if options.data_dir is None and gpu:
        source = photographs if photographs.is_dir() else None
        options.data_dir = str(write_full_size(work_dir / "jpeg", source, options.per_class))
    elif options.data_dir is None:
        options.data_dir = str(photographs)


def write_full_size(folder: Path, data_dir: Path | None, per_class: int) -> Path:
    """Write an image folder of JPEG files of 667 x 500 pixels, as Flowers102 has them.

    They are photographs of ``data_dir`` enlarged, which adds no noise that would swell the files,
    or procedural images where there are none.

    Args:
        folder: Where to.
        data_dir: The original files of Flowers102 at any size, or None.
        per_class: Training images per class.
    """
    wanted = per_class + EVALUATED_PER_CLASS
    sources: list[tuple[int, int, int | None]] = []
    if data_dir is None:
        sources += [
            (species, index, None) for species in range(SPECIES_COUNT) for index in range(wanted)
        ]
    else:
        rows = load_data(DataArguments(data_dir=str(data_dir), pixel_cache=False)).splits["train"]
        counts: dict[int, int] = {}
        for number, label in enumerate(rows["label"]):
            count = counts.setdefault(label, 0)
            if count < wanted:
                sources.append((label, count, number))
                counts[label] += 1

    def write(source: tuple[int, int, int | None]) -> None:
        label, index, number = source
        image = (
            Image.fromarray(draw_flower(label, index, DRAWN_SIDE))
            if number is None
            else rows[number]["image"].convert("RGB")
        )
        split = "validation" if index < EVALUATED_PER_CLASS else "train"
        target = folder / split / f"class_{label:03d}"
        target.mkdir(parents=True, exist_ok=True)
        large = image.resize(FULL_SIZES[index % 2], resample=Image.Resampling.BICUBIC)
        large.save(target / f"{index:05d}.jpg", quality=JPEG_QUALITY)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, sources))
    return folder


def write_checkpoint(folder: Path, config: SiglipVisionConfig) -> Path:
    """Save a vision tower with fresh weights and its image processor."""
    SiglipVisionModel(config).save_pretrained(folder)
    make_processor(config.image_size).save_pretrained(folder)
    return folder


def make_processor(image_size: Any) -> SiglipImageProcessorPil:
    """Return the image processor of a released SigLIP at a size."""
    size, half = {"height": image_size, "width": image_size}, [0.5, 0.5, 0.5]
    return SiglipImageProcessorPil(size=size, image_mean=half, image_std=half)


def make_tower(
    width: int, inner: int, layers: int, heads: int, size: int, patch: int
) -> SiglipVisionConfig:
    """Return the architecture of an encoder."""
    return SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=size,
        patch_size=patch,
    )


def base_config(image_size: int = 224) -> SiglipVisionConfig:
    """Return the architecture of SigLIP B/16."""
    return make_tower(768, 3072, 12, 12, image_size, 16)


def tiny_config(image_size: int = 64) -> SiglipVisionConfig:
    """Return a SigLIP of 64 tokens at any size, so small that its input path shows."""
    return make_tower(64, 128, 2, 2, image_size, image_size // 8)


def write_random_images(folder: Path, per_class: int, size: int, seed: int = 0) -> Path:
    """Write an image folder of JPEG files, no two with the same bytes, by cheap arithmetic.

    Each is a coarse random image enlarged to ``size`` pixels, which compresses as photographs do.
    """
    generator = np.random.default_rng(seed)
    for split, count in (("train", per_class), ("validation", 1), ("test", 1)):
        for label in range(SPECIES_COUNT):
            target = folder / split / f"class_{label:03d}"
            target.mkdir(parents=True)
            for index in range(count):
                coarse = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(coarse).resize((size, size)).save(buffer, format="JPEG")
                (target / f"{index:05d}.jpg").write_bytes(buffer.getvalue())
    return folder
