"""Classification metrics: pure array functions, and ``evaluate.Metric`` modules on top of them.

Everything that reports a metric uses these functions. Sums are taken in float64; class ids are
integers (N,) in [0, C), logits are (N, C), and N is at least 1.

``evaluate.load("accuracy")`` fetches its code from the Hub on every first use; the modules here are
instantiated directly and need no network. They hold the rows in memory, so that neither parallel
processes nor concurrent evaluations share a cache file.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike, NDArray

from siglip_flowers.base.errors import RunError

Average = Literal["macro", "weighted"]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class ClassScores(NamedTuple):
    """Scores of every class, each an array of shape (num_classes,)."""

    precision: FloatArray
    recall: FloatArray
    f1: FloatArray
    support: IntArray


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> IntArray:
    """Count the images of each true class (row) and each predicted class (column): (C, C).

    Raises ValueError for class ids that are not integers in [0, num_classes), one per image.
    """
    true, predicted = np.asarray(labels), np.asarray(predictions)
    for ids in (true, predicted):
        if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"expected at least one integer class id, not {ids.dtype} {ids.shape}")
        if ids.min() < 0 or ids.max() >= num_classes:
            raise ValueError(
                f"class ids must lie in [0, {num_classes}), but range from {ids.min()} to "
                f"{ids.max()}"
            )
    if true.shape != predicted.shape:
        raise ValueError(f"there are {len(true)} labels but {len(predicted)} predictions")
    cells = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Share of predictions that equal the label, in [0, 1]."""
    return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def are_in_top_k(labels: ArrayLike, scores: ArrayLike, k: int) -> NDArray[np.bool_]:
    """Return whether each true class is among the k highest scores: (N,) bool.

    Equal scores are ranked by class id, the lower id first, as argmax does: top-1 accuracy is
    always the accuracy of the argmax, and constant scores earn no more than chance.

    Raises ValueError for k outside [1, C], RunError for scores that are not finite.
    """
    values, true = _check_logits(scores, labels)
    num_classes = values.shape[1]
    if not 1 <= k <= num_classes:
        raise ValueError(f"k must be in [1, {num_classes}], the number of classes, not {k}.")
    own = values[np.arange(len(true)), true][:, None]
    ranked_before = values > own
    tied_before = (values == own) & (np.arange(num_classes) < true[:, None])
    ranks = np.count_nonzero(ranked_before | tied_before, axis=1)
    return ranks < k


