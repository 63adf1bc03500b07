"""How figures and names are written, alike in the page, the terminal and the images."""

import math

from siglip_flowers.base.text import escape_unprintable
from siglip_flowers.report.contents import Figure, ReportContents

METRIC_NAMES = {
    "accuracy": "Accuracy",
    "top5_accuracy": "Top-5 accuracy",
    "f1_macro": "F1, macro",
    "f1_weighted": "F1, weighted",
    "precision_macro": "Precision, macro",
    "precision_weighted": "Precision, weighted",
    "recall_macro": "Recall, macro",
    "recall_weighted": "Recall, weighted",
    "loss": "Loss",
}
TRAINED_ON = (
    "The model was trained on these images and has learned wrong labels with them, so it doubts "
    "fewer than on images that are new to it."
)
SCORE_NAMES = {
    "max_probability": "highest probability",
    "max_logit": "highest logit (sigmoid score)",
    "energy": "energy",
    "class_mean": "nearest class mean",
    "neighbors": "10th nearest neighbor",
}


def format_metric(name: str, value: float) -> str:
    """Return a figure as text: percent, but a loss as it is."""
    return f"{value:.4f}" if name == "loss" else percent(value)


def percent(value: float, digits: int = 2) -> str:
    """Return a share as text."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "none"


def format_ends(name: str, figure: Figure) -> str:
    """Return the two ends of an interval as text."""
    if name == "loss":
        return f"{figure.low:.4f} to {figure.high:.4f}"
    return f"{100 * figure.low:.2f} to {percent(figure.high)}"


def name_metric(name: str) -> str:
    """Return the title of a headline figure."""
    return METRIC_NAMES.get(name, name.replace("_", " "))


def order_headline(contents: ReportContents) -> dict[str, Figure]:
    """Return the headline figures, the best known first."""
    known = [name for name in METRIC_NAMES if name in contents.headline]
    return {name: contents.headline[name] for name in dict.fromkeys([*known, *contents.headline])}


def clean_names(contents: ReportContents) -> tuple[list[str], list[str]]:
    """Return class names and image ids without characters that a terminal or page obeys."""
    return (
        [escape_unprintable(name) for name in contents.class_names],
        [escape_unprintable(name) for name in contents.ids],
    )
