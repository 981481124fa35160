"""Whether new patients differ from a training cohort as a group: in their mean, and in how far out they lie.

Sources: Hotelling, Annals of Mathematical Statistics 2 (1931), for T²; Székely and Rizzo, InterStat 5 (2004), for the
energy distance, here with a permutation test.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.platform.prediction.reference import Centre

Floats = NDArray[np.float64]

#: Permutations of the test of spread.
PERMUTATIONS = 999


class Location(NamedTuple):
    """Distance of a batch from a training cohort in standard deviations per component, and its p value."""

    shift: float
    p: float


def location_test(whitened: Floats, centre: Centre, covariance: Floats, degrees: int) -> Location:
    """Hotelling's T² of a batch against a training cohort, with a covariance that the batch has no part in.

    Parameters
    ----------
    whitened
        ``[P, q]`` patients in the components of the reference.
    centre
        The training cohort.
    covariance, degrees
        ``[q, q]`` of the training patients, and its degrees of freedom.
    """
    from scipy.stats import f

    m, q = whitened.shape
    apart = whitened.mean(axis=0) - centre.mean
    squared = float(apart @ np.linalg.pinv(covariance) @ apart) / centre.scale
    t2 = squared * m * centre.patients / (m + centre.patients)
    p = float(f.sf(t2 * (degrees - q + 1) / (q * degrees), q, degrees - q + 1))
    return Location(float(np.sqrt(squared / q)), p)


def energy_distance(a: ArrayLike, b: ArrayLike) -> float:
    """2 E|A - B| - E|A - A'| - E|B - B'|: 0 if the distributions are the same.

    Parameters
    ----------
    a, b
        ``[n]`` or ``[n, D]`` and ``[m]`` or ``[m, D]``.

    >>> round(energy_distance([0.0, 1.0], [2.0, 3.0]), 3)
    3.0
    """
    x, y = _points(a), _points(b)
    apart = _apart(np.concatenate([x, y]))
    return float(_energy(apart, np.r_[np.ones(len(x)), np.zeros(len(y))][None])[0])


def energy_test(
    a: ArrayLike, b: ArrayLike, rng: np.random.Generator, permutations: int = PERMUTATIONS
) -> tuple[float, float]:
    """Energy distance of two samples and its permutation p value, (1 + larger ones) / (1 + permutations)."""
    x, y = _points(a), _points(b)
    apart = _apart(np.concatenate([x, y]))
    first = np.r_[np.ones(len(x)), np.zeros(len(y))]
    labels = np.concatenate([first[None], rng.permuted(np.tile(first, (permutations, 1)), axis=1)])
    values = _energy(apart, labels)
    reached = int((values[1:] >= values[0] - 1e-12 * (1 + abs(values[0]))).sum())
    return float(values[0]), (1 + reached) / (1 + permutations)


def _points(values: ArrayLike) -> Floats:
    x = np.asarray(values, float)
    return x[:, None] if x.ndim == 1 else x


def _apart(points: Floats) -> Floats:
    """``[N, N]`` distances."""
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(points, points))


def _energy(apart: Floats, first: Floats) -> Floats:
    """``[B]`` energy distances for B assignments ``[B, N]`` of 1 (first sample) and 0."""
    n, m = first[0].sum(), (1 - first[0]).sum()
    to_first = first @ apart
    within_first = (to_first * first).sum(axis=1)
    between = (to_first * (1 - first)).sum(axis=1)
    within_second = apart.sum() - within_first - 2 * between
    return np.asarray(2 * between / (n * m) - within_first / n**2 - within_second / m**2)
