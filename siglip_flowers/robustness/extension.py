"""Accuracy on changed images, and with test-time augmentation (TTA), in an evaluation."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.text import align_columns
from siglip_flowers.data.pixels.patches import PatchBudget
from siglip_flowers.data.pixels.tensors import read_form
from siglip_flowers.evaluation.predict import prepare_engine, run_over
from siglip_flowers.evaluation.run import Evaluation, EvaluationExtension
from siglip_flowers.metrics.bootstrap import accuracy_interval
from siglip_flowers.metrics.statistics import paired_bootstrap
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

CLEAN, PLAIN = "clean", "plain"
# Side of a crop, as a share of the image's.
CROP = 0.875

# {"kind", "strength", "accuracy", "low", "high"}: shares in [0, 1].
RobustnessRow = dict[str, Any]
# {"name", "accuracy", "low", "high", "gain", "gain_low", "gain_high", "cost"}: shares in [0, 1],
# cost in passes.
AugmentedRow = dict[str, Any]
View = Callable[[torch.Tensor], torch.Tensor]


class Extension(EvaluationExtension):
    """Fills ``figures["robustness"]`` and ``figures["augmented"]`` on request."""

    def check(self, evaluation: Evaluation) -> None:
        """Refuse a model whose images are packed patches."""
        if isinstance(read_form(evaluation.processor).size, PatchBudget):
            raise InputError(
                "--robustness and --tta change square images, but this model takes patches of any "
                "shape (NaFlex). Remove the option."
            )

    def measure(self, evaluation: Evaluation) -> None:
        """Run the passes over changed images."""
        if self.options.robustness:
            rows = measure_robustness(evaluation)
            evaluation.figures["robustness"] = {**summarize_robustness(rows), "rows": rows}
        if self.options.tta != "none":
            evaluation.figures["augmented"] = measure_augmented(evaluation, self.options.tta)

    def write(self, evaluation: Evaluation) -> None:
        """Print the tables, and draw robustness into --output_dir."""
        figures, output_dir = evaluation.figures, evaluation.options.output_dir
        if "robustness" in figures:
            print(f"\n{format_robustness(figures['robustness'])}")
            if output_dir is not None:
                rows = figures["robustness"]["rows"]
                save_figure(_draw(rows, evaluation.title), Path(output_dir) / "robustness.png")
        if "augmented" in figures:
            print(f"\n{format_augmented(figures['augmented'])}")


def measure_robustness(evaluation: Evaluation, kinds: Sequence[str] = KINDS) -> list[RobustnessRow]:
    """Classify each image unchanged and changed in every way; return accuracies, clean first.

    Each image is decoded once. With several processes each takes its share of the images, and
    every process gets the whole result.
    """
    options = evaluation.pass_options
    engine = prepare_engine(evaluation.model, evaluation.processor, options.dtype)
    variants = [(CLEAN, 0), *((kind, strength) for kind in kinds for strength in STRENGTHS)]

    def score_batch(batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Return which are right: (B, variants) bool."""
        pixels, numbers = batch["pixel_values"], batch["index"].tolist()
        predicted = []
        for kind, strength in variants:
            changed = pixels if kind == CLEAN else corrupt(pixels, kind, strength, numbers)
            predicted.append(engine.classify(changed).argmax(dim=1).cpu())
        return (torch.stack(predicted, dim=1) == batch["labels"][:, None]).numpy()

    correct = run_over(score_batch, evaluation.processor, evaluation.rows, options, "robustness")
    return [
        {
            "kind": kind,
            "strength": strength,
            **_measure_accuracy(correct[:, column], evaluation.rows["label"]),
        }
        for column, (kind, strength) in enumerate(variants)
    ]


