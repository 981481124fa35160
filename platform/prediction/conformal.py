"""Prediction sets and intervals that hold the truth with a stated probability, for the model of every fold at once.

How unusual a patient would be with a candidate label is a nonconformity score; the patients that calibrate say how
unusual patients are. With the scores :math:`s_k` of fold model k, and the patients :math:`S_k` that it was tested on,

.. math:: p(y) = \\frac{1 + \\sum_k \\sum_{i \\in S_k} w_i \\, [s_k(x_i, y_i) \\ge s_k(x, y)]}{1 + n},

and the set of a new patient x is every label with p above 1 - level: **cross-conformal prediction** (Vovk, Annals of
Mathematics and Artificial Intelligence 74, 2015; CV+ of Romano, Sesia and Candès, NeurIPS 33, 2020). n counts patients;
one who was tested in several repeats has the weight 1 / repeats in each. Intervals are those of CV+ (Barber, Candès,
Ramdas and Tibshirani, Annals of Statistics 49, 2021). All of it is exact for finite samples: no label is excluded on
the word of fewer than 1 / (1 - level) - 1 patients.

A new patient has a score of every fold model and is compared, model by model, with patients that this model had not
seen. That keeps the guarantee, which a threshold on the mean of the models' scores would lose:
:attr:`TaskConformal.guarantee`.

Scores
------
``lac``
    1 - probability of the label: the smallest sets on average (Sadinle, Lei and Wasserman, JASA 114, 2019).
``aps``
    probability of all labels that are at least as likely: larger sets for difficult patients (Romano et al. 2020),
    without their randomisation, so that sets cover more than the level rather than less.
residual
    distance of a value to its prediction (regression).
log time
    log of the observed time minus a line in the risk (survival). Of a censored patient only min(death, censoring) is
    known; a lower bound of it is one of the survival time too, whatever the censoring depends on, and is cautious
    where many are censored (Candès, Lei and Ren, JRSS B 85, 2023, section 2). An upper bound, or a bound that uses the
    censored patients better, needs assumptions about the censoring that a study cannot check: there is none here.

With ``class_conditional`` the patients of a label are compared with calibrating patients of that label only (Mondrian
conformal prediction, Vovk, Gammerman and Shafer 2005, chapter 4): the level then holds within each class, not only on
average, where the errors would gather in the rare class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.errors import DataError
from equipoise.platform.prediction.conformal_task import EVERY_CLASS, Calibration, TaskConformal, check_level
from equipoise.platform.prediction.nonconformity import (
    Floats,
    ModelKey,
    class_names,
    class_nonconformity,
    coarser,
    labelled_folds,
)

if TYPE_CHECKING:
    import pandas as pd

#: Nonconformity of a class; values and times have their own.
ClassScore = Literal["lac", "aps"]

#: Columns of sets and intervals.
SET_COLUMNS = ("patient", "task", "kind", "level", "labels", "low", "high")
#: Level at which sets are given unless another one is asked for.
LEVEL = 0.9


@dataclass(frozen=True)
class Conformal:
    """Calibrations of all tasks of a run."""

    tasks: Mapping[str, TaskConformal]

    @classmethod
    def fit(
        cls,
        predictions: pd.DataFrame,
        *,
        level: float = LEVEL,
        score: ClassScore = "lac",
        class_conditional: bool = True,
        role: Literal["test", "val"] = "test",
        negatives: Mapping[str, str] | None = None,
    ) -> Conformal:
        """Calibrate with the labelled patients of a role.

        Parameters
        ----------
        predictions
            The predictions table of a run (:mod:`equipoise.platform.evaluation.predictions`). Its patients of role
            ``external`` are not looked at.
        level
            Probability with which sets are to hold the truth, above 0.5 and below 1.
        score
            Nonconformity of classes.
        class_conditional
            Whether the level is to hold within every class.
        role
            ``test``: every development patient, scored by the models that have not seen the patient. ``val``: the
            inner validation patients of each fold; training stopped by them, so that they fit a little better.
        negatives
            Binary task → what its other class is called; ``not X`` if it is not named.

        Raises
        ------
        DataError
            If no task has labelled patients of this role.
        """
        check_level(level)
        tasks = {
            str(task): _fit_task(
                rows, str(task), level, score, class_conditional, role, (negatives or {}).get(str(task), "")
            )
            for task, rows in predictions.groupby("task", sort=True)
        }
        found = {task: fitted for task, fitted in tasks.items() if fitted is not None}
        if not found:
            raise DataError(f"no labelled {role} patient to calibrate sets with", where="conformal sets")
        return cls(found)

    def apply(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Sets and intervals of all patients and calibrated tasks: rows of :meth:`TaskConformal.apply`."""
        import pandas as pd

        parts = [
            self.tasks[str(task)].apply(rows)
            for task, rows in predictions.groupby("task", sort=True)
            if str(task) in self.tasks
        ]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(SET_COLUMNS))

    def as_refit(self) -> Conformal:
        """For one model that was trained again on all patients, see :meth:`TaskConformal.as_refit`.

        Survival tasks have no bound then: log risks are determined up to a constant and a scale, so that those of the
        new model cannot be compared with those of the models of the folds.
        """
        return Conformal({n: task.as_refit() for n, task in self.tasks.items() if task.kind != "survival"})

    @property
    def guarantees(self) -> tuple[str, ...]:
        """What may be said of the coverage; tasks of which the same is to be said are named together."""
        of_sentence: dict[str, list[str]] = {}
        for name, task in self.tasks.items():
            of_sentence.setdefault(task.guarantee, []).append(name)
        return tuple(f"{', '.join(names)}: {sentence}" for sentence, names in of_sentence.items())

    @property
    def negatives(self) -> dict[str, str]:
        """Binary task → name of its negative class."""
        return {name: task.classes[0] for name, task in self.tasks.items() if task.kind == "binary"}

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"tasks": [task.to_dict() for task in self.tasks.values()]}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Conformal:
        """From :meth:`to_dict`."""
        tasks = [TaskConformal.from_dict(task) for task in state.get("tasks", ())]
        return cls({task.task: task for task in tasks})


