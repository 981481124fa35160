"""Cuts of the predictions table that get metrics: a task in a role, for a cohort, a site or everyone.

A sample holds groups: one per fold in cross-validation (raw scores of different models are never pooled). An
external cohort is two samples: the ensemble, a single group with the mean score of all fold models, and the
fold models themselves, a group for each with every patient of the cohort.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from equipoise.platform.evaluation.decisions import (
    FOLD,
    ensemble,
    fold_means,
    fold_thresholds,
    risk_scales,
    standardised,
)
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.predictions import kind_of, labelled

ALL = "all"
#: Predictors of the metrics table that are no baseline: the model (of an external cohort: the ensemble of the
#: fold models), and the fold models one by one.
MODEL, FOLD_MODELS = "model", "fold models"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Labelled patients judged by one model (a fold) or one ensemble.

    ``patient [N]`` indexes the sample's patients; ``score`` and ``target`` are ``[N, K]`` with one column per
    class (K = 1 unless multiclass); ``time`` and ``event`` are ``[N]``. ``threshold`` and ``reference`` (the
    mean validation target) are NaN where validation data do not give them; notes say what was left out.
    ``latent [N, D]`` is what the head reads, None where it is not known.
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
    scale_note: str = ""
    repeat: int = 0
    latent: Floats | None = None


@dataclass(frozen=True)
class Sample:
    """What rows of the metrics table are computed from; ``predictor`` is the name they go by."""

    task: str
    kind: str
    classes: tuple[str, ...]
    role: str
    cohort: str
    site: str
    groups: tuple[Group, ...]
    strata: NDArray[np.int64]
    predictor: str = MODEL

    @property
    def is_ensemble(self) -> bool:
        """One score per patient (external cohorts), so that DeLong applies."""
        return self.role == "external" and self.predictor == MODEL


def samples(
    rows: pd.DataFrame, role: str, params: EvaluationParams, latents: pd.DataFrame | None = None
) -> Iterator[Sample]:
    """Samples of one task in one role: everyone, then each cohort, then each site.

    Parameters
    ----------
    rows
        All rows of one task; validation rows are needed for thresholds and reference values.
    role
        val (everyone only), test, or external (each cohort; everyone only if there are several).
    params
        Threshold rule.
    latents
        Rows of the latents table of the same task.
    """
    kind = kind_of(rows)
    part = rows[rows["role"] == role]
    if part.empty:
        return
    validation = _Validation.of(rows, kind, params)
    read = _Latents.of(latents, role)
    each = partial(_sample, kind=kind, role=role, validation=validation, latents=read)
    if role != "external":
        yield from _cuts(part, role, each)
        return
    mean, decided = validation.of_ensemble(part)
    yield from _cuts(mean, role, partial(each, latents=_Latents({}), together=decided))
    yield from (s for s in _cuts(part, role, partial(each, predictor=FOLD_MODELS)) if s.site == ALL)


def _cuts(part: pd.DataFrame, role: str, cut: Callable[..., Sample]) -> Iterator[Sample]:
    """Everyone, cohorts and sites of one role."""
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


def ensemble_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The external rows of a task with the score that the metrics of the ensemble are computed from."""
    scales = risk_scales(rows) if kind_of(rows) == "survival" else None
    return _Validation(None, None, scales).of_ensemble(rows[rows["role"] == "external"])[0]


@dataclass(frozen=True)
class _Validation:
    """What the validation rows of a task decide per (repeat, fold); None where the kind needs nothing."""

    thresholds: pd.Series | None
    references: pd.Series | None
    scales: pd.DataFrame | None

    @classmethod
    def of(cls, rows: pd.DataFrame, kind: str, params: EvaluationParams) -> "_Validation":
        return cls(
            thresholds=fold_thresholds(rows, params.threshold) if kind == "binary" else None,
            references=fold_means(rows) if kind == "regression" else None,
            scales=risk_scales(rows) if kind == "survival" else None,
        )

    def of_fold(self, key: tuple[int, int]) -> dict[str, Any]:
        """The fold's own values."""
        return {
            "threshold": float("nan") if self.thresholds is None else self.thresholds.get(key, float("nan")),
            "reference": float("nan") if self.references is None else self.references.get(key, float("nan")),
        }

    def of_ensemble(self, part: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Mean score of the fold models, and means over the folds that have a value, saying if some have none."""
        folds = len(part.drop_duplicates(FOLD))
        decided: dict[str, Any] = {}
        if self.thresholds is not None:
            known = int(self.thresholds.notna().sum())
            decided["threshold"] = float(self.thresholds.mean())
            if known < folds:
                decided["threshold_note"] = f"threshold is the mean of {known} of {folds} folds"
        if self.references is not None:
            decided["reference"] = float(self.references.mean())
        if self.scales is not None:
            scaled = standardised(part, self.scales)
            known = len(scaled.drop_duplicates(FOLD))
            if known:
                part = scaled
            if known < folds:
                decided["scale_note"] = (
                    f"risk is the mean of {known} of {folds} folds, the others have no validation risks to scale by"
                    if known
                    else "no fold has validation risks to scale by: the plain mean of log risks"
                )
        return ensemble(part), decided


class _Latents(NamedTuple):
    """What the heads read, by fold."""

    of_fold: dict[tuple[int, int], pd.Series]

    @classmethod
    def of(cls, latents: pd.DataFrame | None, role: str) -> "_Latents":
        """Vectors by patient of the rows in a role."""
        if latents is None:
            return cls({})
        own = latents[latents["role"] == role]
        folds = own.groupby(FOLD, sort=True)
        return cls({(int(r), int(k)): rows.set_index("patient")["latent"] for (r, k), rows in folds})

    def matrix(self, key: tuple[int, int], patients: pd.Index) -> Floats | None:
        """``[N, D]`` of these patients in this order; None if one is missing."""
        vectors = self.of_fold.get(key)
        if vectors is None or not len(patients) or not patients.isin(vectors.index).all():
            return None
        return np.stack(vectors.loc[patients].to_list()).astype(float)


def _sample(
    part: pd.DataFrame,
    kind: str,
    role: str,
    cohort: str,
    site: str,
    validation: _Validation,
    latents: _Latents,
    predictor: str = MODEL,
    together: dict[str, Any] | None = None,
) -> Sample:
    """A sample; ``together`` is what validation data decide for an ensemble, whose rows are one group."""
    classes = tuple(sorted(part["class"].unique()))
    known = part[labelled(part)]
    patients = pd.Index(known["patient"].unique())
    groups = []
    for key, rows in known.groupby(FOLD, sort=True):
        fold = (int(key[0]), int(key[1]))
        if together is not None:
            groups.append(_group("ensemble", rows, classes, patients, together))
        else:
            decided = validation.of_fold(fold) | {"repeat": fold[0]}
            name = f"{fold[0]}-{fold[1]}"
            groups.append(_group(name, rows, classes, patients, decided, latents=latents, fold=fold))
    return Sample(
        task=str(part["task"].iloc[0]),
        kind=kind,
        classes=classes,
        role=role,
        cohort=cohort,
        site=site,
        groups=tuple(groups),
        strata=_strata(groups, len(patients), kind),
        predictor=predictor,
    )


def _group(
    name: str,
    rows: pd.DataFrame,
    classes: tuple[str, ...],
    patients: pd.Index,
    decided: dict[str, Any],
    latents: _Latents = _Latents({}),  # noqa: B008, never written to
    fold: tuple[int, int] = (0, 0),
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
        latent=latents.matrix(fold, order),
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
