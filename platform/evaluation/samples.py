"""Subsets of the predictions table that get metrics: a task in a role, for a cohort, a site or all patients.

A sample holds groups: one per fold in cross-validation (raw scores of different models are never pooled). Patients of
several cohorts are compared within their cohort: the sample of all patients has a group per fold and cohort, and beside
it stands the sample ``pooled``, in which the cohorts of a fold are one group. What else patients are compared within,
such as the classes of a task, is chosen by ``evaluation.within``. An
external cohort is two samples: the ensemble, a single group with the mean score of all fold models, and the
fold models themselves, one group per model with every patient of the cohort.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.calibration import PredictedSurvival, SurvivalModels
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.predictions import kind_of, labelled
from equipoise.platform.evaluation.thresholds import (
    FOLD_KEYS,
    ensemble,
    fold_means,
    fold_thresholds,
    risk_scales,
    standardise_risks,
)

#: ``cohort`` of samples of all patients: compared within their strata, and all together.
ALL, POOLED = "all", "pooled"
#: Predictors of the metrics table that are not baselines: the model (for an external cohort: the ensemble of the
#: fold models), and the individual fold models.
MODEL, FOLD_MODELS = "model", "fold models"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredPatients:
    """Labelled patients with the scores of one model (a fold) or of the ensemble.

    ``patient [N]`` indexes the sample's patients; ``score`` and ``target`` are ``[N, K]`` with one column per
    class (K = 1 unless multiclass); ``time`` and ``event`` are ``[N]``. ``threshold`` and ``reference`` (the
    mean validation target) are NaN where validation data do not determine them; ``validated`` says if there were any
    to choose the threshold on; notes state what was left out.
    ``latent [N, D]`` is the input of the head, None if it is not known. ``repeat`` and ``fold`` say whose test patients
    they are; ``strata [N]`` number the strata (cohorts) of the patients, None if they are all of one. ``survival``
    predicts their survival from the risks, None of other kinds of tasks and of validation patients.
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
    validated: bool = True
    scale_note: str = ""
    repeat: int = 0
    fold: int = 0
    latent: Floats | None = None
    strata: NDArray[np.int64] | None = None
    survival: PredictedSurvival | None = None

    @property
    def fold_name(self) -> str:
        """``<repeat>-<fold>``, the same for all strata of a fold."""
        return f"{self.repeat}-{self.fold}"


@dataclass(frozen=True)
class Sample:
    """Input of rows of the metrics table; ``predictor`` is the name in these rows, ``patients`` who is indexed.

    ``within`` names what the groups of a fold are strata of, such as the cohort; empty if a fold is one group.
    """

    task: str
    kind: str
    classes: tuple[str, ...]
    role: str
    cohort: str
    site: str
    groups: tuple[ScoredPatients, ...]
    strata: NDArray[np.int64]
    predictor: str = MODEL
    patients: tuple[str, ...] = ()
    within: tuple[str, ...] = ()

    @property
    def is_ensemble(self) -> bool:
        """One score per patient: the mean of the fold models on an external cohort."""
        return self.role == "external" and self.predictor == MODEL

    @property
    def is_fixed(self) -> bool:
        """No patient of the sample trained any of the models: their variance is that of the patients alone."""
        return self.role == "external"


def strata_of(table: pd.DataFrame, within: Sequence[str], task: str) -> pd.DataFrame:
    """Strata of the patients of a task, one column each, with the patients as index.

    Parameters
    ----------
    table
        The predictions table.
    within
        ``cohort``, ``site`` or names of classification tasks; that of the task itself does not count.
    task
        The task whose patients are compared within them.

    Raises
    ------
    DataError
        If a name is neither.
    """
    patients = table.drop_duplicates("patient").set_index("patient")
    columns: dict[str, pd.Series] = {}
    for name in within:
        if name in ("cohort", "site"):
            columns[name] = patients[name].astype(str)
        elif name != task:
            rows = table[table["task"] == name]
            if rows.empty or kind_of(rows) not in ("binary", "multiclass"):
                known = table.groupby("task", sort=True).filter(
                    lambda r: kind_of(r) in ("binary", "multiclass")
                )
                raise DataError(
                    f"there is no classification task {name!r}",
                    where="evaluation.within",
                    fix=f"write cohort, site or one of: {', '.join(sorted(known['task'].unique())) or 'no task'}",
                )
            positive = rows[rows["target"] == 1].drop_duplicates("patient").set_index("patient")["class"]
            negative = rows[rows["target"] == 0].drop_duplicates("patient").set_index("patient")["class"]
            labels = positive.reindex(patients.index)
            if kind_of(rows) == "binary":
                labels = labels.fillna(("not " + negative.astype(str)).reindex(patients.index))
            columns[name] = labels.fillna(f"no {name}").astype(str)
    return pd.DataFrame(columns, index=patients.index)


