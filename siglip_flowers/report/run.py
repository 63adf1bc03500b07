"""From one pass over a split to its report."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState

from siglip_flowers.config import DataArguments
from siglip_flowers.evaluation.fitting import classify_images
from siglip_flowers.evaluation.predict import PassOptions, SplitResult, extract_features
from siglip_flowers.inference.sidecars import load_ood_detector, load_temperature
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.report.analysis import analyze
from siglip_flowers.report.attention import choose_attention_rows, draw_attention
from siglip_flowers.report.contents import ReportContents
from siglip_flowers.report.duplicates import EncodedRows, OtherSplit
from siglip_flowers.report.images import SplitImages
from siglip_flowers.report.unknowns import measure_unknowns

# Neighbors are looked for among these; more would cost another pass over the training split.
TRAIN_IMAGES = 510


@dataclass(frozen=True)
class Subject:
    """What is reported on.

    Attributes:
        model: The classifier.
        processor: Its image processor.
        name: The model's directory or id.
        fitted: Whether a temperature and class means may lie beside it.
        splits: All splits, with the model's class numbers.
        data_arguments: Where they come from.
        batch_size: Images classified at once.
        unknown_dir: A folder with images of no class; None without one.
        dtype: What the pass over the split computed in, and everything that is compared with it.
    """

    model: SiglipClassifier
    processor: Any
    name: str
    fitted: bool
    splits: Mapping[str, datasets.Dataset]
    data_arguments: DataArguments
    batch_size: int
    unknown_dir: str | None = None
    dtype: str = "float32"


def build_report(
    subject: Subject,
    result: SplitResult,
    *,
    title: str,
    description: str,
    command: str,
    environment: Mapping[str, Any],
) -> ReportContents | None:
    """Work out the report of one pass over a split; every process calls it, the first gets it.

    Raises:
        InputError: A damaged file beside the model.
        RunError: Logits that are not finite.
    """
    start = time.perf_counter()
    train = None if result.split == "train" else _encode_training(subject)
    encoding = time.perf_counter() - start
    if not PartialState().is_main_process:
        return None
    images = {
        name: SplitImages(rows, subject.processor, subject.data_arguments)
        for name, rows in subject.splits.items()
    }
    others = {
        name: OtherSplit(
            subject.splits[name],
            other,
            partial(_encode_rows, subject, other),
            train if name == "train" else None,
        )
        for name, other in images.items()
        if name != result.split
    }
    contents = analyze(
        result,
        images[result.split],
        others,
        title=title,
        model=subject.name,
        description=description,
        command=command,
        environment=environment,
        class_names=subject.model.class_names,
        activation=subject.model.config.activation,
        temperature=load_temperature(subject.name) if subject.fitted else None,
    )
    start = time.perf_counter()
    fitted = load_ood_detector(subject.name) if subject.fitted else None
    unknowns = measure_unknowns(
        subject.model,
        subject.processor,
        result,
        None if train is None else train.features,
        fitted,
        subject.unknown_dir,
        subject.dtype,
    )
    unknown = time.perf_counter() - start
    start = time.perf_counter()
    attention = draw_attention(
        subject.model,
        subject.processor,
        images[result.split],
        choose_attention_rows(contents),
        PartialState().device,
    )
    seconds = {
        **contents.seconds,
        "unknown images": encoding + unknown,
        "attention": time.perf_counter() - start,
    }
    return dataclasses.replace(
        contents,
        unknowns=unknowns,
        attention=attention,
        trained_on=subject.fitted and result.split == "train",
        seconds=seconds,
    )


def _encode_training(subject: Subject) -> EncodedRows:
    """Return features of a sample of the training split, each process encoding its share."""
    rows = subject.splits["train"]
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:TRAIN_IMAGES])
    features = extract_features(
        subject.model,
        subject.processor,
        rows.select(chosen),
        PassOptions(subject.batch_size, dtype=subject.dtype, data_arguments=subject.data_arguments),
    )
    return EncodedRows(chosen, features)


def _encode_rows(subject: Subject, images: SplitImages, rows: Sequence[int]) -> np.ndarray:
    """Return the features of a few images, in this process alone."""
    read = images.read(rows)
    return classify_images(subject.model, subject.processor, read, subject.dtype)[0]
