"""What was fixed on validation patients, as a few numbers: thresholds, scales of risks, baseline hazards.

A new patient's scores are combined and called as those of an external cohort in the run's evaluation
(:mod:`equipoise.platform.evaluation.thresholds`): probabilities and values are averaged over the fold models, log risks
in units of each fold's validation patients; a call is the mean distance to the models' cut-offs. Survival at a time is
the mean of the models, each calibrated on its validation patients (:mod:`equipoise.platform.evaluation.calibration`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from equipoise.datasets.params import StrictParams

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.tables.tasks import Task
    from equipoise.platform.evaluation.params import ThresholdParams

#: Times at which survival is predicted, in days, as far as validation patients were followed.
HORIZONS = tuple(round(365.25 * years) for years in (0.5, 1, 2, 3, 5, 10))
#: Columns of the tidy table of :meth:`OperatingPoints.apply`.
COLUMNS = ("patient", "task", "kind", "output", "class", "score", "threshold", "call")
HIGH, LOW = "high risk", "low risk"


class RiskScale(StrictParams):
    """Mean and standard deviation of the risks of a model's validation patients."""

    mean: float
    sd: float = Field(gt=0)


class SurvivalBaseline(StrictParams):
    """Calibration of the risks of one model, see :class:`~equipoise.platform.evaluation.calibration.BaselineHazard`."""

    member: str
    mean: float
    spread: float = Field(gt=0)
    slope: float
    hazard: list[float]


class TaskPoints(StrictParams):
    """What was fixed for one task; keys of members are ``<repeat>-<fold>``."""

    kind: Literal["binary", "multiclass", "regression", "survival"]
    negative: str = ""
    """Call of a binary task below the threshold."""
    rule: str = ""
    """How the thresholds were chosen."""
    cutoffs: dict[str, float | None] = Field(default={})
    """Member → threshold of the probability (binary), or of the standardised risk (survival)."""
    scales: dict[str, RiskScale] = Field(default={})
    """Member → scale of its risks."""
    horizons: list[int] = Field(default=[])
    """Days at which survival is predicted."""
    survival: list[SurvivalBaseline] = Field(default=[])
    """Calibrations; their survival is averaged."""
    note: str = ""
    """What could not be fixed, and why."""


