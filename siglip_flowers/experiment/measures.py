"""Measures of one training curve: how far the validation loss rises and how steadily it falls."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

MINIMUM_POINTS = 4


def loss_rise(losses: Sequence[float] | NDArray[np.float64]) -> float:
    """Compute the last validation loss minus the lowest: 0 if the curve never turns up.

    losses: (E,) finite, in the order of training; nan without a loss.
    """
    values = np.asarray(losses, dtype=np.float64)
    return float(values[-1] - values.min()) if values.size else float("nan")


def steadiness(losses: Sequence[float] | NDArray[np.float64]) -> float:
    """Measure how far a validation-loss curve strays from its trend, in nats; smaller is steadier.

    The trend is the least-squares valley: of all curves that fall (or stay), then rise (or stay),
    with the turn anywhere, the one nearest to the losses. The value is the root mean square of
    what is left, sqrt(sum (y - trend)^2 / E).

    losses: (E,) finite, in the order of training, one per evaluation.

    Why a valley, rather than second differences or a smoother: a loss that drops fast and
    smoothly is steady, yet is strongly curved, and either of those would charge it for the
    curvature and needs a window width that could be tuned to suit. Only going back counts here.
    Over-fitting bends the curve up once; that is :func:`loss_rise` and is not counted again.

    Unchanged by a constant added to the losses, by reversing them and by uneven spacing of the
    evaluations (only the order enters). 0 for a straight line and for any curve that only falls,
    only rises, or falls and then rises. A wobble too small to turn a falling curve back is not
    seen, so that an arm still falling steeply looks steadier than one on its floor. The trend
    follows a part of the noise (white noise of deviation 1 on a flat floor reads 0.34, 0.60, 0.75
    at 5, 10, 20 points): compare curves with the same number of evaluations. Fewer than 4 points
    cannot be measured: nan.

    Source: Frisén 1986, "Unimodal regression"; Stout 2008 for the split into two isotonic fits.
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.size < MINIMUM_POINTS:
        return float("nan")
    span = float(np.ptp(values))
    if span == 0:
        return 0.0
    # Fitted on 0..1, so that rounding is relative to the curve and not to its distance from 0.
    scaled = (values - values.min()) / span
    return span * float(np.sqrt(np.mean((scaled - fit_valley(scaled)) ** 2)))


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
