"""Decision curves: is acting on the model better than acting on everybody, or on nobody?

Somebody who acts on a patient from a probability of t says that a missed event is as bad as (1 - t) / t needless
actions. The net benefit at t counts events found, less needless actions at that rate, per patient:
TP / n - FP / n * t / (1 - t). It is a mean over patients, and so its interval is that of a mean.

Sources: Vickers and Elkin (2006), equation 1; Vickers, Van Calster and Steyerberg (2019) for how to read it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

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
    """At each of T thresholds: of the model, of acting on everybody, and the gain with standard errors, ``[T]``."""

    model: Floats
    model_error: Floats
    treat_all: Floats
    gain: Floats
    gain_error: Floats


def net_benefit(rows: Pooled, thresholds: ArrayLike = THRESHOLDS) -> NetBenefit:
    """Net benefit of calling everybody with a score of at least t.

    The better of treating all and treating none is that of these patients, so that the gain has the interval of a
    difference to one fixed strategy.
    """
    t = np.asarray(thresholds, float)
    cost = t / (1 - t)
    y = rows.target[:, None]
    worth = y - (1 - y) * cost  # of acting on a patient
    called = rows.score[:, None] >= t
    model, error = rows.mean(worth * called)
    everybody, _ = rows.mean(worth)
    better = np.where(everybody > 0, worth, 0)
    gain, gain_error = rows.mean(worth * called - better)
    return NetBenefit(model, error, everybody, gain, gain_error)


def decision_curves(samples: Sequence[Sample], params: EvaluationParams) -> pd.DataFrame:
    """Decision curves of every class, in the test folds and each external cohort; columns ``DECISION_COLUMNS``."""
    z = float(ndtri(0.5 + params.confidence / 2))
    parts = []
    for about, rows in pooled_classes(samples):
        if not rows.undefined:
            found = net_benefit(rows)
            parts.append(
                pd.DataFrame(
                    {
                        **about, "threshold": THRESHOLDS, "net_benefit": found.model,
                        "low": found.model - z * found.model_error, "high": found.model + z * found.model_error,
                        "treat_all": found.treat_all, "gain": found.gain,
                        "gain_low": found.gain - z * found.gain_error, "gain_high": found.gain + z * found.gain_error,
                        "n": rows.patients, "n_pos": rows.events,
                    }
                )
            )  # fmt: skip
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(DECISION_COLUMNS))


def useful_range(curve: pd.DataFrame) -> tuple[float, float] | None:
    """Lowest and highest threshold at which the gain is above 0 with its whole interval; None if there is none."""
    useful = curve["threshold"][(curve["gain_low"] > 0)]
    return (float(useful.min()), float(useful.max())) if len(useful) else None