@dataclass(frozen=True)
class OperatingPoints:
    """What was fixed for every task, in the order of the study."""

    tasks: dict[str, TaskPoints]

    @classmethod
    def fit(
        cls, predictions: pd.DataFrame, tasks: Sequence[Task], params: ThresholdParams
    ) -> OperatingPoints:
        """From the validation rows of a run's predictions table.

        Parameters
        ----------
        predictions
            The whole table of the run.
        tasks
            Of the study.
        params
            How thresholds are chosen.
        """
        fitted = {}
        for task in tasks:
            rows = predictions[(predictions["task"] == task.name) & (predictions["role"] == "val")]
            if task.type == "binary":
                fitted[task.name] = _binary(rows, task, params)
            elif task.type == "survival":
                fitted[task.name] = _survival(rows)
            else:
                fitted[task.name] = TaskPoints(kind=task.type)
        return cls(fitted)

    def for_refit(self, risks: dict[str, RiskScale]) -> OperatingPoints:
        """The points of one model that was trained on all development patients, out of those of the folds.

        Its thresholds are the means of the folds', because no patient is left to choose them on; its risks are scaled
        by those of the patients that it was trained on.

        Parameters
        ----------
        risks
            Survival task → scale of the model's risks.
        """
        changed = {}
        for name, points in self.tasks.items():
            known = [value for value in points.cutoffs.values() if value is not None]
            update: dict[str, Any] = (
                {"cutoffs": {"0-0": float(np.mean(known)) if known else None}} if points.cutoffs else {}
            )
            if points.kind == "survival":
                scale = risks.get(name)
                update["scales"] = {} if scale is None else {"0-0": scale}
                update["survival"] = (
                    []
                    if scale is None
                    else [
                        part.model_copy(update={"member": "0-0", "mean": scale.mean, "spread": scale.sd})
                        for part in points.survival
                    ]
                )
            changed[name] = points.model_copy(update=update)
        return OperatingPoints(changed)

    def apply(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Combine and call the predictions of all members.

        Parameters
        ----------
        rows
            Rows of the predictions table, of one role: every patient by every member.

        Returns
        -------
        One row per patient, task and output, columns :data:`COLUMNS`. ``output`` is ``probability`` (of ``class``),
        ``value``, ``risk`` (in standard deviations of validation patients) or ``survival`` (past ``class``, a number of
        days). ``threshold`` is NaN and ``call`` empty where nothing was fixed; ``score`` is NaN where no member orders
        patients.
        """
        import pandas as pd

        parts = [
            part
            for name, points in self.tasks.items()
            for part in _applied(points, rows[rows["task"] == name])
        ]
        return pd.concat(parts, ignore_index=True)[list(COLUMNS)]

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``thresholds.json``."""
        return {
            name: points.model_dump(mode="json", exclude_defaults=True) for name, points in self.tasks.items()
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> OperatingPoints:
        """The inverse of :meth:`to_json`; raises ``ValueError`` for anything else."""
        return cls({name: TaskPoints.model_validate(points) for name, points in data.items()})


def called_negative(task: Any) -> str:
    """What a binary task calls its negative class; empty if its study does not name it."""
    return ", ".join(task.negative) or (f"<{task.cutoff:g}" if task.cutoff is not None else "")


def _binary(rows: pd.DataFrame, task: Any, params: ThresholdParams) -> TaskPoints:
    from equipoise.platform.evaluation.thresholds import fold_thresholds

    cutoffs = _keyed(fold_thresholds(rows, params)) if len(rows) else {}
    value = "" if params.value is None else f" {params.value:g}"
    known = [cut for cut in cutoffs.values() if cut is not None]
    return TaskPoints(
        kind="binary",
        negative=called_negative(task) or "other",
        rule=f"{params.metric}{value}, chosen on the inner validation patients of each fold",
        cutoffs=cutoffs,
        note="" if known else "no fold has validation patients of both classes: nothing is called",
    )


def _survival(rows: pd.DataFrame) -> TaskPoints:
    from equipoise.platform.evaluation.calibration import SurvivalModels
    from equipoise.platform.evaluation.thresholds import fold_risk_cutoffs, risk_scales, standardise_risks

    scales = risk_scales(rows)
    scaled = standardise_risks(rows, scales)
    usable, notes = {}, []
    for key, calibration in SurvivalModels.of(rows, "val").calibrations.items() if len(rows) else ():
        if calibration.reason:
            notes.append(calibration.reason)
        else:
            usable[f"{key[0]}-{key[1]}"] = calibration
    nobody = np.array(["a cohort of its own"])
    until = min((calibration.until(nobody) for calibration in usable.values()), default=0.0)
    horizons = [days for days in HORIZONS if days <= until]
    at = np.array(horizons, float)
    note = f"survival is the mean of {len(usable)} of {len(scales)} folds" if notes and usable else ""
    if not horizons:
        note = (
            f"no survival is predicted: {notes[0]}"
            if notes
            else "no survival is predicted: too short a follow-up"
        )
    return TaskPoints(
        kind="survival",
        rule="median risk of the inner validation patients of each fold",
        cutoffs=_keyed(fold_risk_cutoffs(scaled)) if len(scaled) else {},
        scales={
            f"{repeat}-{fold}": RiskScale(mean=row["mean"], sd=row["sd"])
            for (repeat, fold), row in scales.iterrows()
        },
        horizons=horizons,
        survival=[
            SurvivalBaseline(member=member, **asdict(calibration.shared_baseline(at)))
            for member, calibration in usable.items()
        ]
        if horizons
        else [],
        note=note,
    )


def _keyed(values: pd.Series) -> dict[str, float | None]:
    return {f"{r}-{k}": None if math.isnan(value) else float(value) for (r, k), value in values.items()}


def _series(values: dict[str, float | None]) -> pd.Series:
    """The inverse of :func:`_keyed`."""
    import pandas as pd

    keys = [tuple(map(int, name.split("-"))) for name in values]
    index = pd.MultiIndex.from_tuples(keys, names=["repeat", "fold"])
    return pd.Series([math.nan if v is None else v for v in values.values()], index=index, dtype=float)


def _applied(points: TaskPoints, rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Tables of one task."""
    from equipoise.platform.evaluation.thresholds import apply_cutoffs, ensemble, standardise_risks

    if rows.empty:
        return []
    if points.kind in ("multiclass", "regression"):
        mean = ensemble(rows)
        output = "value" if points.kind == "regression" else "probability"
        table = mean.assign(kind=points.kind, output=output, threshold=math.nan, call="")
        if points.kind == "multiclass":
            best = mean.loc[mean.groupby("patient")["score"].idxmax()].set_index("patient")["class"]
            table["call"] = table["patient"].map(best)
        return [table[list(COLUMNS)]]
    survival = points.kind == "survival"
    scored, extra = rows, []
    if survival:
        scored = standardise_risks(rows, _scales(points))
        extra = _survival_rows(points, rows)
    mean = ensemble(scored)
    known = mean.set_index("patient")["score"]
    patients = list(dict.fromkeys(rows["patient"]))
    first = rows.drop_duplicates("patient").set_index("patient").loc[patients].reset_index()
    score = first["patient"].map(known).astype(float)
    threshold, call = np.full(len(first), math.nan), np.full(len(first), "", object)
    if points.cutoffs and len(scored):
        called = apply_cutoffs(scored, _series(points.cutoffs), inclusive=not survival)
        margin = first["patient"].map(called["margin"]).to_numpy(float)
        high = first["patient"].map(called["positive"]).to_numpy() == True  # noqa: E712 (patients without a score)
        threshold = score.to_numpy() - margin
        names = np.where(high, HIGH, LOW) if survival else np.where(high, first["class"], points.negative)
        call = np.where(np.isnan(margin), "", names)
    output = "risk" if survival else "probability"
    table = first.assign(kind=points.kind, output=output, score=score, threshold=threshold, call=call)
    return [table[list(COLUMNS)], *extra]


def _scales(points: TaskPoints) -> pd.DataFrame:
    import pandas as pd

    scales = {name: scale.model_dump() for name, scale in points.scales.items()}
    keys = [tuple(map(int, name.split("-"))) for name in scales] or [(-1, -1)]
    index = pd.MultiIndex.from_tuples(keys, names=["repeat", "fold"])
    return pd.DataFrame([*scales.values()] or [{"mean": math.nan, "sd": math.nan}], index=index)


def _survival_rows(points: TaskPoints, rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Survival past each time: the mean of the calibrated members."""
    import pandas as pd

    from equipoise.platform.evaluation.calibration import BaselineHazard

    if not points.survival:
        return []
    risks = rows.pivot(index="patient", columns=["repeat", "fold"], values="score")
    curves = []
    for part in points.survival:
        key = tuple(map(int, part.member.split("-")))
        baseline = BaselineHazard(part.mean, part.spread, part.slope, tuple(part.hazard))
        curves.append(baseline.survival(risks[key].to_numpy()))
    mean_NJ = np.mean(curves, axis=0)
    return [
        pd.DataFrame(
            {
                "patient": risks.index,
                "task": rows["task"].iloc[0],
                "kind": "survival",
                "output": "survival",
                "class": f"{days} days",
                "score": mean_NJ[:, j],
                "threshold": math.nan,
                "call": "",
            }
        )
        for j, days in enumerate(points.horizons)
    ]