def samples(
    rows: pd.DataFrame,
    role: str,
    params: EvaluationParams,
    latents: pd.DataFrame | None = None,
    strata: pd.DataFrame | None = None,
) -> Iterator[Sample]:
    """Samples of one task in one role: all patients, the same pooled, then each cohort, then each site.

    Parameters
    ----------
    rows
        All rows of one task; validation rows are needed for thresholds and reference values.
    role
        val (all patients only), test, or external (each cohort; all patients only if there are several cohorts).
    params
        How the threshold is chosen.
    latents
        Rows of the latents table of the same task.
    strata
        Result of :func:`strata_of`; by cohort alone if None.
    """
    kind = kind_of(rows)
    strata = strata_of(rows, ["cohort"], "") if strata is None else strata
    part = rows[rows["role"] == role]
    if part.empty:
        return
    validation = _Validation.of(rows, kind, params)
    role_latents = _Latents.of(latents, role)
    survival = SurvivalModels.of(rows, role) if kind == "survival" and role != "val" else None
    shared = {"kind": kind, "role": role, "validation": validation, "strata": strata, "survival": survival}
    make_sample = partial(_sample, latents=role_latents, **shared)
    if role != "external":
        yield from _subsets(part, role, make_sample)
        return
    mean, values = validation.of_ensemble(part)
    yield from _subsets(mean, role, partial(make_sample, latents=_Latents({}), ensemble_values=values))
    of_fold_models = _subsets(part, role, partial(make_sample, predictor=FOLD_MODELS))
    yield from (sample for sample in of_fold_models if sample.site == ALL)


def _subsets(part: pd.DataFrame, role: str, make_sample: Callable[..., Sample]) -> Iterator[Sample]:
    """All patients, cohorts and sites of one role."""
    cohorts = sorted(part["cohort"].unique())
    if role != "external" or len(cohorts) > 1:
        everybody = make_sample(part, cohort=ALL, site=ALL)
        yield everybody
        if everybody.within and role != "val":
            yield make_sample(part, cohort=POOLED, site=ALL)
    if role == "val":
        return
    for cohort in cohorts:
        of_cohort = part[part["cohort"] == cohort]
        if role == "external" or len(cohorts) > 1:
            yield make_sample(of_cohort, cohort=cohort, site=ALL)
        sites = sorted(of_cohort["site"].unique())
        # A cohort with a single site would repeat the cohort's row.
        for site in sites if len(sites) > 1 else ():
            yield make_sample(of_cohort[of_cohort["site"] == site], cohort=cohort, site=site)


def external_ensemble(rows: pd.DataFrame) -> pd.DataFrame:
    """The external rows of a task with the scores of the ensemble."""
    scales = risk_scales(rows) if kind_of(rows) == "survival" else None
    return _Validation(None, None, scales).of_ensemble(rows[rows["role"] == "external"])[0]


