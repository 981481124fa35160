"""Decision curves: is acting on the model better than acting on everybody, or on nobody?

Somebody who acts on a patient from a probability of t says that a missed event is as bad as (1 - t) / t needless
actions. The net benefit at t counts events found, less needless actions at that rate, per patient:
TP / n - FP / n * t / (1 - t). With a share q of patients called, of whom a share r has the event, it is

    q (r - (1 - r) t / (1 - t)).

Intervals combine the normal one of q with Wilson's of r (square-and-add, Newcombe 1998). The variance of a mean over
patients would be 0 where nobody who is called, or nobody who is not, has the event: at low thresholds every model would
be of use. The lead over acting on everybody is the loss avoided among those who are not called, and has its interval.

Sources: Vickers and Elkin (2006), equation 1; Vickers, Van Calster and Steyerberg (2019) for how to read it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from equipoise.platform.evaluation.intervals import wilson_limits
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.pooled import Pooled, pooled_classes
from equipoise.platform.evaluation.samples import Sample

Floats = NDArray[np.float64]

#: Thresholds at which net benefit is computed.
THRESHOLDS = np.round(np.arange(0.01, 1.0, 0.01), 2)
#: ``gain`` is the net benefit minus that of the better of treating all and treating none, with its interval.
DECISION_COLUMNS = (
    "role", "cohort", "task", "class", "threshold", "net_benefit", "low", "high", "treat_all", "gain", "gain_low",
    "gain_high", "n", "n_pos",
)  # fmt: skip


class NetBenefit(NamedTuple):
    """At each of T thresholds, ``[T]``: of the model and of acting on everybody, and the gain, with limits."""

    model: Floats
    low: Floats
    high: Floats
    treat_all: Floats
    gain: Floats
    gain_low: Floats
    gain_high: Floats


class PatientGroup(NamedTuple):
    """Some of the patients, at each of T thresholds, ``[T]``.

    ``share`` of all patients with its standard error ``error``; ``events``, the share of them with the event, as known
    as from ``size`` independent patients.
    """

    share: Floats
    error: Floats
    events: Floats
    size: Floats

    def benefit(self, odds: Floats, z: float) -> tuple[Floats, Floats, Floats]:
        """Net benefit of acting on them and its limits; 0 where there is nobody."""
        weight = 1 + odds  # of one more event among them
        worth = self.events * weight - odds
        benefit = np.where(self.share > 0, self.share * worth, 0.0)
        low, high = wilson_limits(self.events, self.size, z)
        chosen = z * self.error * worth
        down = np.hypot(self.share * weight * (self.events - low), chosen)
        up = np.hypot(self.share * weight * (high - self.events), chosen)
        nobody = self.share <= 0
        return benefit, benefit - np.where(nobody, 0.0, down), benefit + np.where(nobody, 0.0, up)


def compare(
    called: PatientGroup, others: PatientGroup, treat_all: Floats, odds: Floats, z: float
) -> NetBenefit:
    """Net benefit of acting on the called, and its lead over the better of acting on everybody and on nobody."""
    model, low, high = called.benefit(odds, z)
    missed, missed_low, missed_high = others.benefit(odds, z)
    everybody = treat_all > 0
    return NetBenefit(
        model, low, high, treat_all,
        np.where(everybody, 0.0 - missed, model),
        np.where(everybody, 0.0 - missed_high, low),
        np.where(everybody, 0.0 - missed_low, high),
    )  # fmt: skip


def net_benefit(rows: Pooled, thresholds: ArrayLike = THRESHOLDS, confidence: float = 0.95) -> NetBenefit:
    """Net benefit of calling everybody with a score of at least t.

    Parameters
    ----------
    rows
        Patients with ``score`` (a probability) and ``target``; one tested several times counts once.
    thresholds
        ``[T]``, between 0 and 1.
    confidence
        Of the limits.
    """
    t = np.asarray(thresholds, float)
    odds = t / (1 - t)
    called = rows.score[:, None] >= t
    everybody, _ = rows.mean(rows.target[:, None] - (1 - rows.target[:, None]) * odds)
    z = float(ndtri(0.5 + confidence / 2))
    return compare(_patient_group(rows, called), _patient_group(rows, ~called), everybody, odds, z)


def _patient_group(rows: Pooled, chosen: NDArray[np.bool_]) -> PatientGroup:
    """Who is meant in ``[M, T]``; a patient tested several times is one of them in a share of the times."""
    share, error = rows.mean(chosen.astype(float))
    weight = rows.by_patient(chosen * rows.weight[:, None])
    with_event = rows.by_patient(chosen * (rows.weight * rows.target)[:, None])
    total = weight.sum(0)
    some = np.where(total > 0, total, np.nan)
    size = total**2 / np.where(total > 0, (weight**2).sum(0), np.nan)
    return PatientGroup(share, error, with_event.sum(0) / some, size / rows.factor)


def decision_curves(samples: Sequence[Sample], params: EvaluationParams) -> pd.DataFrame:
    """Decision curves of every class, in the test folds and each external cohort; columns ``DECISION_COLUMNS``."""
    parts = [
        curve(about, net_benefit(rows, confidence=params.confidence), rows.patients, rows.events)
        for about, rows in pooled_classes(samples)
        if not rows.undefined
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(DECISION_COLUMNS))


def curve(about: Mapping[str, Any], found: NetBenefit, patients: int, events: int) -> pd.DataFrame:
    """The rows of a table: one per threshold."""
    return pd.DataFrame(
        {
            **about, "threshold": THRESHOLDS, "net_benefit": found.model, "low": found.low, "high": found.high,
            "treat_all": found.treat_all, "gain": found.gain, "gain_low": found.gain_low,
            "gain_high": found.gain_high, "n": patients, "n_pos": events,
        }
    )  # fmt: skip


def useful_range(curve: pd.DataFrame) -> tuple[float, float] | None:
    """Lowest and highest threshold at which the gain is above 0 with its whole interval; None if there is none."""
    useful = curve["threshold"][(curve["gain_low"] > 0)]
    return (float(useful.min()), float(useful.max())) if len(useful) else None
