"""Mix-up of single cells into samples that look like bulk RNA, with the fractions of cell types as targets.

Path-GPTOmic (arXiv 2403.11375, section 2.1) mixes two cells before the encoder: λ x_i + (1 − λ) x_j with λ uniform on
[0, 1], and their one-hot types in the same way. Bulk tissue is a mixture of very many cells; the Dirichlet variant
mixes k of them, so that the samples reach from two cells to something close to bulk.

A mixture is a row of weights over cells: values and targets are both that row times a matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from equipoise.models.gptomic.params import MixupParams

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def mixture_weights(labels: np.ndarray, params: MixupParams, seed: int) -> csr_matrix:
    """Which cells make up which sample, and to what part.

    Parameters
    ----------
    labels
        [C] type of every cell, from 0.
    params
        How many cells, and their weights.
    seed
        Decides everything.

    Returns
    -------
    csr_matrix
        float32 [samples, C]; rows are non-negative and sum to 1. A cell that was drawn twice has the sum of both
        weights.
    """
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(seed)
    n = params.samples
    if params.mixup == "none":
        sizes = np.ones(n, np.int64)
        parts = np.ones(n)
    elif params.mixup == "two_cells":
        sizes = np.full(n, 2)
        share = rng.random(n)
        parts = np.stack([share, 1 - share], axis=1).ravel()
    else:
        sizes = rng.choice(params.cells, n)
        concentration = np.repeat(rng.choice(params.concentrations, n), sizes)
        # Of gamma variables: their logarithms do not underflow for small concentrations, as they themselves do.
        logs = (
            np.log(rng.standard_gamma(concentration + 1))
            + np.log1p(-rng.random(len(concentration))) / concentration
        )
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        parts = np.exp(logs - np.repeat(np.maximum.reduceat(logs, starts), sizes))
        parts /= np.repeat(np.add.reduceat(parts, starts), sizes)
    rows = np.repeat(np.arange(n), sizes)
    weights = csr_matrix((parts, (rows, _draw(labels, len(rows), params, rng))), shape=(n, len(labels)))
    return weights.astype(np.float32)


def _draw(labels: np.ndarray, n: int, params: MixupParams, rng: np.random.Generator) -> np.ndarray:
    """Indices of n cells, with replacement."""
    if params.draw == "cells":
        return rng.integers(0, len(labels), n)
    sizes = np.bincount(labels)
    present = np.flatnonzero(sizes)
    types = present[rng.integers(0, len(present), n)]
    within = (rng.random(n) * sizes[types]).astype(np.int64)
    return np.argsort(labels, kind="stable")[np.cumsum(sizes)[types] - sizes[types] + within]


def mix(values: csr_matrix, weights: csr_matrix, space: str = "linear") -> np.ndarray:
    """Samples of a mixture on the linear scale.

    Parameters
    ----------
    values
        [C, G] on the linear scale.
    weights
        [n, C] of :func:`mixture_weights`, or some of its rows.
    space
        As :attr:`~equipoise.models.gptomic.params.MixupParams.space`.

    Returns
    -------
    numpy.ndarray
        float32 [n, G].
    """
    if space == "log":
        logs = values.copy()
        logs.data = np.log1p(logs.data)
        return np.expm1(np.asarray((weights @ logs).todense())).astype(np.float32)
    return np.asarray((weights @ values).todense()).astype(np.float32)


def mixed_labels(labels: np.ndarray, weights: csr_matrix, types: int) -> np.ndarray:
    """Fractions of cell types, float32 [n, types]: the mixed one-hot labels."""
    return np.asarray(weights @ np.eye(types, dtype=np.float32)[labels])


class Recovery(NamedTuple):
    """How well fractions of cell types are recovered.

    Attributes
    ----------
    r
        Pearson correlation of predicted and true fractions, over samples and types together.
    type_r
        The mean over types of the correlation over samples. NaN for r and types without any variation.
    total_variation
        Mean over samples of half the sum of absolute differences: 0 is perfect, 1 the worst.
    r_of_type
        [K] of which ``type_r`` is the mean; NaN where a type's fraction or its prediction never varies.
    """

    r: float
    type_r: float
    total_variation: float
    r_of_type: np.ndarray


def recovery(predicted_NK: np.ndarray, true_NK: np.ndarray) -> Recovery:
    """Compare predicted with true fractions, ``[N, K]`` each."""
    predicted_NK, true_NK = np.asarray(predicted_NK, np.float64), np.asarray(true_NK, np.float64)
    of_type = _correlations(predicted_NK, true_NK)
    pooled = _correlations(predicted_NK.reshape(-1, 1), true_NK.reshape(-1, 1))
    known = of_type[~np.isnan(of_type)]
    distance = 0.5 * np.abs(predicted_NK - true_NK).sum(axis=1).mean()
    return Recovery(float(pooled[0]), float(known.mean()) if len(known) else np.nan, float(distance), of_type)


def _correlations(a_NK: np.ndarray, b_NK: np.ndarray) -> np.ndarray:
    """Pearson's, of each pair of columns."""
    a, b = a_NK - a_NK.mean(axis=0), b_NK - b_NK.mean(axis=0)
    spread = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-12, (a * b).sum(axis=0) / spread, np.nan)
