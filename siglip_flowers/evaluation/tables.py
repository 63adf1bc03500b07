"""Figures of an evaluation as text."""

from collections.abc import Mapping

from siglip_flowers.base.text import align_columns

# Macro averages over classes are the headline; accuracy and recall differ where classes do.
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


def format_metrics(splits: Mapping[str, Mapping[str, float]]) -> str:
    """Return a table with a column a split: n, shares in percent, then the losses."""
    lines = [["", *splits], ["n", *(str(int(values["n"])) for values in splits.values())]]
    for key, name in HEADLINE.items():
        lines.append([name, *(f"{100 * values[key]:.2f} %" for values in splits.values())])
    lines.append(["loss", *(f"{values['loss']:.4f}" for values in splits.values())])
    return align_columns(lines)
