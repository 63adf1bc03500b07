"""The results of an evaluation as tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from siglip_flowers.base.files import atomic_path
from siglip_flowers.base.text import align_columns
from siglip_flowers.evaluation.predict import SplitResult

# Macro averages are the headline; accuracy and macro recall differ if class sizes do.
HEADLINE = {
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "precision_macro": "precision (macro)",
    "recall_macro": "recall (macro)",
    "f1_macro": "F1 (macro)",
    "precision_weighted": "precision (weighted)",
    "recall_weighted": "recall (weighted)",
    "f1_weighted": "F1 (weighted)",
}
TOP_K = 5


def list_metrics(result: SplitResult) -> dict[str, float]:
    """Return the number of images and the metrics to show.

    Top-5 accuracy is left out if there are fewer than six classes, where it is always 1.
    """
    metrics = {"n": len(result.labels), **result.metrics}
    if result.logits.shape[1] <= TOP_K:
        metrics.pop("top5_accuracy", None)
    return metrics


def format_metrics(splits: Mapping[str, Mapping[str, float]]) -> str:
    """Return a table with one column per split: n, shares in percent, then the losses."""
    lines = [["", *splits], ["n", *(str(int(values["n"])) for values in splits.values())]]
    for key, name in HEADLINE.items():
        if all(key in values for values in splits.values()):
            lines.append([name, *(f"{100 * values[key]:.2f} %" for values in splits.values())])
    lines.append(["loss", *(f"{values['loss']:.4f}" for values in splits.values())])
    return align_columns(lines)


def write_predictions(
    path: Path, result: SplitResult, class_names: Sequence[str], description: str
) -> None:
    """Write image id, true label and the five most probable classes with their probabilities.

    ``description`` names the data and the split protocol in the file's metadata.

    Columns: ``image_id``, ``label``, ``label_name``, ``correct``, then lists of up to five:
    ``top_labels``, ``top_names``, ``top_probabilities``, most probable first.
    """
    top = np.argsort(-result.logits, axis=1, kind="stable")[:, :TOP_K]
    table = pyarrow.table(
        {
            "image_id": result.ids,
            "label": result.labels,
            "label_name": [class_names[label] for label in result.labels],
            "correct": top[:, 0] == result.labels,
            "top_labels": top.tolist(),
            "top_names": [[class_names[label] for label in row] for row in top],
            "top_probabilities": np.take_along_axis(result.probabilities, top, 1).tolist(),
        }
    )
    table = table.replace_schema_metadata({"data": description, "split": result.split})
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)
