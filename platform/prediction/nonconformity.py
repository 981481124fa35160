"""What a conformal calibration is made of: labelled patients of the folds, and how unusual they are.

The scores are described in :mod:`~equipoise.platform.prediction.conformal`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
#: Fold model: repeat and fold.
ModelKey = tuple[int, int]
#: Decimals of nonconformity scores between 0 and 1: coarse enough that a patient's
#: probability cannot be looked up, and the same for new patients, so that ranks stay exact.
_DECIMALS = 4


def class_nonconformity(probability: Floats, score: str) -> Floats:
    """Nonconformity of every class.

    Parameters
    ----------
    probability
        ``[V, C]``.
    score
        ``lac`` or ``aps``.

    >>> class_nonconformity(np.array([[0.5, 0.3, 0.2]]), "aps").tolist()
    [[0.5, 0.8, 1.0]]
    """
    if score == "lac":
        return np.round(1 - probability, _DECIMALS)
    likelier = probability[:, None, :] >= probability[:, :, None]
    return np.round(np.einsum("vcd,vd->vc", likelier, probability), _DECIMALS)


def with_negative(scores: Floats, kind: str) -> Floats:
    """``[V, 2]`` probabilities of a binary task from ``[V, 1]`` of its positive class; other tasks as they are."""
    return np.concatenate([1 - scores, scores], axis=1) if kind == "binary" else scores


def class_names(rows: pd.DataFrame, kind: str, negative: str = "") -> tuple[str, ...]:
    """Labels of a task in the order of their columns; for a binary task ``negative`` or ``not X``, and ``X``."""
    if kind not in ("binary", "multiclass"):
        return ()
    names = tuple(sorted(str(name) for name in rows["class"].unique()))
    return (negative or f"not {names[0]}", *names) if kind == "binary" else names


def labelled_folds(rows: pd.DataFrame, kind: str, role: str) -> Iterator[tuple[ModelKey, pd.DataFrame]]:
    """Per fold, its labelled patients of a role, with the patient as index.

    Columns: ``score_0 …`` (probabilities of the labels, or the score), ``label`` (column of the true class, NaN without
    classes), ``value`` (target or log of the observed time).
    """
    import pandas as pd

    truth = "time" if kind == "survival" else "target"
    known = rows[((rows["role"] == role) & rows[truth].notna()).to_numpy()]
    for (repeat, fold), group in known.groupby(["repeat", "fold"], sort=True):
        patients, score, target = by_patient(group, ("score", truth))
        score = with_negative(score, kind)
        table = pd.DataFrame(
            score, index=patients, columns=[f"score_{column}" for column in range(score.shape[1])]
        )
        if kind == "binary":
            table["label"] = target[:, 0]
        elif kind == "multiclass":
            table["label"] = np.where(target.sum(axis=1) == 1, target.argmax(axis=1), np.nan)
            table = table[table["label"].notna()]
        else:
            table["value"] = np.log(target[:, 0]) if kind == "survival" else target[:, 0]
        yield (int(repeat), int(fold)), table


def by_patient(rows: pd.DataFrame, columns: tuple[str, ...]) -> tuple[NDArray[Any], ...]:
    """Patients of one fold model in ascending order, then ``[V, classes]`` of each column, classes ascending."""
    patient, label = rows["patient"].to_numpy(str), rows["class"].to_numpy(str)
    order = np.lexsort((label, patient))
    patients = np.unique(patient)
    classes = len(np.unique(label))
    if len(patients) * classes != len(rows):
        raise DataError(
            f"{len(rows)} rows are not one for each of {len(patients)} patients and {classes} classes",
            where="conformal sets",
        )
    values = [rows[column].to_numpy(float)[order].reshape(-1, classes) for column in columns]
    return (patients.astype(object), *values)


def coarser(values: Floats, kind: str) -> Floats:
    """Residuals as they leave a study: coarse enough that no label can be computed from them, and on the safe side.

    Distances (``regression``) are rounded up to three significant digits, logs of times (``survival``) down to
    twentieths, which is 5 % of a time.
    """
    if kind == "survival":
        return np.asarray(np.floor(values * 20 + 1e-9) / 20)
    known = np.abs(values) > 0
    unit = 10.0 ** (np.floor(np.log10(np.where(known, np.abs(values), 1.0))) - 2)
    rounded = np.ceil(values / unit - 1e-9) * unit
    return np.array([float(f"{value:.4g}") for value in np.where(known, rounded, 0.0)])
