"""What validation data decide: operating points, risk cut-offs, scales and reference values, fold by fold.

Test and external patients are judged by the rule of *their* fold's model. Where a patient was seen by several
models (an external cohort, repeated cross-validation) the mean distance to the models' cut-offs decides,
which for an external cohort is the mean score against the mean cut-off.
"""

import numpy as np
import pandas as pd

from equipoise.platform.evaluation.metrics import confusion
from equipoise.platform.evaluation.params import ThresholdParams
from equipoise.platform.evaluation.predictions import labelled

FOLD = ["repeat", "fold"]


def ensemble(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean score over the models of all folds, one row per (patient, task, class) with repeat and fold 0.

    Probabilities and values in the label's units may be averaged as they are; log risks go through
    :func:`standardised` first.
    """
    keys = ["patient", "task", "class"]
    first = rows.drop_duplicates(keys).set_index(keys)
    first["score"] = rows.groupby(keys)["score"].mean()
    return first.assign(repeat=0, fold=0).reset_index()[list(rows.columns)]


def risk_scales(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation of the validation risks per (repeat, fold) of one survival task.

    Columns ``mean`` and ``sd``; folds without two different validation risks are absent.
    """
    of_fold = rows[rows["role"] == "val"].groupby(FOLD, sort=True)["score"]
    scales = pd.DataFrame({"mean": of_fold.mean(), "sd": of_fold.std(ddof=0)})
    # Rounding of the mean leaves a spread behind where a model gives everybody the same risk.
    return scales[scales["sd"] > 1e-12 * (1 + scales["mean"].abs())]


def standardised(rows: pd.DataFrame, scales: pd.DataFrame) -> pd.DataFrame:
    """Log risks in units of their fold's validation patients, so that the models of folds can be averaged.

    A partial likelihood fixes log risks only up to a constant, and how far they spread hangs on when a fold
    stopped: in a plain mean the fold with the widest spread would decide alone. Each fold is therefore
    centred and scaled by *its own* model's risks on its validation patients. The mean rank in the external
    cohort would do as well for the order, but a patient's score would then depend on who else is in the
    cohort, could not be given for a single new patient, and would forget how far apart two patients are.

    Parameters
    ----------
    rows
        Rows of one survival task.
    scales
        Of :func:`risk_scales`; rows of folds without a scale are left out, they order nobody.
    """
    scale = scales.reindex(pd.MultiIndex.from_frame(rows[FOLD]))
    score = (rows["score"].to_numpy() - scale["mean"].to_numpy()) / scale["sd"].to_numpy()
    return rows.assign(score=score)[np.isfinite(score)]


def choose_threshold(target: np.ndarray, score: np.ndarray, rule: ThresholdParams) -> float:
    """Threshold of "positive if score >= threshold" by the rule; NaN if a class is missing.

    Candidates lie midway between neighbouring scores, so that a threshold does not hang on one patient's
    score, plus one below all scores. Youden: the first maximum from above. Sensitivity: the highest candidate
    that reaches it.
    """
    y, s = np.asarray(target, float), np.asarray(score, float)
    if not (y == 1).any() or not (y == 0).any():
        return float("nan")
    distinct = np.unique(s)[::-1]
    candidates = np.r_[(distinct[:-1] + distinct[1:]) / 2, np.nextafter(distinct[-1], -np.inf)]
    tables = [confusion(y, s >= c) for c in candidates]
    sensitivity = np.array([float(t.tp / (t.tp + t.fn)) for t in tables])
    if rule.metric == "sensitivity":
        reached = sensitivity >= (rule.value or 1.0) - 1e-12
        return float(candidates[np.flatnonzero(reached)[0]])
    specificity = np.array([float(t.tn / (t.tn + t.fp)) for t in tables])
    return float(candidates[int(np.argmax(np.round(sensitivity + specificity, 12)))])


def fold_thresholds(rows: pd.DataFrame, rule: ThresholdParams) -> pd.Series:
    """Threshold per (repeat, fold) of one binary task, from its validation rows; NaN where not estimable.

    Folds without validation rows are absent.
    """
    val = rows[(rows["role"] == "val") & labelled(rows)]
    return _by_fold(val, lambda g: choose_threshold(g["target"].to_numpy(), g["score"].to_numpy(), rule))


def fold_risk_cuts(rows: pd.DataFrame) -> pd.Series:
    """Median validation risk per (repeat, fold) of one survival task: above it is the high-risk group."""
    return _by_fold(rows[rows["role"] == "val"], lambda g: float(g["score"].median()))


def fold_means(rows: pd.DataFrame) -> pd.Series:
    """Mean validation target per (repeat, fold) of a regression task: the answer of one who sees no image."""
    return _by_fold(rows[rows["role"] == "val"], lambda g: float(g["target"].mean()))


def decide(rows: pd.DataFrame, cuts: pd.Series, *, at_cut: bool) -> pd.DataFrame:
    """One decision per patient of the given rows (one task, one role).

    Parameters
    ----------
    rows
        Rows of the predictions table; a patient may occur in several folds.
    cuts
        Cut-off per (repeat, fold); folds with a NaN cut-off, or without one, do not vote.
    at_cut
        Whether a score equal to the cut-off is positive (thresholds: yes, risk groups: no).

    Returns
    -------
    Index patient; columns ``margin`` (mean of score minus cut-off, NaN if no fold votes), ``positive``,
    ``cohort``, ``site``, ``target``, ``time``, ``event``.
    """
    cut = cuts.reindex(pd.MultiIndex.from_frame(rows[FOLD])).to_numpy()
    margin = (rows["score"] - cut).groupby(rows["patient"]).mean()
    facts = ["cohort", "site", "target", "time", "event"]
    first = rows.drop_duplicates("patient").set_index("patient")[facts]
    table = first.join(margin.rename("margin"))
    positive = table["margin"] >= 0 if at_cut else table["margin"] > 0
    return table.assign(positive=positive)


def _by_fold(rows: pd.DataFrame, rule: "object") -> pd.Series:
    index, values = [], []
    for key, group in rows.groupby(FOLD, sort=True):
        index.append(key)
        values.append(rule(group))  # type: ignore[operator]
    return pd.Series(values, index=pd.MultiIndex.from_tuples(index, names=FOLD), dtype=float)
