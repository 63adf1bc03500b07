"""An image of a confusion matrix."""

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

# More names than this would be too small to read.
_MAX_NAMES = 30
_DPI = 100


def draw_confusion(counts: ArrayLike, class_names: Sequence[str]) -> Image.Image:
    """Draw the share of each true class's images (row) that got each predicted class (column).

    counts: integers, shape (classes, classes). Many classes are numbered instead of named.
    """
    table = np.asarray(counts, dtype=np.float64)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1.0)
    figure = Figure(figsize=(8, 7), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    figure.colorbar(drawn, ax=axes, label="share of the true class")
    axes.set(xlabel="predicted class", ylabel="true class", title="Confusion on the test split")
    if len(class_names) <= _MAX_NAMES:
        ticks = range(len(class_names))
        axes.set_xticks(ticks, class_names, rotation=90)
        axes.set_yticks(ticks, class_names)
    figure.set_dpi(_DPI)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
