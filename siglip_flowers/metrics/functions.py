"""Classification metrics as pure array functions.

Everything that reports a metric uses these functions. Sums are taken in float64.
"""

from typing import Any, Literal, NamedTuple, overload

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
    """Count the images of each true class (row) and each predicted class (column).

    labels, predictions: integers in [0, num_classes), shape (n,). Returns (num_classes,
    num_classes), int64.

    Raises ValueError for other shapes, types or class ids.
    """
    true = _check_class_ids("labels", labels, num_classes)
    predicted = _check_class_ids("predictions", predictions, num_classes)
    _check_same_length(true, predicted)
    cells = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Share of predictions that equal the label, in [0, 1].

    labels, predictions: integers, shape (n,), n >= 1.

    Raises ValueError for other shapes or types, and without images.
    """
    true = _check_class_ids("labels", labels)
    predicted = _check_class_ids("predictions", predictions)
    _check_same_length(true, predicted)
    _check_not_empty(true)
    return float(np.mean(true == predicted))


def top_k_accuracy(labels: ArrayLike, scores: ArrayLike, k: int) -> float:
    """Share of images whose true class is among the k highest scores, in [0, 1].

    Equal scores are ranked by class id, the lower id first, as argmax does: top-1 accuracy is
    always the accuracy of the argmax, and constant scores earn no more than chance.

    labels: integers in [0, classes), shape (n,). scores: shape (n, classes), any monotone scale.

    Raises ValueError for other shapes or types and for k outside [1, classes]; RunError for
    scores that are not finite.
    """
    return float(np.mean(are_in_top_k(labels, scores, k)))


def are_in_top_k(labels: ArrayLike, scores: ArrayLike, k: int) -> NDArray[np.bool_]:
    """Return whether each true class is among the k highest scores: (n,) bool."""
    values, true = _check_logits(scores, labels)
    num_classes = values.shape[1]
    if not 1 <= k <= num_classes:
        raise ValueError(f"k must be in [1, {num_classes}], the number of classes, not {k}.")
    own = values[np.arange(len(true)), true][:, None]
    ranked_before = values > own
    tied_before = (values == own) & (np.arange(num_classes) < true[:, None])
    ranks = np.count_nonzero(ranked_before | tied_before, axis=1)
    return ranks < k


@overload
def precision_recall_f1(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int, average: Average = "macro"
) -> tuple[float, float, float]: ...


@overload
def precision_recall_f1(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int, average: None
) -> ClassScores: ...


def precision_recall_f1(
    labels: ArrayLike,
    predictions: ArrayLike,
    num_classes: int,
    average: Average | None = "macro",
) -> tuple[float, float, float] | ClassScores:
    """Precision, recall and F1, each in [0, 1]; a ratio with an empty denominator counts as 0.

    - ``macro``: plain mean over the classes that occur in the labels or in the predictions. A
      class absent from both was never at stake and is left out; a class that is only predicted
      counts, with 0. This is scikit-learn's default (``labels=None, zero_division=0``), and
      differs from ``labels=range(num_classes)``, where every absent class would count as 0.
      F1 is the mean of the classes' F1, not the F1 of the mean precision and recall.
    - ``weighted``: mean over the classes, weighted by their number of true images.
    - ``None``: :class:`ClassScores` over all num_classes classes, absent ones with 0.

    labels, predictions: integers in [0, num_classes), shape (n,), n >= 1.

    Raises ValueError for other shapes, types, class ids or averages, and without images.
    """
    if average not in ("macro", "weighted", None):
        raise ValueError(f"average must be 'macro', 'weighted' or None, not {average!r}.")
    counts = confusion_matrix(labels, predictions, num_classes)
    support, predicted = counts.sum(axis=1), counts.sum(axis=0)
    _check_not_empty(np.asarray(labels))
    hits = np.diag(counts)
    scores = ClassScores(
        precision=_divide(hits, predicted),
        recall=_divide(hits, support),
        f1=_divide(2 * hits, support + predicted),
        support=support,
    )
    if average is None:
        return scores
    weights = support if average == "weighted" else (support + predicted > 0)
    precision, recall, f1 = (float(np.average(s, weights=weights)) for s in scores[:3])
    return precision, recall, f1


def softmax_nll(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log likelihood of the true class under the softmax, in nats.

    logits: shape (n, classes), n >= 1. labels: integers in [0, classes), shape (n,).

    Raises ValueError for other shapes, types or class ids; RunError for logits not finite.
    """
    return float(np.mean(softmax_losses(logits, labels)))