def per_class_scores(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> ClassScores:
    """Return the scores of every class; a ratio with an empty denominator counts as 0."""
    counts = confusion_matrix(labels, predictions, num_classes)
    support, predicted, hits = counts.sum(axis=1), counts.sum(axis=0), np.diag(counts)
    return ClassScores(
        precision=hits / np.maximum(predicted, 1),
        recall=hits / np.maximum(support, 1),
        f1=2 * hits / np.maximum(support + predicted, 1),
        support=support,
    )


def precision_recall_f1(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int, average: Average = "macro"
) -> tuple[float, float, float]:
    """Precision, recall and F1, averaged over classes, each in [0, 1].

    - ``macro``: plain mean over the classes that occur in the labels or in the predictions. A
      class absent from both was never at stake and is left out; a class that is only predicted
      counts, with 0. This is scikit-learn's default (``labels=None, zero_division=0``), and
      differs from ``labels=range(num_classes)``, where every absent class would count as 0.
      F1 is the mean of the classes' F1, not the F1 of the mean precision and recall.
    - ``weighted``: mean over the classes, weighted by their number of true images.
    """
    scores = per_class_scores(labels, predictions, num_classes)
    named = np.bincount(np.asarray(predictions), minlength=num_classes)
    weights = scores.support if average == "weighted" else (scores.support + named > 0)
    precision, recall, f1 = (float(np.average(s, weights=weights)) for s in scores[:3])
    return precision, recall, f1


def softmax_losses(logits: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Return each image's negative log likelihood under the softmax, in nats: (N,).

    Raises RunError for logits that are not finite.
    """
    values, true = _check_logits(logits, labels)
    shifted = values - values.max(axis=1, keepdims=True)
    log_partition = np.log(np.exp(shifted).sum(axis=1))
    return log_partition - shifted[np.arange(len(true)), true]


def sigmoid_losses(logits: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Return SigLIP's pairwise loss of each image against the classes, summed over them: (N,).

    With z = 1 for the true class and -1 for every other one, an image's loss is
    sum over classes of -log sigmoid(z * logit).

    Raises RunError for logits that are not finite.

    Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, section 3.2,
    with the class texts instead of the texts of the batch.
    """
    values, true = _check_logits(logits, labels)
    signs = np.full(values.shape, -1.0)
    signs[np.arange(len(true)), true] = 1.0
    return np.logaddexp(0.0, -signs * values).sum(axis=1)


def activation_losses(logits: ArrayLike, labels: ArrayLike, activation: str) -> FloatArray:
    """Return each image's loss of the activation a model was trained with: (N,)."""
    return (softmax_losses if activation == "softmax" else sigmoid_losses)(logits, labels)


def per_class_rows(
    labels: ArrayLike, predictions: ArrayLike, names: list[str] | tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return one row per class, in the order of the names: label, name, support and scores.

    Rows hold plain Python numbers, ready for JSON; ``support`` is the number of true images.
    """
    scores = per_class_scores(labels, predictions, len(names))
    return [
        {
            "label": label,
            "name": name,
            "support": int(scores.support[label]),
            "precision": float(scores.precision[label]),
            "recall": float(scores.recall[label]),
            "f1": float(scores.f1[label]),
        }
        for label, name in enumerate(names)
    ]


def _check_logits(logits: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, IntArray]:
    values, true = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    assert values.ndim == 2
    assert len(values) == len(true) > 0
    bad_rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad_rows.size:
        raise RunError(
            f"The logits of {bad_rows.size} of {len(values)} images are not finite (the first is "
            f"image {bad_rows[0]}): the model has diverged. Lower the learning rate or start from "
            "another checkpoint."
        )
    return values, true


class _InMemoryMetric(evaluate.Metric):
    """A metric of predictions and true class ids that writes no cache file."""

    summary: str
    prediction_feature: Any = datasets.Value("int64")
    data_format: str | None = "numpy"

    def __init__(self) -> None:
        # Without a seed, the parent reads NumPy's global generator.
        super().__init__(keep_in_memory=True, seed=0)

    def _build_data_dir(self) -> str:
        # The parent creates the folder and leaves it empty.
        return str(Path(self._data_dir_root, self.name, self.config_name))

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
        hits = are_in_top_k(references, np.asarray(predictions), k)
        return {"top_k_accuracy": float(np.mean(hits))}


class _AveragedMetric(_InMemoryMetric):
    """Predictions are class ids (int64).

    ``average`` is ``macro`` (default; over the classes that occur) or ``weighted`` (by support).
    """

    position: int  # in the tuple that precision_recall_f1 returns

    def _compute(
        self, predictions: NDArray[Any], references: NDArray[Any], average: Average = "macro"
    ) -> dict[str, Any]:
        num_classes = 1 + int(max(predictions.max(), references.max()))
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

    Returns ``loss`` (of the activation the model was trained with), ``nll`` (always of the
    softmax, so comparable between objectives), ``accuracy``, ``top5_accuracy`` (top-k over all
    classes if there are fewer than five), and ``precision``, ``recall`` and ``f1``, each with
    the suffixes ``_macro`` and ``_weighted``. Of equal logits the lower class id is predicted.

    Raises RunError for logits that are not finite.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    # First, since it checks that they are finite for all others.
    nll = float(np.mean(softmax_losses(logits, labels)))
    predicted = {"predictions": logits.argmax(axis=1), "references": labels}
    k = min(5, logits.shape[1])
    top = TopKAccuracy().compute(predictions=logits, references=labels, k=k)
    metrics = {
        "loss": nll if activation == "softmax" else float(np.mean(sigmoid_losses(logits, labels))),
        "nll": nll,
        **Accuracy().compute(**predicted),
        "top5_accuracy": top["top_k_accuracy"],
    }
    for average in ("macro", "weighted"):
        for module in (Precision(), Recall(), F1()):
            result = module.compute(**predicted, average=average)
            metrics[f"{module.name}_{average}"] = result[module.name]
    return metrics