def _fit_task(
    rows: pd.DataFrame, task: str, level: float, score: str, class_conditional: bool, role: str, negative: str
) -> TaskConformal | None:
    from equipoise.platform.evaluation.predictions import kind_of

    kind = kind_of(rows)
    classes = class_names(rows, kind, negative)
    folds = {key: table for key, table in labelled_folds(rows, kind, role) if len(table)}
    if not folds:
        return None
    lines = _risk_lines(rows, role) if kind == "survival" else {}
    names: list[str] = [str(patient) for table in folds.values() for patient in table.index]
    unique, counts = np.unique(names, return_counts=True)
    times = dict(zip(unique.tolist(), counts.tolist(), strict=True))
    models = {}
    for key, table in folds.items():
        weight = 1 / np.array([times[str(patient)] for patient in table.index], float)
        if classes:
            column = table["label"].to_numpy(int)
            probability = table[[f"score_{c}" for c in range(len(classes))]].to_numpy()
            values = class_nonconformity(probability, score)[np.arange(len(table)), column]
            groups = np.asarray(classes, object)[column] if class_conditional else None
            models[key] = _calibration(values, weight, groups)
        elif kind == "regression":
            residual = (table["value"] - table["score_0"]).abs().to_numpy()
            models[key] = _calibration(coarser(residual, kind), weight, None)
        else:
            intercept, slope, used = lines.get(key, (0.0, 0.0, frozenset()))
            free = ~table.index.isin(used)
            residual = (table["value"] - intercept - slope * table["score_0"]).to_numpy()
            models[key] = replace(
                _calibration(coarser(residual[free], kind), weight[free], None),
                intercept=intercept,
                slope=slope,
            )
    names_of_score = {"regression": "residual", "survival": "log time"}
    return TaskConformal(
        task, kind, classes, level, names_of_score.get(kind, score), class_conditional, models, role
    )


def _calibration(values: Floats, weight: Floats, groups: NDArray[Any] | None) -> Calibration:
    """Ascending scores of each class."""
    order = np.argsort(values, kind="stable")
    values, weight = values[order], weight[order]
    if groups is None:
        return Calibration({EVERY_CLASS: values}, {EVERY_CLASS: weight})
    groups = groups[order]
    names = sorted(set(groups.tolist()))
    return Calibration(
        {name: values[groups == name] for name in names}, {name: weight[groups == name] for name in names}
    )


def _risk_lines(rows: pd.DataFrame, role: str) -> dict[ModelKey, tuple[float, float, frozenset[str]]]:
    """Per fold, the line of the log observed time in the risk, and the patients who determined it.

    Least squares on the validation patients; on every second one of them if they calibrate as well. A poor line makes
    bounds less sharp, not wrong.
    """
    lines = {}
    for key, table in labelled_folds(rows, "survival", "val"):
        part = table.iloc[::2] if role == "val" else table
        risk, log_time = part["score_0"].to_numpy(), part["value"].to_numpy()
        spread = float(np.var(risk)) if len(risk) else 0.0
        enough = len(risk) >= 3 and spread > 1e-12 * (1 + float(np.mean(risk) ** 2))
        slope = (
            float(np.mean((risk - risk.mean()) * (log_time - log_time.mean())) / spread) if enough else 0.0
        )
        intercept = float(log_time.mean() - slope * risk.mean()) if len(risk) else 0.0
        lines[key] = (intercept, slope, frozenset(str(p) for p in part.index))
    return lines
