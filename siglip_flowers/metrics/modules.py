"""``evaluate.Metric`` modules that live in the package, and the figures of one evaluation.

``evaluate.load("accuracy")`` fetches its code from the Hub on every first use; these classes are
instantiated directly and need no network. They hold the rows in memory, so that neither parallel
processes nor several evaluations at once meet in one cache file.
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

_CITATION = """\
@inproceedings{nilsback2008automated,
  title = {Automated Flower Classification over a Large Number of Classes},
  author = {Nilsback, Maria-Elena and Zisserman, Andrew},
  booktitle = {Indian Conference on Computer Vision, Graphics and Image Processing},
  year = {2008}
}
@article{scikit-learn,
  title = {Scikit-learn: Machine Learning in {P}ython},
  author = {Pedregosa, F. and others},
  journal = {Journal of Machine Learning Research},
  volume = {12},
  pages = {2825--2830},
  year = {2011}
}
"""

_CLASS_IDS = """
predictions: predicted class ids (int64). references: true class ids (int64)."""

_AVERAGED = (
    _CLASS_IDS
    + """
average: 'macro' (default; over the classes that occur), 'weighted' (by support) or None (a list,
one figure a class). num_classes: the number of classes; default: the highest id met, plus one."""
)

_SCORES = """
predictions: one score a class for each image, a float sequence. references: true class ids
(int64). k: how many of the highest scores may hold the true class (default 5); of equal scores
the lower class id ranks first."""


class _InMemoryMetric(evaluate.Metric):
    """A metric that writes no cache file unless several processes have to share one."""

    summary: str
    usage: str = _CLASS_IDS
    prediction_feature: Any = datasets.Value("int64")
    data_format: str | None = "numpy"

    def __init__(
        self,
        config_name: str | None = None,
        keep_in_memory: bool | None = None,
        num_process: int = 1,
        seed: int | None = 0,  # the parent's default reads numpy's global generator
        **kwargs: Any,
    ) -> None:
        if keep_in_memory is None:
            keep_in_memory = num_process == 1
        super().__init__(
            config_name, keep_in_memory=keep_in_memory, num_process=num_process, seed=seed, **kwargs
        )

    def _build_data_dir(self) -> str:
        if self.keep_in_memory:  # the parent creates the folder, which stays behind empty
            return str(Path(self._data_dir_root, self.name, self.config_name))
        return super()._build_data_dir()

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.summary,
            citation=_CITATION,
            inputs_description=self.usage,
            features=datasets.Features(
                {"predictions": self.prediction_feature, "references": datasets.Value("int64")}
            ),
            format=self.data_format,
        )


class Accuracy(_InMemoryMetric):
    """Share of right predictions."""

    summary = "Share of the images whose predicted class is the true class."

    def _compute(self, predictions: NDArray[Any], references: NDArray[Any]) -> dict[str, float]:
        return {"accuracy": accuracy(references, predictions)}


class TopKAccuracy(_InMemoryMetric):
    """Share of images whose true class is among the k highest scores."""

    summary = "Share of the images whose true class is among the k highest scores."
    usage = _SCORES
    prediction_feature = datasets.Sequence(datasets.Value("float64"))
    data_format = None  # the base class allows numpy for plain values only

    def _compute(
        self, predictions: NDArray[Any], references: NDArray[Any], k: int = 5
    ) -> dict[str, float]:
        return {"top_k_accuracy": top_k_accuracy(references, np.asarray(predictions), k)}


class _AveragedMetric(_InMemoryMetric):
    usage = _AVERAGED
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
    """Right predictions of a class among all predictions of it, averaged over the classes."""

    summary = "Right predictions of a class among all its predictions, averaged over classes."
    position = 0


class Recall(_AveragedMetric):
    """Right predictions of a class among all its images, averaged over the classes."""

    summary = "Right predictions of a class among all its images, averaged over classes."
    position = 1


class F1(_AveragedMetric):
    """Harmonic mean of precision and recall of a class, averaged over the classes."""

    summary = "Harmonic mean of a class's precision and recall, averaged over classes."
    position = 2


def compute_metrics(
    logits: NDArray[Any], labels: NDArray[Any], activation: str = "softmax"
) -> dict[str, float]:
    """All figures of one evaluation, without a split prefix.

    logits: shape (n, classes), n >= 1, finite. labels: integers in [0, classes), shape (n,).
    Returns ``loss`` (of the activation the model was trained with), ``nll`` (always of the
    softmax, so comparable between objectives), ``accuracy``, ``top5_accuracy`` (top-k over all
    classes where there are fewer than five), and ``precision``, ``recall`` and ``f1``, each with
    the suffixes ``_macro`` and ``_weighted``. Equal logits: the lower class id is predicted.

    Raises ValueError for other shapes, types or activations; RunError for logits not finite.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}.")
    logits, labels = np.asarray(logits), np.asarray(labels)
    # First, since it checks shapes, class ids and finiteness for all that follow.
    nll = softmax_nll(logits, labels)
    num_classes = logits.shape[1]
    predictions = logits.argmax(axis=1)

    metrics = {
        "loss": nll if activation == "softmax" else sigmoid_loss(logits, labels),
        "nll": nll,
        **Accuracy().compute(predictions=predictions, references=labels),
    }
    top = TopKAccuracy().compute(predictions=logits, references=labels, k=min(5, num_classes))
    metrics["top5_accuracy"] = top["top_k_accuracy"]
    averages: tuple[Average, ...] = ("macro", "weighted")
    for average in averages:
        for module in (Precision(), Recall(), F1()):
            result = module.compute(
                predictions=predictions,
                references=labels,
                average=average,
                num_classes=num_classes,
            )
            metrics[f"{module.name}_{average}"] = result[module.name]
    return metrics
