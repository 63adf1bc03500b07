"""``evaluate.Metric`` modules that live in the package, and the metrics of one evaluation.

``evaluate.load("accuracy")`` fetches its code from the Hub on every first use; these classes are
instantiated directly and need no network. They hold the rows in memory, so that neither parallel
processes nor concurrent evaluations share a cache file.
"""

from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray

from siglip_flowers.metrics.functions import (
    Average,
    accuracy,
    precision_recall_f1,
    sigmoid_loss,
    softmax_nll,
    top_k_accuracy,
)

ACTIVATIONS = ("softmax", "sigmoid")
AVERAGES: tuple[Average, ...] = ("macro", "weighted")


class _InMemoryMetric(evaluate.Metric):
    """A metric of predictions and true class ids that writes no cache file in one process."""

    summary: str
    prediction_feature: Any = datasets.Value("int64")
    data_format: str | None = "numpy"

    def __init__(self, num_process: int = 1, **kwargs: Any) -> None:
        kwargs.setdefault("keep_in_memory", num_process == 1)
        # By default, the parent reads NumPy's global generator.
        kwargs.setdefault("seed", 0)
        super().__init__(num_process=num_process, **kwargs)

    def _build_data_dir(self) -> str:
        if self.keep_in_memory:  # the parent creates the folder and leaves it empty
            return str(Path(self._data_dir_root, self.name, self.config_name))
        return super()._build_data_dir()

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.summary,
            citation="",
            inputs_description=self.__doc__ or "",
            features=datasets.Features(
                {"predictions": self.prediction_feature, "references": datasets.Value("int64")}
            ),
            format=self.data_format,
        )


class Accuracy(_InMemoryMetric):
    """Predictions are class ids (int64)."""

    summary = "Share of the images whose predicted class is the true class."

    def _compute(self, predictions: NDArray[Any], references: NDArray[Any]) -> dict[str, float]:
        return {"accuracy": accuracy(references, predictions)}


class TopKAccuracy(_InMemoryMetric):
    """Predictions are scores, one per class; of equal scores the lower class id ranks first.

    ``k`` is how many of the highest scores may contain the true class (default 5).
    """

    summary = "Share of the images whose true class is among the k highest scores."
    prediction_feature = datasets.Sequence(datasets.Value("float64"))
    data_format = None  # the base class allows numpy for plain values only

    def _compute(
        self, predictions: NDArray[Any], references: NDArray[Any], k: int = 5
    ) -> dict[str, float]:
        return {"top_k_accuracy": top_k_accuracy(references, np.asarray(predictions), k)}


class _AveragedMetric(_InMemoryMetric):
    """Predictions are class ids (int64).

    ``average`` is ``macro`` (default; over the classes that occur), ``weighted`` (by support) or
    None (a list with one value per class). ``num_classes`` defaults to the highest id plus one.
    """

    position: int  # in the tuple that precision_recall_f1 returns

    def _compute(
        self,
        predictions: NDArray[Any],
        references: NDArray[Any],
        average: Average | None = "macro",
        num_classes: int | None = None,
    ) -> dict[str, Any]:
        if num_classes is None:
            num_classes = 1 + int(max(predictions.max(initial=0), references.max(initial=0)))
        if average is None:
            scores = precision_recall_f1(references, predictions, num_classes, average=None)
            return {self.name: scores[self.position].tolist()}
        averages = precision_recall_f1(references, predictions, num_classes, average)
        return {self.name: averages[self.position]}


class Precision(_AveragedMetric):
    """Precision of class ids (int64), averaged over classes by ``average``."""

    summary = "Right predictions of a class among all its predictions, averaged over classes."
    position = 0


class Recall(_AveragedMetric):
    """Recall of class ids (int64), averaged over classes by ``average``."""

    summary = "Right predictions of a class among all its images, averaged over classes."
    position = 1


class F1(_AveragedMetric):
    """F1 of class ids (int64), averaged over classes by ``average``."""

    summary = "Harmonic mean of a class's precision and recall, averaged over classes."
    position = 2


def compute_metrics(
    logits: NDArray[Any], labels: NDArray[Any], activation: str = "softmax"
) -> dict[str, float]:
    """Return all metrics of one evaluation, without a split prefix.

    logits: shape (n, classes), n >= 1, finite. labels: integers in [0, classes), shape (n,).
    Returns ``loss`` (of the activation the model was trained with), ``nll`` (always of the
    softmax, so comparable between objectives), ``accuracy``, ``top5_accuracy`` (top-k over all
    classes if there are fewer than five), and ``precision``, ``recall`` and ``f1``, each with
    the suffixes ``_macro`` and ``_weighted``. Of equal logits the lower class id is predicted.

    Raises ValueError for other shapes, types or activations; RunError for logits not finite.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}.")
    logits, labels = np.asarray(logits), np.asarray(labels)
    # First, since it checks shapes, class ids and finiteness for all others.
    nll = softmax_nll(logits, labels)
    num_classes = logits.shape[1]
    predicted = {"predictions": logits.argmax(axis=1), "references": labels}
    top = TopKAccuracy().compute(predictions=logits, references=labels, k=min(5, num_classes))
    metrics = {
        "loss": nll if activation == "softmax" else sigmoid_loss(logits, labels),
        "nll": nll,
        **Accuracy().compute(**predicted),
        "top5_accuracy": top["top_k_accuracy"],
    }
    for average in AVERAGES:
        for module in (Precision(), Recall(), F1()):
            result = module.compute(**predicted, average=average, num_classes=num_classes)
            metrics[f"{module.name}_{average}"] = result[module.name]
    return metrics
