"""Values chosen on validation data for each fold: thresholds, risk cut-offs, scales and reference values.

The thresholds of a fold's model are applied to the test and external patients of that model. For a patient with
predictions of several models (an external cohort, repeated cross-validation) the mean distance to the models' cut-offs
is used, which for an external cohort is the mean score against the mean cut-off.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from equipoise.platform.evaluation.params import ThresholdParams
from equipoise.platform.evaluation.predictions import labelled

FOLD_KEYS = ["repeat", "fold"]


def ensemble(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean score over the models of all folds, one row per (patient, task, class) with repeat and fold 0.

    Probabilities and values in the label's units may be averaged as they are; log risks go through
    :func:`standardise_risks` first.
    """
    keys = ["patient", "task", "class"]
    first = rows.drop_duplicates(keys).set_index(keys)
    first["score"] = rows.groupby(keys)["score"].mean()
    return first.assign(repeat=0, fold=0).reset_index()[list(rows.columns)]


def risk_scales(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation of the validation risks per (repeat, fold) of one survival task.

    Columns ``mean`` and ``sd``; folds without two different validation risks are absent.
    """
    of_fold = rows[rows["role"] == "val"].groupby(FOLD_KEYS, sort=True)["score"]
    scales = pd.DataFrame({"mean": of_fold.mean(), "sd": of_fold.std(ddof=0)})
    # Rounding of the mean leaves a spread behind where a model gives everybody the same risk.
    return scales[scales["sd"] > 1e-12 * (1 + scales["mean"].abs())]


def standardise_risks(rows: pd.DataFrame, scales: pd.DataFrame) -> pd.DataFrame:
    """Log risks in units of their fold's validation patients, so that the models of folds can be averaged.

    A partial likelihood determines log risks only up to a constant, and their spread depends on when a fold
    stopped training: a plain mean would be dominated by the fold with the widest spread. Each fold is therefore
    centred and scaled by *its own* model's risks on its validation patients. The mean rank in the external
    cohort would give the same kind of order, but a patient's score would then depend on the other patients of the
    cohort, could not be computed for a single new patient, and would lose the distance between two patients.

    Parameters
    ----------
    rows
        Rows of one survival task.
    scales
        Result of :func:`risk_scales`; rows of folds without a scale are left out, because they order no patients.
    """
    scale = scales.reindex(pd.MultiIndex.from_frame(rows[FOLD_KEYS]))
    score = (rows["score"].to_numpy() - scale["mean"].to_numpy()) / scale["sd"].to_numpy()
    return rows.assign(score=score)[np.isfinite(score)]


def choose_threshold(target: np.ndarray, score: np.ndarray, params: ThresholdParams) -> float:
    """Threshold for "positive if score >= threshold"; NaN if a class is missing.

    Candidates lie midway between neighbouring scores, so that a threshold does not depend on the score of one patient,
    plus one below all scores and one above. Youden: the first maximum from above. Sensitivity: the highest candidate
    that reaches the required value; specificity: the lowest. A fixed threshold looks at no patient.
    """
    if params.metric == "fixed":
        return float(params.value or 0)
    y, s = np.asarray(target, float), np.asarray(score, float)
    if not (y == 1).any() or not (y == 0).any():
        return float("nan")
    distinct, place = np.unique(-s, return_inverse=True)
    distinct = -distinct  # the highest first; "called" up to each of them
    called = [np.cumsum(np.bincount(place, y == truth, len(distinct))) for truth in (1, 0)]
    sensitivity, specificity = called[0] / called[0][-1], 1 - called[1] / called[1][-1]
    candidates = np.r_[(distinct[:-1] + distinct[1:]) / 2, np.nextafter(distinct[-1], -np.inf)]
    if params.metric == "specificity":  # not always within reach of those that call somebody
        candidates = np.r_[np.nextafter(distinct[0], np.inf), candidates]
        reached = np.r_[1.0, specificity] >= (params.value or 1.0) - 1e-12
        return float(candidates[np.flatnonzero(reached)[-1]])
    if params.metric == "sensitivity":
        return float(candidates[np.flatnonzero(sensitivity >= (params.value or 1.0) - 1e-12)[0]])
    return float(candidates[int(np.argmax(np.round(sensitivity + specificity, 12)))])


def fold_thresholds(rows: pd.DataFrame, params: ThresholdParams) -> pd.Series:
    """Threshold per (repeat, fold) of one binary task, from its validation rows; NaN where not estimable.

    Folds without validation rows are absent, unless the threshold is fixed.
    """
    val = rows[(rows["role"] == "val") & labelled(rows)]
    used = rows if params.metric == "fixed" else val
    return _by_fold(used, lambda g: choose_threshold(g["target"].to_numpy(), g["score"].to_numpy(), params))


def fold_risk_cutoffs(rows: pd.DataFrame) -> pd.Series:
    """Median validation risk per (repeat, fold) of one survival task: above it is the high-risk group."""
    return _by_fold(rows[rows["role"] == "val"], lambda g: float(g["score"].median()))


def fold_means(rows: pd.DataFrame) -> pd.Series:
    """Mean validation target per (repeat, fold) of a regression task: the prediction of a model without inputs."""
    return _by_fold(rows[rows["role"] == "val"], lambda g: float(g["target"].mean()))


def apply_cutoffs(rows: pd.DataFrame, cutoffs: pd.Series, *, inclusive: bool) -> pd.DataFrame:
    """Positive or negative, for each patient of the given rows (one task, one role).

    Parameters
    ----------
    rows
        Rows of the predictions table; a patient may occur in several folds.
    cutoffs
        Cut-off per (repeat, fold); folds with a NaN cut-off, or without one, are ignored.
    inclusive
        Whether a score equal to the cut-off is positive (thresholds: yes, risk groups: no).

    Returns
    -------
    Index patient; columns ``margin`` (mean of score minus cut-off, NaN if no fold has a cut-off), ``positive``,
    ``cohort``, ``site``, ``target``, ``time``, ``event``.
    """
    cutoff = cutoffs.reindex(pd.MultiIndex.from_frame(rows[FOLD_KEYS])).to_numpy()
    margin = (rows["score"] - cutoff).groupby(rows["patient"]).mean()
    columns = ["cohort", "site", "target", "time", "event"]
    first = rows.drop_duplicates("patient").set_index("patient")[columns]
    table = first.join(margin.rename("margin"))
    positive = table["margin"] >= 0 if inclusive else table["margin"] > 0
    return table.assign(positive=positive)


def _by_fold(rows: pd.DataFrame, compute: Callable[[pd.DataFrame], float]) -> pd.Series:
    index, values = [], []
    for key, group in rows.groupby(FOLD_KEYS, sort=True):
        index.append(key)
        values.append(compute(group))
    return pd.Series(values, index=pd.MultiIndex.from_tuples(index, names=FOLD_KEYS), dtype=float)
