"""From predicted risks to survival probabilities, calibrated on the validation patients of the fold.

A partial likelihood orders patients and says nothing about their survival at a time. Cox's model with the predicted
risk as its only covariate is therefore fitted to the validation patients of a fold (lifelines, Efron's ties), with
Breslow's baseline hazard: S(t | r) = exp(-H(t) exp(b r)). Where every cohort has enough validation events each has its
own baseline hazard, as in the likelihood of training; otherwise, and for patients of other cohorts, all share one. The
reference without covariates is the Kaplan-Meier curve of the same validation patients, per cohort in the same cases.
Models are fitted when they are first asked for.

Sources: Breslow (1972), JRSS B 34, for the baseline; van Houwelingen (2000), Statistics in Medicine 19, for the
calibration of a prognostic score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from equipoise.platform.evaluation.cox_table import ENOUGH_EVENTS, fit_cox
from equipoise.platform.evaluation.influence import Influence
from equipoise.platform.evaluation.predictions import labelled
from equipoise.platform.evaluation.survival import kaplan_meier
from equipoise.platform.evaluation.survival_scores import horizon, integrated_brier
from equipoise.platform.evaluation.thresholds import FOLD_KEYS

Floats = NDArray[np.float64]

#: Intervals between the times at which a Brier score is computed.
INTERVALS = 100
#: Largest log hazard ratio to the mean patient: beyond it survival is 0 or 1 in float64.
_LARGEST = 50.0


def breslow(time: ArrayLike, event: ArrayLike, log_hazard: ArrayLike, at: ArrayLike) -> Floats:
    """Breslow's cumulative baseline hazard at each time of ``at``; parameters ``[N]`` as in Cox's model.

    >>> breslow([1, 2, 3], [1, 0, 1], [0, 0, 0], [0.5, 1, 3]).round(3).tolist()
    [0.0, 0.333, 1.333]
    """
    distinct, place = np.unique(np.asarray(time, float), return_inverse=True)
    at_risk = np.cumsum(np.bincount(place, np.exp(log_hazard))[::-1])[::-1]
    steps = np.bincount(place, np.asarray(event, float)) / at_risk
    return np.r_[0.0, np.cumsum(steps)][np.searchsorted(distinct, np.asarray(at, float), side="right")]


@dataclass(frozen=True)
class BaselineHazard:
    """A calibration at a few times, without its patients: S(t | r) = exp(-H(t) exp(slope (r - mean) / spread)).

    ``hazard`` are the cumulative baseline hazards H at J times.
    """

    mean: float
    spread: float
    slope: float
    hazard: tuple[float, ...]

    def survival(self, risk: ArrayLike) -> Floats:
        """``[N, J]`` probabilities to live longer than each of the times, for ``[N]`` risks.

        >>> BaselineHazard(0.0, 1.0, 0.0, (0.5,)).survival([1.0]).round(3).tolist()
        [[0.607]]
        """
        z = (np.asarray(risk, float) - self.mean) / self.spread
        log_hazard = np.clip(self.slope * z, -_LARGEST, _LARGEST)
        return np.exp(-np.exp(log_hazard)[:, None] * np.asarray(self.hazard, float))


@dataclass(frozen=True)
class Calibration:
    """Validation patients of a fold: ``time``, ``event``, ``risk`` and ``cohort`` of shape ``[V]``."""

    time: Floats
    event: Floats
    risk: Floats
    cohort: NDArray[np.str_]

    @property
    def reason(self) -> str:
        """Why no survival can be predicted; empty if it can."""
        events = int((self.event == 1).sum())
        if events < ENOUGH_EVENTS:
            return f"{events} events among the validation patients; their calibration needs {ENOUGH_EVENTS}"
        return "Cox's model of the validation risks did not converge" if np.isnan(self._slope) else ""

    def until(self, cohort: NDArray[np.str_]) -> float:
        """End of the validated follow-up: the last validation time, or that after which most are censored."""
        parts = [self._patients(label) for label in np.unique(cohort)] if self._own(cohort) else [slice(None)]
        return min(
            min(horizon(self.time[p], self.event[p]), float(self.time[p].max(initial=0))) for p in parts
        )

    def survival(self, risk: Floats, cohort: NDArray[np.str_], at: Floats) -> tuple[Floats, Floats]:
        """Probabilities ``[N, J]`` to live longer than each of J times: of the model, and of Kaplan-Meier.

        Where all validation patients (of a cohort, if each has its own baseline) have the same risk, there is nothing
        to calibrate, and both are Kaplan-Meier.
        """
        of_model, reference = np.empty((2, len(risk), len(at)))
        own = self._own(cohort)
        for label in np.unique(cohort) if own else [""]:
            here = cohort == label if own else slice(None)
            fitted = self._patients(label) if own else slice(None)
            time, event = self.time[fitted], self.event[fitted]
            curve = kaplan_meier(time, event)
            reference[here] = curve.survival[np.searchsorted(curve.time, at, side="right") - 1]
            if not self._spread:
                of_model[here] = reference[here]
                continue
            hazard = breslow(time, event, self._log_hazard(self.risk[fitted]), at)
            of_model[here] = np.exp(-hazard * np.exp(self._log_hazard(risk[here]))[:, None])
        return of_model, reference

    def shared_baseline(self, at: Floats) -> "BaselineHazard":
        """What :meth:`survival` does for a patient of a cohort without validation patients, as a few numbers.

        Parameters
        ----------
        at
            ``[J]`` times.
        """
        if not self._spread:
            curve = kaplan_meier(self.time, self.event)
            survival = curve.survival[np.searchsorted(curve.time, at, side="right") - 1]
            with np.errstate(divide="ignore"):
                hazard = np.minimum(-np.log(survival), np.exp(_LARGEST))
            return BaselineHazard(float(self.risk.mean()), 1.0, 0.0, tuple(hazard.tolist()))
        hazard = breslow(self.time, self.event, self._log_hazard(self.risk), at)
        return BaselineHazard(float(self.risk.mean()), self._spread, self._slope, tuple(hazard.tolist()))

    def _log_hazard(self, risk: Floats) -> Floats:
        return np.clip(self._slope * (risk - self.risk.mean()) / self._spread, -_LARGEST, _LARGEST)

    def _patients(self, label: str) -> NDArray[np.bool_]:
        return np.asarray(self.cohort == label)

    def _own(self, cohort: NDArray[np.str_]) -> bool:
        """Whether these patients have the baseline hazards of their cohorts."""
        return self._stratified and set(cohort) <= set(self.cohort)

    @cached_property
    def _stratified(self) -> bool:
        labels = np.unique(self.cohort)
        enough = all((self.event[self._patients(label)] == 1).sum() >= ENOUGH_EVENTS for label in labels)
        return len(labels) > 1 and enough

    @cached_property
    def _spread(self) -> float:
        """Standard deviation of the risks around the mean of their baseline; 0 if they differ by rounding only."""
        centred = self.risk - self.risk.mean()
        for label in np.unique(self.cohort) if self._stratified else ():
            of_cohort = self._patients(label)
            centred[of_cohort] -= centred[of_cohort].mean()
        spread = float(np.sqrt((centred**2).mean()))
        return spread if spread > 1e-12 * (1 + abs(float(self.risk.mean()))) else 0.0

    @cached_property
    def _slope(self) -> float:
        """Log hazard ratio per standard deviation of the risk; NaN without convergence."""
        if not self._spread:
            return 0.0
        patients = pd.DataFrame({"time": self.time, "event": self.event, "cohort": self.cohort})
        terms = pd.DataFrame({"risk": (self.risk - self.risk.mean()) / self._spread})
        fitted = fit_cox(patients, terms, 0.95, several=self._stratified)
        return float("nan") if fitted is None else float(np.log(fitted[0, 0]))


@dataclass(frozen=True)
class PredictedSurvival:
    """Patients with the risks ``[N, M]`` of M fold models, each with its calibration; survival is their mean.

    NaN: a model did not predict the patient. Models whose calibration is impossible are left out, ``note`` says so.
    ``time``, ``event`` and ``cohort`` are ``[N]``.
    """

    calibrations: tuple[Calibration, ...]
    risk: Floats
    time: Floats
    event: Floats
    cohort: NDArray[np.str_]

    @cached_property
    def _usable(self) -> list[int]:
        return [m for m, calibration in enumerate(self.calibrations) if not calibration.reason]

    @property
    def note(self) -> str:
        """Which part of several models is used, if not all."""
        used, models = len(self._usable), len(self.calibrations)
        return f"survival is the mean of {used} of {models} folds" if 0 < used < models else ""

    @cached_property
    def undefined(self) -> str | None:
        """Reason why there is no Brier score of these patients."""
        if not self.calibrations:
            return "no validation patient to calibrate the risk"
        if not self._usable:
            return self.calibrations[0].reason
        if np.isnan(self.risk[:, self._usable]).all(axis=1).any():
            return "a patient has no prediction of a calibrated model"
        if not (self.event == 1).any():
            return f"no event among {len(self.event)} patients"
        return None if self.until > 0 else "no common follow-up with the validation patients"

    @cached_property
    def until(self) -> float:
        """End of the validated follow-up of all models, at most the time after which most of these are censored."""
        ends = [self.calibrations[m].until(self.cohort) for m in self._usable]
        return min([*ends, float(np.nextafter(horizon(self.time, self.event), 0))])

    def survival(self, at: Floats) -> tuple[Floats, Floats]:
        """Probabilities ``[N, J]`` to live longer than each of J times: of the models, and of Kaplan-Meier."""
        total = np.zeros((2, len(self.time), len(at)))
        known = ~np.isnan(self.risk[:, self._usable])
        for m, seen in zip(self._usable, known.T, strict=True):
            parts = self.calibrations[m].survival(self.risk[seen, m], self.cohort[seen], at)
            total[:, seen] += np.stack(parts)
        of_model, reference = total / known.sum(1)[:, None]
        return of_model, reference

    @cached_property
    def brier(self) -> tuple[Influence, Influence]:
        """Integrated Brier score from 0 to :attr:`until`: of the models, and of Kaplan-Meier."""
        at = np.linspace(0, self.until, INTERVALS + 1)
        of_model, reference = (
            integrated_brier(self.time, self.event, part, at) for part in self.survival(at)
        )
        return of_model, reference


@dataclass(frozen=True)
class SurvivalModels:
    """The fold models of one survival task with their risks in one role (index patient, column per fold).

    ``patients`` has the columns ``time``, ``event`` and ``cohort``, with the same index.
    """

    calibrations: dict[tuple[int, int], Calibration]
    risks: pd.DataFrame
    patients: pd.DataFrame

    @classmethod
    def of(cls, rows: pd.DataFrame, role: str) -> "SurvivalModels":
        """From all rows of the task."""
        val, part = rows[(rows["role"] == "val") & labelled(rows)], rows[rows["role"] == role]
        calibrations = {
            (int(r), int(k)): Calibration(
                fold["time"].to_numpy(float),
                fold["event"].to_numpy(float),
                fold["score"].to_numpy(float),
                fold["cohort"].to_numpy(str),
            )
            for (r, k), fold in val.groupby(FOLD_KEYS, sort=True)
        }
        risks = part.pivot(index="patient", columns=FOLD_KEYS, values="score")
        return cls(calibrations, risks, part.drop_duplicates("patient").set_index("patient"))

    def of_patients(
        self, patients: pd.Index, folds: Sequence[tuple[int, int]] | None = None
    ) -> PredictedSurvival:
        """Survival of these patients by the models of the folds, of all folds if None."""
        wanted = [tuple(key) for key in self.risks.columns] if folds is None else folds
        of_patients = self.patients.loc[patients]
        used = [key for key in wanted if key in self.calibrations]
        return PredictedSurvival(
            tuple(self.calibrations[key] for key in used),
            self.risks.reindex(patients)[used].to_numpy(float),
            of_patients["time"].to_numpy(float),
            of_patients["event"].to_numpy(float),
            of_patients["cohort"].to_numpy(str),
        )
