"""Classification metrics: array functions, and an ``evaluate.Metric`` on top of them.

Everything that reports a metric uses these functions. Sums are taken in float64; class ids are
integers (N,) in [0, C), logits are (N, C), and N is at least 1.
"""

from pathlib import Path
from typing import Any, Literal

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax
from sklearn.metrics import precision_recall_fscore_support

from siglip_flowers.base.errors import RunError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Share of predictions that equal the label, in [0, 1]."""
    return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def rank_classes(scores: ArrayLike, k: int) -> IntArray:
    """Return the k classes with the highest scores of each image: (N, k), the highest first.

    Equal scores are ranked by class id, the lower id first, as argmax does: top-1 accuracy is
    always the accuracy of the argmax, and constant scores earn no more than chance.
    """
    return np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :k]


def are_in_top_k(labels: ArrayLike, scores: ArrayLike, k: int) -> NDArray[np.bool_]:
    """Return whether each true class is among the k of :func:`rank_classes`: (N,) bool."""
    hits: NDArray[np.bool_] = (rank_classes(scores, k) == np.asarray(labels)[:, None]).any(axis=1)
    return hits


def precision_recall_f1(
    labels: ArrayLike, predictions: ArrayLike, average: Literal["macro", "weighted"] = "macro"
) -> dict[str, float]:
    """Return precision, recall and F1, averaged over classes, each in [0, 1].

    - ``macro``: plain mean over the classes that occur in the labels or in the predictions. A
      class absent from both was never at stake and is left out; a class that is only predicted
      counts, with 0. F1 is the mean of the classes' F1, not the F1 of the mean precision and
      recall.
    - ``weighted``: mean over the classes, weighted by their number of true images.
    """
    scores = precision_recall_fscore_support(labels, predictions, average=average, zero_division=0)
    return dict(zip(("precision", "recall", "f1"), map(float, scores[:3]), strict=True))


def activation_losses(logits: ArrayLike, labels: ArrayLike, activation: str) -> FloatArray:
    """Return each image's loss of the activation a model was trained with: (N,).

    ``softmax``: the negative log-likelihood, in nats. ``sigmoid``: SigLIP's pairwise loss against
    the classes; with z = 1 for the true class and -1 for every other one, it is the sum over
    classes of -log sigmoid(z * logit).

    Raises RunError for logits that are not finite.

    Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, section 3.2,
    with the class texts instead of the texts of the batch.
    """
    values, true = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    bad_rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad_rows.size:
        raise RunError(
            f"The logits of {bad_rows.size} of {len(values)} images are not finite (the first is "
            f"image {bad_rows[0]}): the model has diverged. Lower the learning rate or start from "
            "another checkpoint."
        )
    own = np.arange(len(true)), true
    if activation == "softmax":
        return -log_softmax(values, axis=1)[own]
    signs = np.full(values.shape, -1.0)
    signs[own] = 1.0
    return np.logaddexp(0.0, -signs * values).sum(axis=1)


def per_class_rows(
    labels: ArrayLike, predictions: ArrayLike, names: list[str] | tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return one row per class, in the order of the names: label, name, support and scores.

    Rows hold plain Python numbers, ready for JSON; ``support`` is the number of true images. A
    ratio with an empty denominator counts as 0.
    """
    scores = precision_recall_fscore_support(
        labels, predictions, labels=range(len(names)), average=None, zero_division=0
    )
    rows = zip(names, *(values.tolist() for values in scores), strict=True)
    return [
        # scikit-learn counts in floats if no prediction is right.
        {"label": label, "name": name, "support": int(n), "precision": p, "recall": r, "f1": f1}
        for label, (name, p, r, f1, n) in enumerate(rows)
    ]


class ClassificationMetrics(evaluate.Metric):
    """Accuracy, and precision, recall and F1 by macro and weighted average, of class ids (int64).

    ``evaluate.load("accuracy")`` fetches its code from the Hub on every first use; this needs no
    network. It holds the rows in memory, so that neither parallel processes nor concurrent
    evaluations share a cache file.
    """

    def __init__(self) -> None:
        # Without a seed, the parent reads NumPy's global generator.
        super().__init__(keep_in_memory=True, seed=0)

    def _build_data_dir(self) -> str:
        # The parent creates the folder and leaves it empty.
        return str(Path(self._data_dir_root, self.name, self.config_name))

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Value("int64")
        return evaluate.MetricInfo(
            description="Accuracy, precision, recall and F1.",
            citation="",
            inputs_description=self.__doc__ or "",
            features=datasets.Features({"predictions": ids, "references": ids}),
            format="numpy",
        )

    def _compute(self, predictions: IntArray, references: IntArray) -> dict[str, float]:
        metrics = {"accuracy": accuracy(references, predictions)}
        for average in ("macro", "weighted"):
            scores = precision_recall_f1(references, predictions, average)
            metrics |= {f"{name}_{average}": value for name, value in scores.items()}
        return metrics


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
    # First, since this checks that they are finite for all others.
    losses = {
        name: float(activation_losses(logits, labels, kind).mean())
        for name, kind in (("loss", activation), ("nll", "softmax"))
    }
    found = ClassificationMetrics().compute(predictions=logits.argmax(axis=1), references=labels)
    share = float(are_in_top_k(labels, logits, 5).mean())
    return {**losses, "accuracy": found.pop("accuracy"), "top5_accuracy": share, **found}
