"""Read the predictions of finished runs, and compare the runs with the first of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow.parquet

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.files import METRICS_FILE, read_json, reading
from siglip_flowers.metrics.bootstrap import accuracy_interval
from siglip_flowers.metrics.statistics import conclude, holm, mcnemar, paired_bootstrap

_COLUMNS = ["image_id", "label_name", "top_names", "top_probabilities"]


@dataclass(frozen=True)
class RunPredictions:
    """The predictions of one run for a split of N images.

    Attributes:
        name: Of the run, unique among those that were read together.
        path: The predictions file.
        split: Name of the split, "" if the file does not say.
        protocol: How the data were split, "" if it is not known.
        images: By image id, the columns ``true`` and ``predicted`` (names of classes),
            ``confidence`` and ``correct``.
    """

    name: str
    path: Path
    split: str
    protocol: str
    images: pandas.DataFrame


def read_runs(names: Sequence[str], split: str) -> list[RunPredictions]:
    """Read the predictions of several runs, in the order of the first one's images.

    Args:
        names: Directories with ``predictions_SPLIT.parquet``, or such files.
        split: The split.

    Raises:
        InputError: A run without predictions, or runs that differ in their split, images or labels.
        RunError: A damaged file.
    """
    paths = [_find_file(Path(name), split) for name in names]
    short = [path.resolve().parent.name for path in paths]
    whole = [str(path.parent) for path in paths]
    titles = next((t for t in (short, whole) if len(set(t)) == len(t)), list(map(str, paths)))
    runs = [_read_run(path, title) for path, title in zip(paths, titles, strict=True)]
    return [runs[0], *(_align(run, runs[0]) for run in runs[1:])]


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the contents of a metrics file, empty if there is none that can be read."""
    try:
        values = read_json(path)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _find_file(path: Path, split: str) -> Path:
    file = path / f"predictions_{split}.parquet" if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"{path} has no predictions_{split}.parquet. Name a finished run, or write the file "
            f"with 'siglip-flowers eval --model {path} --split {split} --output_dir {path}'."
        )
    return file


def _read_run(path: Path, name: str) -> RunPredictions:
    with reading(path, "Write it again with 'siglip-flowers eval --output_dir'"):
        table = pyarrow.parquet.read_table(path, columns=_COLUMNS)
        rows = table.to_pandas().set_index("image_id")
        if not rows.index.is_unique:
            raise ValueError("it has several predictions of an image")
        images = pandas.DataFrame(
            {
                "true": rows["label_name"],
                "predicted": rows["top_names"].str[0],
                "confidence": rows["top_probabilities"].str[0].astype(float),
            }
        )
        images["correct"] = images["true"] == images["predicted"]
        split = (table.schema.metadata or {}).get(b"split", b"").decode()
    evaluated = read_metrics(path.with_name(f"metrics_{split or 'test'}.json"))
    data = read_metrics(path.with_name(METRICS_FILE)).get("data")
    known = data.get("split_protocol") if isinstance(data, dict) else None
    protocol = evaluated.get("split_protocol") or known or ""
    return RunPredictions(name, path, split, protocol, images)


def _align(run: RunPredictions, first: RunPredictions) -> RunPredictions:
    """Return a run in the order of the first one's images."""
    for what in ("split", "protocol"):
        mine, theirs = getattr(run, what), getattr(first, what)
        if mine and theirs and mine != theirs:
            raise InputError(
                f"{run.name} has the {what} {mine!r} and {first.name} {theirs!r}. Evaluate both "
                "on the same split of the same data."
            )
    ids, wanted = run.images.index, first.images.index
    common = len(ids.intersection(wanted))
    if not common == len(ids) == len(wanted):
        raise InputError(
            f"{run.name} has {len(ids)} images and {first.name} {len(wanted)}, "
            f"{common} of them the same. Evaluate both on the same split of the same data."
        )
    images = run.images.loc[wanted]
    differ = images["true"] != first.images["true"]
    if differ.any():
        image = differ.idxmax()
        raise InputError(
            f"The image {image} is labeled '{images['true'][image]}' in {run.name} and "
            f"'{first.images['true'][image]}' in {first.name}. Compare runs on one dataset."
        )
    return replace(run, images=images)


def compare_runs(runs: Sequence[RunPredictions]) -> dict[str, Any]:
    """Compare two or more runs, as :func:`read_runs` gives them, with the first, by image.

    Returns:
        The contents of ``comparison.json``. ``accuracies`` are (value, low, high) with the interval
        that the report has as well; every p-value is McNemar's, and each ``corrected_p`` is one
        after Holm, over the runs or over the classes of a run.
    """
    first, others = runs[0], runs[1:]
    tests = [mcnemar(run.images["correct"], first.images["correct"]) for run in others]
    corrected = holm([test["p_value"] for test in tests])
    differences = []
    for run, test, p in zip(others, tests, corrected.tolist(), strict=True):
        accuracy = paired_bootstrap(
            run.images["correct"].to_numpy()[None], first.images["correct"].to_numpy()[None]
        )
        measure = f"accuracy on {len(first.images)} images"
        differences.append(
            {
                "name": run.name,
                "accuracy": asdict(accuracy),
                "mcnemar": test,
                "corrected_p": p,
                "conclusion": conclude(accuracy, run.name, first.name, measure, corrected_p=p),
                "per_class": _compare_classes(first.images, run.images),
            }
        )
    return {
        "runs": [run.name for run in runs], "paths": [str(run.path) for run in runs],
        "split": first.split, "protocol": first.protocol, "n": len(first.images),
        "accuracies": [_measure(run.images) for run in runs],
        "differences": differences, "images": _find_differing(runs),
    }  # fmt: skip


def _measure(images: pandas.DataFrame) -> tuple[float, float, float]:
    right = images.groupby("true")["correct"]
    low, high = accuracy_interval(right.sum().to_numpy(), right.size().to_numpy())
    return float(images["correct"].mean()), low, high


def _compare_classes(first: pandas.DataFrame, other: pandas.DataFrame) -> list[dict[str, Any]]:
    """Compare class by class, the largest difference first."""
    found = []
    for name, theirs in first["correct"].groupby(first["true"]):
        mine = other["correct"][theirs.index]
        test = mcnemar(mine, theirs)
        found.append(
            {
                "name": name,
                "support": len(theirs),
                "first_accuracy": float(theirs.mean()),
                "accuracy": float(mine.mean()),
                "difference": float(mine.mean() - theirs.mean()),
                "only_first": test["c"],
                "only_other": test["b"],
                "corrected_p": test["p_value"],
            }
        )
    for row, p in zip(found, holm([row["corrected_p"] for row in found]).tolist(), strict=True):
        row["corrected_p"] = p
    return sorted(found, key=lambda row: (-abs(row["difference"]), -row["support"], row["name"]))


def _find_differing(runs: Sequence[RunPredictions]) -> list[dict[str, Any]]:
    """Return images with different predictions: first those that some run gets right.

    Among those the most confident answers come first, since they tell most about the runs.
    """
    predicted = np.stack([run.images["predicted"] for run in runs])
    found = []
    for image in runs[0].images.index[(predicted != predicted[0]).any(axis=0)]:
        rows = [run.images.loc[image] for run in runs]
        found.append(
            {
                "id": image,
                "true": rows[0]["true"],
                "predicted": [row["predicted"] for row in rows],
                "confidence": [float(row["confidence"]) for row in rows],
                "correct": [bool(row["correct"]) for row in rows],
            }
        )
    return sorted(
        found, key=lambda row: (not any(row["correct"]), -sum(row["confidence"]), row["id"])
    )
