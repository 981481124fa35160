"""Unpenalised logistic regression with weights and offset, by Newton's method.

Sources: McCullagh and Nelder (1989), chapter 4; White (1982) for the variance that does not trust the model.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Floats = NDArray[np.float64]

#: Largest linear predictor: beyond it a probability is 0 or 1 in float64, and the classes are separated.
_LARGEST = 30.0
_ROUNDS = 100
_SMALL = 1e-10


@dataclass(frozen=True)
class LogisticFit:
    """Coefficients ``[P]``, the inverse of the information ``[P, P]``, and the influence ``[M, P]`` of every row.

    The sum of products of influences (of the rows of a patient together) is White's covariance.
    """

    coefficients: Floats
    inverse: Floats
    influence: Floats


def fit_logistic(
    x: Floats, target: Floats, weight: Floats | None = None, offset: Floats | None = None
) -> LogisticFit | None:
    """Maximum likelihood; None where it does not exist: separated classes, or columns that depend on each other.

    Parameters
    ----------
    x
        ``[M, P]``, a column of ones included if an intercept is wanted.
    target
        ``[M]`` of 0 and 1.
    weight, offset
        ``[M]``; ones and zeros if None.
    """
    rows, columns = x.shape
    w = np.ones(rows) if weight is None else weight
    start = np.zeros(rows) if offset is None else offset

    def likelihood(beta: Floats) -> float:
        eta = start + x @ beta
        return float((w * (target * eta - np.logaddexp(0, eta))).sum())

    beta = np.zeros(columns)
    current = likelihood(beta)
    for _ in range(_ROUNDS):
        p = expit(start + x @ beta)
        gradient = x.T @ (w * (target - p))
        information = (x * (w * p * (1 - p))[:, None]).T @ x
        if np.linalg.cond(information) > 1e14:
            return None
        step = np.linalg.solve(information, gradient)
        length = 1.0
        while likelihood(beta + length * step) < current - 1e-12 * (1 + abs(current)) and length > 1e-6:
            length /= 2
        beta = beta + length * step
        current = likelihood(beta)
        if np.abs(x @ beta).max(initial=0) > 10 * _LARGEST:
            return None
        if np.abs(length * step).max(initial=0) < _SMALL * (1 + np.abs(beta).max(initial=0)):
            break
    else:
        return None
    p = expit(start + x @ beta)
    inverse = np.linalg.inv((x * (w * p * (1 - p))[:, None]).T @ x)
    return LogisticFit(beta, inverse, (x * (w * (target - p))[:, None]) @ inverse)
