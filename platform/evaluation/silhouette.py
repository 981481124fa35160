"""Silhouette of the true classes in the input space of a task's head.

arXiv 2403.03891 reports the silhouette of the 384 numbers that are the input of the classification head, but does not
name the distance: two are computed here and named, and they are **Equipoise's definition**, not a replication.
Labels are the true classes, not the predicted ones; a silhouette therefore measures how far the space separates
the classes, and a model can rank patients well without separating them.

Source: Rousseeuw (1987). The unweighted values equal scikit-learn's ``silhouette_score`` (tested); a patient who is
alone in a class scores 0.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

Distance = Literal["cosine", "euclidean"]
DISTANCES: tuple[Distance, ...] = get_args(Distance)

#: Note of every silhouette in the metrics table.
DEFINITION = (
    "Equipoise's definition: the paper on joint learning (arXiv 2403.03891) does not name its distance"
)


def distances(latent: ArrayLike, distance: Distance) -> Floats:
    """Distance of every pair of patients.

    Parameters
    ----------
    latent
        ``[N, D]``.
    distance
        ``euclidean``, or ``cosine``: 1 - the cosine of the angle, 1 where a vector is zero.

    Returns
    -------
    ``[N, N]``, symmetric with a zero diagonal.
    """
    x_ND = np.asarray(latent, float)
    if distance == "cosine":
        length_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
        x_ND = x_ND / np.where(length_N1 > 0, length_N1, 1)
        d_NN = np.clip(1 - x_ND @ x_ND.T, 0, 2)
    else:
        x_ND = x_ND - x_ND.mean(
            0
        )  # a common offset would cost the precision that distinguishes near patients
        square_N = (x_ND**2).sum(1)
        d_NN = np.sqrt(np.maximum(square_N[:, None] + square_N - 2 * x_ND @ x_ND.T, 0))
    np.fill_diagonal(d_NN, 0)
    return d_NN


def silhouette(
    latent: ArrayLike, label: ArrayLike, distance: Distance, weight: ArrayLike | None = None
) -> Floats:
    """Mean over patients of (b - a) / max(a, b), from -1 to 1; around 0 the classes are mixed.

    a is the mean distance to the other patients of the same class, b the smallest mean distance to another class.

    Parameters
    ----------
    latent
        ``[N, D]``.
    label
        ``[N]`` class of each patient.
    distance
        See :func:`distances`.
    weight
        ``[..., N]`` bootstrap multiplicities, or None for one each. Copies of a patient are not each other's
        neighbours: at distance 0 they would make every replicate look tighter than the sample.

    Returns
    -------
    ``[...]``; NaN where fewer than two classes have weight.

    Notes
    -----
    Exact, one matrix product per class: O(N²) for the sample and O(R N²) for R replicates.
    """
    classes = np.asarray(label)
    d_NN = distances(latent, distance)
    w = np.ones(len(classes)) if weight is None else np.asarray(weight, float)
    w_RN = w.reshape(-1, len(classes))
    same_class_RN = np.full(w_RN.shape, np.nan)
    nearest_RN = np.full(w_RN.shape, np.inf)
    present_R = np.zeros(len(w_RN), int)
    for name in np.unique(classes):
        in_class = classes == name
        w_RM = w_RN[:, in_class]
        total_R1 = w_RM.sum(1, keepdims=True)
        sum_RN = w_RM @ d_NN[in_class]
        with np.errstate(divide="ignore", invalid="ignore"):
            same_class_RN[:, in_class] = sum_RN[:, in_class] / (total_R1 - w_RM)
            other_RN = np.where(total_R1 > 0, sum_RN[:, ~in_class] / total_R1, np.inf)
        nearest_RN[:, ~in_class] = np.minimum(nearest_RN[:, ~in_class], other_RN)
        present_R += total_R1[:, 0] > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        each_RN = (nearest_RN - same_class_RN) / np.maximum(same_class_RN, nearest_RN)
        each_RN = np.where(np.isfinite(each_RN), each_RN, 0)  # alone in the class, or all in one place
        mean_R = (w_RN * each_RN).sum(1) / w_RN.sum(1)
    return np.where(present_R < 2, np.nan, mean_R).reshape(w.shape[:-1])
