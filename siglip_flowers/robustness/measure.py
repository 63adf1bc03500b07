"""Accuracy on changed images by kind and strength, and with test-time augmentation (TTA)."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from matplotlib.figure import Figure

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import write_text
from siglip_flowers.base.text import align_columns, format_csv
from siglip_flowers.data.pixels.patches import PatchBudget
from siglip_flowers.data.pixels.tensors import get_image_size
from siglip_flowers.evaluation.predict import PassOptions, count_threads, prepare_engine, run_over
from siglip_flowers.metrics.statistics import paired_bootstrap, wilson_interval
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.plots.theme import (
    MUTED_COLOR,
    TRAIN_COLOR,
    make_figure,
    save_figure,
    style_axes,
)
from siglip_flowers.robustness.corruptions import (
    CORRUPTIONS,
    KINDS,
    STRENGTHS,
    VIEWS,
    corrupt,
    crop_and_resize,
)
from siglip_flowers.runtime.prefetch import map_ahead

CLEAN, PLAIN = "clean", "plain"
COLUMNS = ("kind", "strength", "accuracy", "low", "high")
# Side of a crop, as a share of the image's.
CROP = 0.875

# {"kind", "strength", "accuracy", "low", "high"}: shares in [0, 1], ends of Wilson's interval.
RobustnessRow = dict[str, Any]
# {"name", "accuracy", "low", "high", "gain", "gain_low", "gain_high", "seconds_per_image",
# "cost"}: shares in [0, 1], cost in plain passes.
AugmentedRow = dict[str, Any]
View = Callable[[torch.Tensor], torch.Tensor]


def check_square_images(processor: Any, option: str) -> None:
    """Raise InputError for a model whose images are packed patches."""
    if isinstance(get_image_size(processor), PatchBudget):
        raise InputError(
            f"{option} changes square images, but this model takes patches of any shape (NaFlex). "
            "Leave the option out."
        )


def measure_robustness(
    model: SiglipClassifier,
    processor: Any,
    rows: datasets.Dataset,
    options: PassOptions,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
) -> list[RobustnessRow]:
    """Classify each image unchanged and changed in every way; return accuracies, clean first.

    Each image is decoded once. With several processes each takes its share of the images, and
    every process gets the whole result.

    Raises:
        InputError: A NaFlex model.
    """
    check_square_images(processor, "--robustness")
    engine = prepare_engine(model, processor, options.dtype, options.compile)
    variants = [(CLEAN, 0), *((kind, strength) for kind in kinds for strength in STRENGTHS)]
    # More threads would only compete with a model on the same cores.
    threads = 1 if engine.device.type == "cpu" else count_threads()

    def score_batch(batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Return which are right: (B, variants) bool."""
        pixels, numbers = batch["pixel_values"], batch["index"].tolist()

        def change(variant: tuple[str, int]) -> torch.Tensor:
            kind, strength = variant
            return pixels if kind == CLEAN else corrupt(pixels, kind, strength, numbers, seed)

        changed = map_ahead(change, variants, workers=threads, ahead=threads)
        predicted = [engine.classify(each).argmax(dim=1).cpu() for each in changed]
        return (torch.stack(predicted, dim=1) == batch["labels"][:, None]).numpy()

    correct = run_over(score_batch, processor, rows, options, "robustness")
    return [
        {"kind": kind, "strength": strength, **_measure_accuracy(correct[:, column])}
        for column, (kind, strength) in enumerate(variants)
    ]


