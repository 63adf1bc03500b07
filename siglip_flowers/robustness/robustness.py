"""Accuracy on images that are spoiled or seen otherwise, by kind and strength."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import write_text
from siglip_flowers.base.text import align_columns, format_csv
from siglip_flowers.data.pixels.patches import PatchBudget
from siglip_flowers.data.pixels.tensors import get_image_size
from siglip_flowers.evaluation.predict import PassOptions, count_threads, prepare_engine, run_over
from siglip_flowers.metrics.statistics import wilson_interval
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.plots.theme import MUTED_COLOR, TRAIN_COLOR, save_figure
from siglip_flowers.robustness.corruptions import CORRUPTIONS, KINDS, STRENGTHS, VIEWS, corrupt
from siglip_flowers.runtime.prefetch import map_ahead

CLEAN = "clean"
COLUMNS = ("kind", "strength", "accuracy", "low", "high")

# {"kind", "strength", "accuracy", "low", "high"}; shares in [0, 1], the ends are Wilson's.
RobustnessRow = dict[str, Any]


def check_square_images(processor: Any, option: str) -> None:
    """Raise InputError for a model whose images are packed patches."""
    if isinstance(get_image_size(processor), PatchBudget):
        raise InputError(
            f"{option} changes square images, and this model takes patches of any shape "
            "(NaFlex); leave the option out, or evaluate a model of one image size."
        )


def measure_robustness(
    model: SiglipClassifier,
    processor: Any,
    rows: datasets.Dataset,
    options: PassOptions,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
) -> list[RobustnessRow]:
    """Classify each image as it is and changed in every way; return accuracies, clean first.

    Each image is decoded once. With several processes each takes its share of the images, and
    every process gets the whole result. For the other arguments see
    :func:`~siglip_flowers.evaluation.predict.evaluate_split`.

    Raises:
        InputError: A NaFlex model.
    """
    check_square_images(processor, "--robustness")
    engine = prepare_engine(model, processor, options.dtype, options.compile)
    variants = [(CLEAN, 0), *((kind, strength) for kind in kinds for strength in STRENGTHS)]
    # Beside a model on the same cores, more than one thread only gets in the way.
    threads = 1 if engine.device.type == "cpu" else count_threads()

    def judge(batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Return (B, variants) bool: which are right."""
        pixels, numbers = batch["pixel_values"], batch["index"].tolist()

        def change(variant: tuple[str, int]) -> torch.Tensor:
            kind, strength = variant
            return pixels if kind == CLEAN else corrupt(pixels, kind, strength, numbers, seed)

        changed = map_ahead(change, variants, workers=threads, ahead=threads)
        named = [engine.classify(each).argmax(dim=1).cpu() for each in changed]
        return (torch.stack(named, dim=1) == batch["labels"][:, None]).numpy()

    correct = run_over(judge, processor, rows, options, "robustness")
    return [
        _measure_row(kind, strength, correct[:, column])
        for column, (kind, strength) in enumerate(variants)
    ]


def _measure_row(kind: str, strength: int, correct: np.ndarray) -> RobustnessRow:
    right, n = int(correct.sum()), len(correct)
    low, high = wilson_interval(right, n)
    return {"kind": kind, "strength": strength, "accuracy": right / n, "low": low, "high": high}


def summarize_robustness(rows: Sequence[RobustnessRow]) -> dict[str, float]:
    """Return the figures that stand for all: of a part of the kinds, those that were measured.

    ``clean_accuracy``; ``mean_corruption_accuracy``, the mean over kinds and strengths of what
    spoils an image; ``relative_corruption_accuracy``, the same as a share of the clean one (0 for
    0); ``mean_view_accuracy``, over rotation, scale and resolution.
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
    """Return a table with a row a kind and a column a strength, in percent, then the means."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows if row["kind"] != CLEAN))
    clean = _find(rows, CLEAN, 0)
    lines = [["robustness", *(f"strength {strength}" for strength in STRENGTHS), "mean"]]
    for kind in kinds:
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


def write_robustness(rows: Sequence[RobustnessRow], directory: Path, title: str) -> None:
    """Write ``robustness.csv`` (shares in [0, 1]) and ``robustness.png``."""
    table = [COLUMNS, *([row[name] for name in COLUMNS] for row in rows)]
    write_text(directory / "robustness.csv", format_csv(table))
    save_figure(_draw(rows, title), directory / "robustness.png")


def _find(rows: Sequence[RobustnessRow], kind: str, strength: int) -> RobustnessRow:
    return next(row for row in rows if (row["kind"], row["strength"]) == (kind, strength))


def _draw(rows: Sequence[RobustnessRow], title: str) -> Figure:
    """Draw a small plot a kind: accuracy in percent by strength, with its intervals."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows if row["kind"] != CLEAN))
    columns = min(5, len(kinds))
    height = -(-len(kinds) // columns)
    figure = Figure(figsize=(2.2 * columns + 0.6, 2.0 * height + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, parse_math=False)
    panels = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False).ravel()
    clean = _find(rows, CLEAN, 0)
    for axes, kind in zip(panels, kinds, strict=False):
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
        axes.grid(True, color="#E3E3E3", linewidth=0.6)
        axes.tick_params(labelsize=8)
    for axes in panels[len(kinds) :]:
        axes.set_visible(False)
    figure.supxlabel("strength (0: as it is)", fontsize=9)
    figure.supylabel("accuracy, %, with 95 % interval", fontsize=9)
    return figure
