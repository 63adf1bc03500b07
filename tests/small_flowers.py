"""A few real photographs for the tests, read straight out of the archive."""

import functools
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import scipy.io
import torch
from PIL import Image
from transformers import AutoTokenizer

from siglip_flowers.base.prompts import FLOWER_NAMES, canonicalize
from siglip_flowers.data.splits import ClassificationData


@functools.cache
def _read_archive(flowers_dir: Path) -> tuple[list[bytes], np.ndarray]:
    """Return all files in the order of their numbers, and their labels from 0."""
    with tarfile.open(flowers_dir / "102flowers.tgz") as archive:
        files = {
            Path(member.name).name: archive.extractfile(member).read()
            for member in archive
            if member.isfile() and member.name.endswith(".jpg")
        }
    labels = scipy.io.loadmat(flowers_dir / "imagelabels.mat")["labels"].ravel().astype(int) - 1
    return [files[name] for name in sorted(files)], labels


def read_images(flowers_dir: Path, count: int) -> list[Image.Image]:
    """Return photographs from all over the archive, in RGB."""
    files, _ = _read_archive(flowers_dir)
    chosen = np.linspace(0, len(files) - 1, count).astype(int)
    return [Image.open(io.BytesIO(files[number])).convert("RGB") for number in chosen]


def build_flowers(
    flowers_dir: Path, classes: int = 4, train: int = 16, validation: int = 5, test: int = 3
) -> ClassificationData:
    """Return the first classes with so many photographs a class in each split, shuffled."""
    files, labels = _read_archive(flowers_dir)
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(FLOWER_NAMES[:classes]))
    )
    splits = datasets.DatasetDict()
    start = 0
    for name, count in (("train", train), ("validation", validation), ("test", test)):
        chosen = np.concatenate(
            [np.flatnonzero(labels == label)[start : start + count] for label in range(classes)]
        )
        chosen = np.random.default_rng(0).permutation(chosen)
        images = [{"bytes": files[i], "path": f"image_{i + 1:05d}.jpg"} for i in chosen]
        splits[name] = datasets.Dataset.from_dict(
            {"image": images, "label": labels[chosen].tolist()},
            features=features,
            split=datasets.NamedSplit(name),
        )
        start += count
    return ClassificationData(splits, "oxford", "swapped", "a few photographs of Flowers102")


def make_rows(images: Sequence[Any]) -> datasets.Dataset:
    """Return rows of images, all of one class."""
    names = datasets.ClassLabel(names=["rose"])
    features = datasets.Features(image=datasets.Image(), label=names)
    return datasets.Dataset.from_dict(
        {"image": images, "label": [0] * len(images)}, features=features
    )


def tokenize(checkpoint: object, texts: Sequence[str]) -> torch.Tensor:
    """Return the ids (N, 16) of texts in canonical form, by a checkpoint's tokenizer alone."""
    return AutoTokenizer.from_pretrained(checkpoint)(
        [canonicalize(text.replace("-", " ")) for text in texts],
        padding="max_length",
        max_length=16,
        truncation=True,
        return_tensors="pt",
    )["input_ids"]


def draw_pixel_values(count: int, size: int = 64, seed: int = 0) -> torch.Tensor:
    """Return noise in the range of a normalized image: (count, 3, size, size) float32."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(count, 3, size, size, generator=generator) - 1
