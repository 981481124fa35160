"""Cuts of the predictions table that get metrics: a task in a role, for a cohort, a site or everyone.

A sample holds groups: one per fold in cross-validation (raw scores of different models are never pooled), a
single one with the mean score of all fold models for external cohorts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from equipoise.platform.evaluation.decisions import FOLD, ensemble, fold_means, fold_thresholds
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.predictions import kind_of, labelled

ALL = "all"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Labelled patients judged by one model (a fold) or one ensemble.

    ``patient [N]`` indexes the sample's patients; ``score`` and ``target`` are ``[N, K]`` with one column per
    class (K = 1 unless multiclass); ``time`` and ``event`` are ``[N]``. ``threshold`` and ``reference`` (the
    mean validation target) are NaN where validation data do not give them.
    """

    name: str
    patient: NDArray[np.int64]
    score: Floats
    target: Floats
    time: Floats
    event: Floats
    threshold: float = float("nan")
    reference: float = float("nan")
    threshold_note: str = ""
    repeat: int = 0


@dataclass(frozen=True)
class Sample:
    """What one row of the metrics table is computed from."""

    task: str
    kind: str
    classes: tuple[str, ...]
    role: str
    cohort: str
    site: str
    groups: tuple[Group, ...]
    strata: NDArray[np.int64]

    @property
    def is_ensemble(self) -> bool:
        """One score per patient (external cohorts), so that DeLong applies."""
        return self.role == "external"


def samples(rows: pd.DataFrame, role: str, params: EvaluationParams) -> Iterator[Sample]:
    """Samples of one task in one role: everyone, then each cohort, then each site.

    Parameters
    ----------
    rows
        All rows of one task; validation rows are needed for thresholds and reference values.
    role
        val (everyone only), test, or external (each cohort; everyone only if there are several).
    """
    kind = kind_of(rows)
    part = rows[rows["role"] == role]
    if part.empty:
        return
    models = len(part.drop_duplicates(FOLD))
    if role == "external":
        part = ensemble(part)
    cut = partial(_sample, kind=kind, role=role, validation=_Validation.of(rows, kind, params), models=models)
    cohorts = sorted(part["cohort"].unique())
    if role != "external" or len(cohorts) > 1:
        yield cut(part, cohort=ALL, site=ALL)
    if role == "val":
        return
    for cohort in cohorts:
        own = part[part["cohort"] == cohort]
        if role == "external" or len(cohorts) > 1:
            yield cut(own, cohort=cohort, site=ALL)
        sites = sorted(own["site"].unique())
        # A cohort that is one site would repeat the cohort's row.
        for site in sites if len(sites) > 1 else ():
            yield cut(own[own["site"] == site], cohort=cohort, site=site)


@dataclass(frozen=True)
class _Validation:
    """What the validation rows of a task decide per (repeat, fold); None where the kind needs nothing."""

    thresholds: pd.Series | None
    references: pd.Series | None

    @classmethod
    def of(cls, rows: pd.DataFrame, kind: str, params: EvaluationParams) -> "_Validation":
        return cls(
            thresholds=fold_thresholds(rows, params.threshold) if kind == "binary" else None,
            references=fold_means(rows) if kind == "regression" else None,
        )

    def of_fold(self, key: tuple[int, int]) -> dict[str, float]:
        """The fold's own values."""
        return {
            "threshold": float("nan") if self.thresholds is None else self.thresholds.get(key, float("nan")),
            "reference": float("nan") if self.references is None else self.references.get(key, float("nan")),
        }

    def of_ensemble(self, folds: int) -> dict[str, float | str]:
        """Means over the folds that have a value, saying so if some have none."""
        values: dict[str, float | str] = {"threshold": float("nan"), "reference": float("nan")}
        if self.thresholds is not None:
            known = int(self.thresholds.notna().sum())
            values["threshold"] = float(self.thresholds.mean())
            if known < folds:
                values["threshold_note"] = f"threshold is the mean of {known} of {folds} folds"
        if self.references is not None:
            values["reference"] = float(self.references.mean())
        return values


def _sample(
    part: pd.DataFrame, kind: str, role: str, cohort: str, site: str, validation: _Validation, models: int
) -> Sample:
    classes = tuple(sorted(part["class"].unique()))
    known = part[labelled(part)]
    patients = pd.Index(known["patient"].unique())
    groups = []
    for key, rows in known.groupby(FOLD, sort=True):
        if role == "external":
            groups.append(_group("ensemble", rows, classes, patients, validation.of_ensemble(models)))
        else:
            name = f"{key[0]}-{key[1]}"
            decided = validation.of_fold(tuple(key))
            groups.append(_group(name, rows, classes, patients, decided, repeat=int(key[0])))
    return Sample(
        task=str(part["task"].iloc[0]),
        kind=kind,
        classes=classes,
        role=role,
        cohort=cohort,
        site=site,
        groups=tuple(groups),
        strata=_strata(groups, len(patients), kind),
    )


def _group(
    name: str,
    rows: pd.DataFrame,
    classes: tuple[str, ...],
    patients: pd.Index,
    decided: dict[str, Any],
    repeat: int = 0,
) -> Group:
    of_class = [rows[rows["class"] == c].set_index("patient") for c in classes]
    order = of_class[0].index
    return Group(
        name=name,
        patient=patients.get_indexer(order),
        score=np.stack([part["score"].reindex(order).to_numpy(float) for part in of_class], axis=1),
        target=np.stack([part["target"].reindex(order).to_numpy(float) for part in of_class], axis=1),
        time=of_class[0]["time"].to_numpy(float),
        event=of_class[0]["event"].to_numpy(float),
        repeat=repeat,
        **decided,
    )


def _strata(groups: list[Group], patients: int, kind: str) -> NDArray[np.int64]:
    """Bootstrap stratum of each patient: the fold that tests them first, and in it their class or event.

    Holding classes and events keeps a replicate of a small fold of the first repeat estimable (in the others a
    fold may lose a class, see :func:`~equipoise.platform.evaluation.evaluate.evaluate`); a patient who is
    tested in several repeats is drawn as often in each of them, because their results are not independent.
    """
    strata = np.full(patients, -1, np.int64)
    for number, group in enumerate(groups):
        if kind == "regression":
            label = np.zeros(len(group.patient), np.int64)
        elif kind == "survival":
            label = group.event.astype(np.int64)
        else:
            truth = group.target.argmax(1) if kind == "multiclass" else group.target[:, 0]
            label = truth.astype(np.int64)
        width = max(2, group.target.shape[1])
        new = strata[group.patient] < 0
        strata[group.patient[new]] = number * width + label[new]
    return strata
