"""Measures of one training curve: how far it overfits and how steadily it falls."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

MINIMUM_POINTS = 4


def overfitting_gap(train_accuracy: float, validation_accuracy: float) -> float:
    """Compute train minus validation accuracy, both fractions in 0..1 and of the same weights.

    Both are meant to be scored alike (no augmentation, no dropout); a training-time running
    average is of older weights on altered images and understates the gap.

    Raises:
        ValueError: an accuracy outside 0..1.
    """
    for name, value in (("train", train_accuracy), ("validation", validation_accuracy)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} accuracy must be a fraction in 0..1, got {value}")
    return train_accuracy - validation_accuracy


def loss_rise(validation_losses: Sequence[float]) -> float:
    """Compute the last validation loss minus the lowest: 0 if the curve never turns up.

    validation_losses: (E,) finite, in the order of training.

    Raises:
        ValueError: no loss, or one that is not finite.
    """
    losses = _check_losses(validation_losses)
    return float(losses[-1] - losses.min())


def steadiness(
    validation_losses: Sequence[float], unit: Literal["range", "loss"] = "range"
) -> float:
    """Measure how far a validation-loss curve strays from its trend; smaller is steadier.

    The trend is the least-squares valley: of all curves that fall (or stay), then rise (or stay),
    with the turn anywhere, the one nearest to the losses. The value is the root mean square of
    what is left, sqrt(sum (y - trend)^2 / E).

    validation_losses: (E,) finite, in the order of training, one per evaluation.
    unit: "loss" leaves it in the unit of the loss (nats), for arms scored with one and the same
        loss; "range" divides by max - min of the curve (0 to 0.5), for arms whose losses have
        different units. A curve that starts near its floor has a small range, which magnifies
        its wobble: compare such an arm in "loss".

    Why a valley, rather than second differences or a smoother: a loss that drops fast and
    smoothly is steady, yet is strongly curved, and either of those would charge it for the
    curvature and needs a window width that could be tuned to suit. Only going back counts here.
    Over-fitting bends the curve up once; that is :func:`loss_rise` and is not counted again.

    Unchanged by a constant added to the losses, by reversing them, by uneven spacing of the
    evaluations (only the order enters), and for "range" by a positive factor. 0 for a straight
    line and for any curve that only falls, only rises, or falls and then rises. A wobble too
    small to turn a falling curve back is not seen, so that an arm still falling steeply looks
    steadier than one on its floor. The trend follows a part of the noise (white noise of
    deviation 1 on a flat floor reads 0.34, 0.60, 0.75 at 5, 10, 20 points): compare curves with
    the same number of evaluations. Fewer than 4 points cannot be measured: nan.

    Raises:
        ValueError: no loss, one that is not finite, or an unknown unit.

    Source: Frisén 1986, "Unimodal regression"; Stout 2008 for the split into two isotonic fits.
    """
    if unit not in ("range", "loss"):
        raise ValueError(f"unit must be 'range' or 'loss', got {unit!r}")
    losses = _check_losses(validation_losses)
    if losses.size < MINIMUM_POINTS:
        return float("nan")
    span = float(np.ptp(losses))
    if span == 0:
        return 0.0
    # Fitted on 0..1, so that rounding is relative to the curve and not to its distance from 0.
    scaled = (losses - losses.min()) / span
    residual = float(np.sqrt(np.mean((scaled - fit_valley(scaled)) ** 2)))
    return residual if unit == "range" else residual * span


def fit_valley(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit the least-squares curve that falls, then rises: (E,) to (E,)."""
    best, best_error = values, np.inf
    # A falling piece followed by a rising piece is a valley wherever the cut is and whichever
    # piece ends lower, so trying every cut finds the optimum.
    for cut in range(1, values.size + 1):
        pieces = [isotonic_regression(values[:cut], increasing=False).x]
        if cut < values.size:
            pieces.append(isotonic_regression(values[cut:], increasing=True).x)
        fitted = np.concatenate(pieces)
        error = float(np.sum((values - fitted) ** 2))
        if error < best_error:
            best, best_error = fitted, error
    return best


def _check_losses(validation_losses: Sequence[float]) -> NDArray[np.float64]:
    losses = np.asarray(validation_losses, dtype=np.float64)
    if losses.ndim != 1 or losses.size == 0:
        raise ValueError(
            f"validation losses must be a non-empty list of numbers, got shape {losses.shape}"
        )
    if not np.isfinite(losses).all():
        first = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise ValueError(f"validation loss {first} is {losses[first]}: all must be finite")
    return losses
