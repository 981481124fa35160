"""Decision curves of survival tasks: is acting on the predicted risk of an event until a horizon better than acting on
everybody, or on nobody?

As for a binary outcome (:mod:`~equipoise.platform.evaluation.decision_curves`), with shares of events estimated by
Kaplan-Meier, so that the censored count as long as they were followed. With q the share of patients called at a
threshold t, and S their Kaplan-Meier survival at the horizon, the net benefit is

    (1 - S) q - S q t / (1 - t).

Source: Vickers, Cronin, Elkin and Gonen (2008), BMC Medical Informatics and Decision Making 8:53, section "Extension to
time-to-event data". Intervals are those of decision curves: S is as well known as a share among as many independent
patients as give Greenwood's variance (Dorey and Korn 1987); where that is 0, as among those whose state is known.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from equipoise.platform.evaluation.decision_curves import THRESHOLDS, NetBenefit, PatientGroup, compare, curve
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.pooled import identity, variance_factor
from equipoise.platform.evaluation.samples import Sample
from equipoise.platform.evaluation.survival_calibration import patients_at_horizon

Floats = NDArray[np.float64]

#: As those of decision curves; ``horizon`` is in days, ``n_pos`` counts events seen until then.
SURVIVAL_DECISION_COLUMNS = (
    "role", "cohort", "task", "horizon", "threshold", "net_benefit", "low", "high", "treat_all", "gain", "gain_low",
    "gain_high", "n", "n_pos", "note",
)  # fmt: skip


def survival_net_benefit(
    time: ArrayLike,
    event: ArrayLike,
    predicted: ArrayLike,
    horizon: float,
    thresholds: ArrayLike = THRESHOLDS,
    confidence: float = 0.95,
    factor: float = 1.0,
) -> NetBenefit:
    """Net benefit of calling everybody whose predicted share with an event until ``horizon`` is at least t.

    Parameters
    ----------
    time, event, predicted
        ``[N]``: follow-up, 1 for an event and 0 for censoring, predicted probability of an event until the horizon.
    horizon
        In the unit of ``time``.
    thresholds
        ``[T]``, between 0 and 1.
    confidence
        Of the limits.
    factor
        Multiplies variances (:func:`~equipoise.platform.evaluation.pooled.variance_factor`).

    Returns
    -------
    NetBenefit
        ``[T]`` each. The gain is over the better of acting on everybody and on nobody.

    Examples
    --------
    >>> survival_net_benefit([1, 2, 3, 4], [1, 1, 0, 0], [0.9, 0.8, 0.3, 0.2], 2.5, [0.5]).model.tolist()
    [0.5]
    """
    t = np.asarray(thresholds, float)
    odds = t / (1 - t)
    score = np.asarray(predicted, float)
    called = score >= t[:, None]
    z = float(ndtri(0.5 + confidence / 2))
    everybody = _patient_group(time, event, np.ones((1, len(score)), bool), horizon, factor).benefit(odds, z)[
        0
    ]
    parts = [_patient_group(time, event, chosen, horizon, factor) for chosen in (called, ~called)]
    return compare(parts[0], parts[1], everybody, odds, z)


def _patient_group(
    time: ArrayLike, event: ArrayLike, chosen: NDArray[np.bool_], horizon: float, factor: float
) -> PatientGroup:
    """Patients who are called, or those who are not, ``[T, N]``, and their share with an event by Kaplan-Meier."""
    n = chosen.shape[1]
    share = chosen.mean(1)
    survival, variance, known = _kaplan_meier_at(time, event, chosen, horizon)
    size = np.where(variance > 0, survival * (1 - survival) / np.where(variance > 0, variance, 1), known)
    error = np.sqrt(factor * share * (1 - share) / max(n - 1, 1))
    return PatientGroup(share, error, 1 - survival, size / factor)


def _kaplan_meier_at(
    time: ArrayLike, event: ArrayLike, chosen: NDArray[np.bool_], horizon: float
) -> tuple[Floats, Floats, Floats]:
    """Survival at the horizon, Greenwood's variance and patients of known state, in T groups ``[T, N]``."""
    order = np.argsort(np.asarray(time, float), kind="stable")
    t, inside = np.asarray(time, float)[order], chosen[:, order].astype(float)
    died = (np.asarray(event, float)[order] == 1) & (t <= horizon)
    _, first = np.unique(t, return_index=True)
    at_risk = np.cumsum(inside[:, ::-1], axis=1)[:, ::-1][:, first]
    deaths = np.add.reduceat(inside * died, first, axis=1)
    left = at_risk - deaths
    survival = np.prod(np.where(deaths > 0, left / np.maximum(at_risk, 1), 1.0), axis=1)
    terms = np.where((deaths > 0) & (left > 0), deaths / np.maximum(at_risk * left, 1), 0.0)
    return survival, survival**2 * terms.sum(1), inside[:, died | (t >= horizon)].sum(1)


def survival_decision_curves(samples: Sequence[Sample], params: EvaluationParams) -> pd.DataFrame:
    """Decision curves of every survival task at a horizon; columns ``SURVIVAL_DECISION_COLUMNS``.

    One row without values where predicted survival cannot be judged, with the reason.
    """
    parts = []
    for sample in (s for s in samples if s.kind == "survival"):
        found = patients_at_horizon(sample, params)
        if found.patients is None:
            about = {
                **identity(sample),
                "horizon": found.horizon,
                "n": len(sample.strata),
                "note": found.note,
            }
            parts.append(pd.DataFrame([about], columns=list(SURVIVAL_DECISION_COLUMNS)))
            continue
        time, event, predicted = (found.patients[name].to_numpy() for name in ("time", "event", "predicted"))
        benefit = survival_net_benefit(
            time,
            event,
            predicted,
            found.horizon,
            confidence=params.confidence,
            factor=variance_factor(sample),
        )
        about = {**identity(sample), "horizon": found.horizon}
        events = int(((time <= found.horizon) & (event == 1)).sum())
        parts.append(curve(about, benefit, len(time), events).assign(note=found.note))
    columns = list(SURVIVAL_DECISION_COLUMNS)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