@dataclass(frozen=True)
class _Validation:
    """Values chosen on the validation rows of a task per (repeat, fold); None if the kind of task has no such value."""

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
        """The values of one fold."""
        return {
            "threshold": float("nan") if self.thresholds is None else self.thresholds.get(key, float("nan")),
            "validated": self.thresholds is None or key in self.thresholds.index,
            "reference": float("nan") if self.references is None else self.references.get(key, float("nan")),
        }

    def of_ensemble(self, part: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Mean score of the fold models, and the mean values over the folds; notes say if some folds have no value."""
        folds = len(part.drop_duplicates(FOLD_KEYS))
        values: dict[str, Any] = {}
        if self.thresholds is not None:
            known = int(self.thresholds.notna().sum())
            values["threshold"] = float(self.thresholds.mean())
            values["validated"] = not self.thresholds.empty
            if known < folds:
                values["threshold_note"] = f"threshold is the mean of {known} of {folds} folds"
        if self.references is not None:
            values["reference"] = float(self.references.mean())
        if self.scales is not None:
            scaled = standardise_risks(part, self.scales)
            known = len(scaled.drop_duplicates(FOLD_KEYS))
            if known:
                part = scaled
            if known < folds:
                values["scale_note"] = (
                    f"risk is the mean of {known} of {folds} folds, the others have no validation risks to scale by"
                    if known
                    else "no fold has validation risks to scale by: the plain mean of log risks"
                )
        return ensemble(part), values


class _Latents(NamedTuple):
    """Inputs of the heads, by fold."""

    of_fold: dict[tuple[int, int], pd.Series]

    @classmethod
    def of(cls, latents: pd.DataFrame | None, role: str) -> "_Latents":
        """Vectors by patient, of the rows in one role."""
        if latents is None:
            return cls({})
        of_role = latents[latents["role"] == role]
        folds = of_role.groupby(FOLD_KEYS, sort=True)
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
    strata: pd.DataFrame,
    predictor: str = MODEL,
    ensemble_values: dict[str, Any] | None = None,
    survival: SurvivalModels | None = None,
) -> Sample:
    """A sample; ``ensemble_values`` are the values of the ensemble, whose rows are one group (or one per stratum)."""
    classes = tuple(sorted(part["class"].unique()))
    known = part[labelled(part)]
    patients = pd.Index(known["patient"].unique())
    own = strata.reindex(patients)
    own = own[[name for name in own if own[name].nunique() > 1]]
    cells, numbers = _numbered(own)
    split = len(cells) > 1 and cohort != POOLED and site == ALL
    groups = []
    for key, rows in known.groupby(FOLD_KEYS, sort=True):
        fold = (int(key[0]), int(key[1]))
        if ensemble_values is not None:
            name, values = "ensemble", ensemble_values
            models = None
        else:
            values = validation.of_fold(fold) | {"repeat": fold[0], "fold": fold[1]}
            name = f"{fold[0]}-{fold[1]}"
            models = [fold]
        predict = None if survival is None else partial(survival.of_patients, folds=models)
        make = partial(
            _group, classes=classes, patients=patients, values=values, latents=latents, predict=predict
        )
        of_row = numbers[patients.get_indexer(rows["patient"])]
        for number, label in enumerate(cells) if split else ():
            cell = rows[of_row == number]
            if len(cell):
                named = f"{name} {label}"
                groups.append(make(named, cell, of_fold=fold))
        if not split:
            group = make(name, rows, of_fold=fold)
            groups.append(replace(group, strata=numbers[group.patient] if len(cells) > 1 else None))
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
        patients=tuple(map(str, patients)),
        within=tuple(own) if split else (),
    )


def _numbered(strata: pd.DataFrame) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the combinations of strata that occur, sorted, and the number of that of each patient."""
    if not strata.shape[1]:
        return [""], np.zeros(len(strata), np.int64)
    joined = strata.astype(str).agg(", ".join, axis=1)
    names, numbers = np.unique(joined.to_numpy(str), return_inverse=True)
    return names.tolist(), numbers.astype(np.int64)


def _group(
    name: str,
    rows: pd.DataFrame,
    classes: tuple[str, ...],
    patients: pd.Index,
    values: dict[str, Any],
    latents: _Latents = _Latents({}),  # noqa: B008, never written to
    of_fold: tuple[int, int] = (0, 0),
    predict: Callable[[pd.Index], PredictedSurvival] | None = None,
) -> ScoredPatients:
    of_class = [rows[rows["class"] == c].set_index("patient") for c in classes]
    order = of_class[0].index
    return ScoredPatients(
        name=name,
        patient=patients.get_indexer(order),
        score=np.stack([part["score"].reindex(order).to_numpy(float) for part in of_class], axis=1),
        target=np.stack([part["target"].reindex(order).to_numpy(float) for part in of_class], axis=1),
        time=of_class[0]["time"].to_numpy(float),
        event=of_class[0]["event"].to_numpy(float),
        latent=latents.matrix(of_fold, order),
        survival=None if predict is None else predict(order),
        **values,
    )


def _strata(groups: list[ScoredPatients], patients: int, kind: str) -> NDArray[np.int64]:
    """Bootstrap stratum of each patient: the first fold that tests the patient, and in it the class or event.

    Stratifying by class or event keeps a replicate of a small fold of the first repeat estimable (in other repeats a
    fold may lose a class, see :func:`~equipoise.platform.evaluation.evaluate.evaluate`); a patient who is
    tested in several repeats is drawn equally often in each of them, because the results are not independent.
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