def measure_augmented(
    model: SiglipClassifier,
    processor: Any,
    rows: datasets.Dataset,
    kind: str,
    options: PassOptions,
) -> list[AugmentedRow]:
    """Classify each image plainly and by the mean probabilities of its views.

    The gain is the accuracy with the views minus that without, with a paired bootstrap interval
    over the images. Seconds are those of making the views and of the model on the first process;
    decoding is not included.

    Args:
        model: The classifier.
        processor: Its image processor.
        rows: The split.
        kind: ``flip`` or ``multicrop``.
        options: How the pass runs.

    Returns:
        The plain row, then that of ``kind``.

    Raises:
        InputError: A NaFlex model.
    """
    check_square_images(processor, "--tta")
    engine = prepare_engine(model, processor, options.dtype, options.compile)
    seconds = {PLAIN: 0.0, kind: 0.0}
    counted = 0

    def classify(pixels: torch.Tensor) -> torch.Tensor:
        return model.to_probabilities(engine.classify(pixels).cpu())

    def score_batch(batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Return whether the plain and the averaged answers are right: (B, 2) bool."""
        nonlocal counted
        pixels = batch["pixel_values"]
        if not counted:
            # The first pass of all fills caches and compiles.
            classify(pixels)
        start = time.perf_counter()
        plain = classify(pixels)
        between = time.perf_counter()
        total = plain.clone()
        for view in list_views(kind, pixels.shape[-1]):
            total += classify(view(pixels))
        # The plain answer is one of those that are averaged.
        seconds[PLAIN] += between - start
        seconds[kind] += time.perf_counter() - start
        counted += len(pixels)
        answers = torch.stack([plain.argmax(dim=1), total.argmax(dim=1)], dim=1)
        return (answers == batch["labels"][:, None]).numpy()

    correct = run_over(score_batch, processor, rows, options, "test-time augmentation")
    found = []
    for column, name in enumerate((PLAIN, kind)):
        gain = paired_bootstrap(correct[:, column][None], correct[:, 0][None])
        found.append(
            {
                "name": name,
                **_measure_accuracy(correct[:, column]),
                "gain": gain.difference,
                "gain_low": gain.low,
                "gain_high": gain.high,
                "seconds_per_image": seconds[name] / max(1, counted),
                "cost": seconds[name] / seconds[PLAIN] if seconds[PLAIN] else 1.0,
            }
        )
    return found


def list_views(kind: str, side: int) -> list[View]:
    """Return the views that ``flip`` and ``multicrop`` add to the image itself.

    flip: the mirrored image. multicrop: that, and five crops (the corners and the middle).
    """
    views: list[View] = [lambda pixels: pixels.flip(-1)]
    if kind == "multicrop":
        inner = max(1, round(CROP * side))
        far, middle = side - inner, (side - inner) // 2
        for top, left in ((0, 0), (0, far), (far, 0), (far, far), (middle, middle)):
            views.append(partial(_crop, top=top, left=left, side=inner))
    return views


def _crop(pixels: torch.Tensor, top: int, left: int, side: int) -> torch.Tensor:
    return crop_and_resize(pixels.float(), top, left, side).round().clamp(0, 255).to(torch.uint8)


def _measure_accuracy(correct: np.ndarray) -> dict[str, float]:
    right, n = int(correct.sum()), len(correct)
    low, high = wilson_interval(right, n)
    return {"accuracy": right / n, "low": low, "high": high}


def summarize_robustness(rows: Sequence[RobustnessRow]) -> dict[str, float]:
    """Return the means over the kinds that were measured.

    ``clean_accuracy``; ``mean_corruption_accuracy``, the mean over kinds and strengths of the
    corruptions; ``relative_corruption_accuracy``, the same as a share of the clean one (0 for 0);
    ``mean_view_accuracy`` and ``relative_view_accuracy``, over rotation, scale and resolution.
    """
    clean = float(_find(rows, CLEAN, 0)["accuracy"])
    summary = {"clean_accuracy": clean}
    for name, kinds in (("corruption", CORRUPTIONS), ("view", VIEWS)):
        values = [row["accuracy"] for row in rows if row["kind"] in kinds]
        if values:
            mean = float(np.mean(values))
            summary[f"mean_{name}_accuracy"] = mean
            summary[f"relative_{name}_accuracy"] = mean / clean if clean else 0.0
    return summary


def format_robustness(rows: Sequence[RobustnessRow]) -> str:
    """Return a table with a row per kind and a column per strength, in percent, then the means."""
    clean = _find(rows, CLEAN, 0)
    lines = [["robustness", *(f"strength {strength}" for strength in STRENGTHS), "mean"]]
    for kind in _list_kinds(rows):
        values = [_find(rows, kind, strength)["accuracy"] for strength in STRENGTHS]
        lines.append([kind, *(f"{100 * value:.1f} %" for value in (*values, np.mean(values)))])
    summary = summarize_robustness(rows)
    text = [
        align_columns(lines),
        f"clean {100 * clean['accuracy']:.1f} % "
        f"(95 % interval {100 * clean['low']:.1f} to {100 * clean['high']:.1f})",
    ]
    for name, words in (("corruption", "corruptions"), ("view", "rotation, scale, resolution")):
        if f"mean_{name}_accuracy" in summary:
            text.append(
                f"mean over {words}: {100 * summary[f'mean_{name}_accuracy']:.1f} %, "
                f"{100 * summary[f'relative_{name}_accuracy']:.1f} % of the clean accuracy"
            )
    return "\n".join(text)


def format_augmented(rows: Sequence[AugmentedRow]) -> str:
    """Return a table: accuracy with its interval, gain in points, and cost."""
    lines = [
        ["mean probabilities", "accuracy", "95 %", "gain, points", "95 %", "ms per image", "cost"]
    ]
    for row in rows:
        gain = f"{100 * row['gain']:+.2f}"
        ends = f"{100 * row['gain_low']:+.2f} to {100 * row['gain_high']:+.2f}"
        lines.append(
            [
                row["name"],
                f"{100 * row['accuracy']:.2f} %",
                f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
                *(("", "") if row["name"] == PLAIN else (gain, ends)),
                f"{1000 * row['seconds_per_image']:.2f}",
                f"{row['cost']:.1f}x",
            ]
        )
    return align_columns(lines)


def write_robustness(rows: Sequence[RobustnessRow], directory: Path, title: str) -> None:
    """Write ``robustness.csv`` (shares in [0, 1]) and ``robustness.png``."""
    table = [COLUMNS, *([row[name] for name in COLUMNS] for row in rows)]
    write_text(directory / "robustness.csv", format_csv(table))
    save_figure(_draw(rows, title), directory / "robustness.png")


def _find(rows: Sequence[RobustnessRow], kind: str, strength: int) -> RobustnessRow:
    return next(row for row in rows if (row["kind"], row["strength"]) == (kind, strength))


def _list_kinds(rows: Sequence[RobustnessRow]) -> list[str]:
    return list(dict.fromkeys(row["kind"] for row in rows if row["kind"] != CLEAN))


def _draw(rows: Sequence[RobustnessRow], title: str) -> Figure:
    """Draw a small plot per kind: accuracy in percent by strength, with its intervals."""
    kinds = _list_kinds(rows)
    columns = min(5, len(kinds))
    height = -(-len(kinds) // columns)
    figure = make_figure(2.2 * columns + 0.6, 2.0 * height + 0.8, title)
    panels = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False).ravel()
    clean = _find(rows, CLEAN, 0)
    for axes, kind in zip(panels, kinds, strict=False):
        style_axes(axes)
        points = [clean, *(_find(rows, kind, strength) for strength in STRENGTHS)]
        value, low, high = (
            np.array([100 * point[name] for point in points])
            for name in ("accuracy", "low", "high")
        )
        places = [point["strength"] for point in points]
        axes.axhline(100 * clean["accuracy"], color=MUTED_COLOR, linewidth=0.8, linestyle="--")
        axes.fill_between(places, low, high, color=TRAIN_COLOR, alpha=0.2, linewidth=0)
        axes.plot(places, value, color=TRAIN_COLOR, marker="o", markersize=3)
        axes.set_title(kind.replace("_", " "), fontsize=9)
        axes.set_ylim(0, 100)
        axes.set_xticks((0, *STRENGTHS))
        axes.tick_params(labelsize=8)
    for axes in panels[len(kinds) :]:
        axes.set_visible(False)
    figure.supxlabel("strength (0: unchanged)", fontsize=9)
    figure.supylabel("accuracy, %, with 95 % interval", fontsize=9)
    return figure