def softmax_losses(logits: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Return each image's negative log likelihood; see :func:`softmax_nll`: (n,)."""
    values, true = _check_logits(logits, labels)
    shifted = values - values.max(axis=1, keepdims=True)
    log_partition = np.log(np.exp(shifted).sum(axis=1))
    return log_partition - shifted[np.arange(len(true)), true]


def sigmoid_loss(logits: ArrayLike, labels: ArrayLike) -> float:
    """SigLIP's pairwise loss of images against classes: summed over classes, mean over images.

    With z = 1 for the true class and -1 for every other one, an image's loss is
    sum over classes of -log sigmoid(z * logit).

    logits: shape (n, classes), n >= 1. labels: integers in [0, classes), shape (n,).

    Raises ValueError for other shapes, types or class ids; RunError for logits not finite.

    Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, section 3.2,
    with the class texts instead of the texts of the batch.
    """
    return float(np.mean(sigmoid_losses(logits, labels)))


def sigmoid_losses(logits: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Return each image's loss; see :func:`sigmoid_loss`: (n,)."""
    values, true = _check_logits(logits, labels)
    signs = np.full(values.shape, -1.0)
    signs[np.arange(len(true)), true] = 1.0
    return np.logaddexp(0.0, -signs * values).sum(axis=1)


def per_class_rows(
    labels: ArrayLike, predictions: ArrayLike, names: list[str] | tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return one row per class, in the order of the names: label, name, support and scores.

    labels, predictions: integers in [0, len(names)), shape (n,), n >= 1. Rows hold plain Python
    numbers, ready for JSON; ``support`` is the number of true images.

    Raises ValueError as :func:`precision_recall_f1` does.
    """
    scores = precision_recall_f1(labels, predictions, len(names), average=None)
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


def _divide(numerator: IntArray, denominator: IntArray) -> FloatArray:
    quotient = np.zeros(numerator.shape)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def _check_class_ids(what: str, values: ArrayLike, num_classes: int | None = None) -> IntArray:
    ids = np.asarray(values)
    # An empty list has float type by default; it holds no value of a wrong type.
    is_integer = np.issubdtype(ids.dtype, np.integer) or ids.size == 0
    if ids.ndim != 1 or not is_integer:
        raise ValueError(
            f"{what} must be one integer class id per image, shape (n,), "
            f"not {ids.dtype} of shape {ids.shape}."
        )
    if num_classes is not None and ids.size:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{what} must be class ids in [0, {num_classes}), but they range from {low} "
                f"to {high}."
            )
    return ids.astype(np.int64)


def _check_logits(logits: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, IntArray]:
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"logits must have the shape (images, classes), not {values.shape}.")
    true = _check_class_ids("labels", labels, values.shape[1])
    _check_same_length(true, values)
    _check_not_empty(true)
    bad_rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad_rows.size:
        raise RunError(
            f"The logits of {bad_rows.size} of {len(values)} images are not finite (the first is "
            f"image {bad_rows[0]}): the model has diverged. Lower the learning rate or start from "
            "another checkpoint."
        )
    return values, true


def _check_same_length(labels: NDArray[Any], others: NDArray[Any]) -> None:
    if len(labels) != len(others):
        raise ValueError(f"There are {len(labels)} labels but {len(others)} predictions.")


def _check_not_empty(labels: NDArray[Any]) -> None:
    if len(labels) == 0:
        raise ValueError("A metric requires at least one image.")
