"""Calibration of predicted survival at a horizon: in groups of rising predicted risk, the share with an event.

The predicted share is one minus the mean survival that the models predict at the horizon
(:mod:`~equipoise.platform.evaluation.calibration`: Cox's model of the risk, fitted to validation patients). The
observed share is one minus Kaplan-Meier in the group, so that the censored count as long as they were followed.

Source: D'Agostino and Nam (2003), Handbook of Statistics 23, for groups of predicted risk with Kaplan-Meier; intervals
are Greenwood's on the log(-log) scale and are about the patients, not about other trainings.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.pooled import identity
from equipoise.platform.evaluation.samples import Sample, ScoredPatients
from equipoise.platform.evaluation.survival import kaplan_meier

Floats = NDArray[np.float64]

YEAR = 365.25
#: Horizons among which the longest with enough follow-up is chosen, in years.
HORIZONS = (10, 5, 3, 2, 1)
#: Patients still followed at the horizon, and events before it, that a chosen horizon needs.
ENOUGH_FOLLOWED, ENOUGH_EVENTS = 20, 10
#: Events for each group of predicted risk, and most groups.
EVENTS_PER_GROUP, MOST_GROUPS = 10, 5
#: ``group`` is ``all``, or the number of a group from the lowest predicted risk; ``predicted`` and ``observed`` are
#: shares of patients with an event until ``horizon`` (days).
SURVIVAL_COLUMNS = (
    "role", "cohort", "task", "horizon", "group", "n", "events", "predicted", "observed", "low", "high", "note",
)  # fmt: skip


def survival_calibration(samples: Sequence[Sample], params: EvaluationParams) -> pd.DataFrame:
    """Predicted against observed events at a horizon for every survival task; columns ``SURVIVAL_COLUMNS``."""
    lines: list[dict] = []
    for sample in (s for s in samples if s.kind == "survival"):
        base = dict(identity(sample))
        found = patients_at_horizon(sample, params)
        if found.patients is None:
            lines.append(
                base | {"horizon": found.horizon, "group": "all", "n": len(sample.strata), "note": found.note}
            )
            continue
        lines += [
            base | line | {"note": found.note}
            for line in _groups(found.patients, found.horizon, params.confidence)
        ]
    return pd.DataFrame(lines, columns=list(SURVIVAL_COLUMNS))


class AtHorizon(NamedTuple):
    """Patients with their ``predicted`` share with an event until ``horizon`` (days), ``time`` and ``event``.

    ``patients`` has one row per patient and is None where nothing can be said; ``note`` says why, or who is left out.
    """

    horizon: float
    patients: pd.DataFrame | None
    note: str


def patients_at_horizon(sample: Sample, params: EvaluationParams) -> AtHorizon:
    """The patients of a survival sample at ``evaluation.horizon``, else at the longest with enough follow-up."""
    usable = [g for g in sample.groups if g.survival is not None and g.survival.undefined is None]
    horizon, reason = _horizon(sample, usable, params.horizon)
    if reason:
        return AtHorizon(horizon, None, f"not estimable: {reason}")
    missing = len(sample.groups) - len(usable)
    note = f"{missing} of {len(sample.groups)} folds cannot be calibrated and are left out" if missing else ""
    return AtHorizon(horizon, _patients(usable, horizon), note)


def _horizon(sample: Sample, usable: list[ScoredPatients], wanted: float | None) -> tuple[float, str]:
    """The horizon in days, and why there is none."""
    if not usable:
        reasons = [g.survival.undefined for g in sample.groups if g.survival is not None]
        return wanted or float("nan"), str(next((r for r in reasons if r), "no predicted survival"))
    ends = min(g.survival.until for g in usable if g.survival is not None)
    if wanted is not None:
        return wanted, "" if wanted <= ends else f"the validated follow-up ends after {ends:.0f} days"
    time = np.concatenate([g.time for g in usable])
    event = np.concatenate([g.event for g in usable])
    for years in HORIZONS:
        days = years * YEAR
        followed, events = int((time > days).sum()), int(((time <= days) & (event == 1)).sum())
        if days <= ends and followed >= ENOUGH_FOLLOWED and events >= ENOUGH_EVENTS:
            return days, ""
    return float("nan"), (
        f"at no horizon of 1 to 10 years are {ENOUGH_FOLLOWED} patients followed after {ENOUGH_EVENTS} events; "
        "evaluation.horizon sets another"
    )


def _patients(groups: list[ScoredPatients], horizon: float) -> pd.DataFrame:
    """One row per patient: ``predicted`` share with an event (mean over repeats), ``time``, ``event``."""
    parts = []
    for group in groups:
        assert group.survival is not None
        survival, _ = group.survival.survival(np.array([horizon]))
        columns = {"patient": group.patient, "time": group.time, "event": group.event}
        parts.append(pd.DataFrame(columns | {"predicted": 1 - survival[:, 0]}))
    return pd.concat(parts).groupby("patient", sort=True).mean()


def _groups(patients: pd.DataFrame, horizon: float, confidence: float) -> list[dict]:
    """All patients, then groups of equal size by predicted risk; equal predictions are in one group."""
    reached = (patients["time"] <= horizon) & (patients["event"] == 1)
    count = int(np.clip(reached.sum() // EVENTS_PER_GROUP, 1, MOST_GROUPS))
    edges = np.unique(np.quantile(patients["predicted"], np.linspace(0, 1, count + 1)[1:-1]))
    number = np.searchsorted(edges, patients["predicted"], side="left")
    parts = [("all", patients)]
    if count > 1:
        parts += [(str(k + 1), part) for k, (_, part) in enumerate(patients.groupby(number, sort=True))]
    return [
        {"horizon": horizon, "group": name} | _observed(part, horizon, confidence) for name, part in parts
    ]


def _observed(part: pd.DataFrame, horizon: float, confidence: float) -> dict:
    curve = kaplan_meier(part["time"], part["event"], confidence)
    at = int(np.searchsorted(curve.time, horizon, side="right")) - 1
    reached = (part["time"] <= horizon) & (part["event"] == 1)
    return {
        "n": len(part), "events": int(reached.sum()), "predicted": float(part["predicted"].mean()),
        "observed": 1 - float(curve.survival[at]), "low": 1 - float(curve.high[at]), "high": 1 - float(curve.low[at]),
    }  # fmt: skip