def measure_augmented(evaluation: Evaluation, kind: str) -> list[AugmentedRow]:
    """Classify each image plainly and by the mean probabilities of its views.

    The gain is the accuracy with the views minus that without, with a paired bootstrap interval
    over the images; the cost is the number of passes.

    Args:
        evaluation: What is evaluated.
        kind: ``flip`` or ``multicrop``.

    Returns:
        The plain row, then that of ``kind``.
    """
    model, options = evaluation.model, evaluation.pass_options
    engine = prepare_engine(model, evaluation.processor, options.dtype)
    size = read_form(evaluation.processor).size
    assert isinstance(size, int)
    views = list_views(kind, size)

    def classify(pixels: torch.Tensor) -> torch.Tensor:
        return model.to_probabilities(engine.classify(pixels).cpu())

    def score_batch(batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Return whether the plain and the averaged answers are right: (B, 2) bool."""
        pixels = batch["pixel_values"]
        plain = classify(pixels)
        # The plain answer is one of those that are averaged.
        total = plain + sum(classify(view(pixels)) for view in views)
        answers = torch.stack([plain.argmax(dim=1), total.argmax(dim=1)], dim=1)
        return (answers == batch["labels"][:, None]).numpy()

    correct = run_over(
        score_batch, evaluation.processor, evaluation.rows, options, "test-time augmentation"
    )
    found = []
    for column, (name, cost) in enumerate(((PLAIN, 1), (kind, 1 + len(views)))):
        gain = paired_bootstrap(correct[:, column][None], correct[:, 0][None])
        found.append(
            {
                "name": name,
                **_measure_accuracy(correct[:, column], evaluation.rows["label"]),
                "gain": gain.difference,
                "gain_low": gain.low,
                "gain_high": gain.high,
                "cost": cost,
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


def _measure_accuracy(correct: np.ndarray, labels: Sequence[int]) -> dict[str, float]:
    sizes = np.bincount(labels)
    right = np.bincount(labels, weights=correct)
    low, high = accuracy_interval(right, sizes)
    return {"accuracy": int(correct.sum()) / len(correct), "low": low, "high": high}


def summarize_robustness(rows: Sequence[RobustnessRow]) -> dict[str, float]:
    """Return the means over kinds and strengths.

    ``clean_accuracy``; ``mean_corruption_accuracy``, the mean over kinds and strengths of the
    corruptions; ``relative_corruption_accuracy``, the same as a share of the clean one (0 for 0);
    ``mean_view_accuracy`` and ``relative_view_accuracy``, over rotation, scale and resolution.
    """
    clean = float(rows[0]["accuracy"])
    summary = {"clean_accuracy": clean}
    for name, kinds in (("corruption", CORRUPTIONS), ("view", VIEWS)):
        mean = float(np.mean([row["accuracy"] for row in rows if row["kind"] in kinds]))
        summary[f"mean_{name}_accuracy"] = mean
        summary[f"relative_{name}_accuracy"] = mean / clean if clean else 0.0
    return summary


def format_robustness(found: Mapping[str, Any]) -> str:
    """Return a table with a row per kind and a column per strength, in percent, then the means.

    found: What :func:`summarize_robustness` returns, and its ``rows``.
    """
    clean = found["rows"][0]
    lines = [["robustness", *(f"strength {strength}" for strength in STRENGTHS), "mean"]]
    for kind, rows in _group_kinds(found["rows"]).items():
        values = [row["accuracy"] for row in rows]
        lines.append([kind, *(f"{100 * value:.1f}%" for value in (*values, np.mean(values)))])
    text = [
        align_columns(lines),
        f"clean {100 * clean['accuracy']:.1f}% "
        f"(95% interval {100 * clean['low']:.1f} to {100 * clean['high']:.1f})",
    ]
    for name, words in (("corruption", "corruptions"), ("view", "rotation, scale, resolution")):
        mean, share = found[f"mean_{name}_accuracy"], found[f"relative_{name}_accuracy"]
        text.append(
            f"mean over {words}: {100 * mean:.1f}%, {100 * share:.1f}% of the clean accuracy"
        )
    return "\n".join(text)


def format_augmented(rows: Sequence[AugmentedRow]) -> str:
    """Return a table: accuracy with its interval, gain in points, and cost."""
    lines = [["mean probabilities", "accuracy", "95%", "gain, points", "95%", "passes"]]
    for row in rows:
        gain = f"{100 * row['gain']:+.2f}"
        ends = f"{100 * row['gain_low']:+.2f} to {100 * row['gain_high']:+.2f}"
        lines.append(
            [
                row["name"],
                f"{100 * row['accuracy']:.2f}%",
                f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
                *(("", "") if row["name"] == PLAIN else (gain, ends)),
                str(row["cost"]),
            ]
        )
    return align_columns(lines)


def _group_kinds(rows: Sequence[RobustnessRow]) -> dict[str, list[RobustnessRow]]:
    """Return the rows of each kind, the weakest first, without the clean one."""
    found: dict[str, list[RobustnessRow]] = {}
    for row in rows[1:]:
        found.setdefault(row["kind"], []).append(row)
    return found


def _draw(rows: Sequence[RobustnessRow], title: str) -> Figure:
    """Draw a small plot per kind: accuracy in percent by strength, with its intervals."""
    kinds = _group_kinds(rows)
    figure = make_figure(11.6, 2.0 * -(-len(kinds) // 5) + 0.8, title)
    panels = figure.subplots(-(-len(kinds) // 5), 5, sharex=True, sharey=True, squeeze=False)
    for axes, (kind, found) in zip(panels.flat, kinds.items(), strict=True):
        style_axes(axes)
        points = [rows[0], *found]
        value, low, high = (
            [100 * point[name] for point in points] for name in ("accuracy", "low", "high")
        )
        axes.axhline(value[0], color=MUTED_COLOR, linewidth=0.8, linestyle="--")
        axes.fill_between((0, *STRENGTHS), low, high, color=TRAIN_COLOR, alpha=0.2, linewidth=0)
        axes.plot((0, *STRENGTHS), value, color=TRAIN_COLOR, marker="o", markersize=3)
        axes.set_title(kind.replace("_", " "), fontsize=9)
        axes.set(ylim=(0, 100), xticks=(0, *STRENGTHS))
        axes.tick_params(labelsize=8)
    figure.supxlabel("strength (0: unchanged)", fontsize=9)
    figure.supylabel("accuracy, %, with 95% interval", fontsize=9)
    return figure
