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
:meth:`TaskConformal.guarantee`.

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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
#: Nonconformity of a class; values and times have their own.
ClassScore = Literal["lac", "aps"]

#: Level at which sets are given unless another one is asked for.
LEVEL = 0.9
#: Fold model: repeat and fold.
ModelKey = tuple[int, int]
#: Decimals of nonconformity scores between 0 and 1: sets do not depend on the last bits of a sum.
_DECIMALS = 6
#: A p value this close to 1 - level counts as equal to it.
_TOLERANCE = 1e-9
#: Key of all classes together.
_EVERY_CLASS = ""


@dataclass(frozen=True)
class Calibration:
    """Nonconformity of the patients that calibrate one fold's model.

    Attributes
    ----------
    scores, weights
        Class (empty: all of them) → ``[n]`` ascending scores and how much each patient counts.
    intercept, slope
        Line of the log time in the risk; 0 for other tasks.
    """

    scores: Mapping[str, Floats]
    weights: Mapping[str, Floats]
    intercept: float = 0.0
    slope: float = 0.0

    def at_least(self, group: str, score: Floats) -> Floats:
        """Weight of the calibrating patients of a class with a score at or above each of ``score``."""
        known = self.scores.get(group)
        if known is None:
            return np.zeros_like(score)
        above = np.r_[np.cumsum(self.weights[group][::-1])[::-1], 0.0]
        return above[np.searchsorted(known, score, side="left")]

    def total(self, group: str) -> float:
        """Weight of all calibrating patients of a class."""
        return float(self.weights[group].sum()) if group in self.weights else 0.0


@dataclass(frozen=True)
class TaskConformal:
    """The calibration of one task.

    Attributes
    ----------
    task, kind
        Name; ``binary``, ``multiclass``, ``regression`` or ``survival``.
    classes
        Labels; for a binary task ``not X`` and ``X``; empty without classes.
    level
        Probability with which sets are to hold the truth.
    score
        ``lac`` or ``aps``, ``residual``, ``log time``.
    class_conditional
        Whether the level is to hold within every class.
    models
        Fold model → its calibration.
    role
        Patients that calibrate: ``test`` (out of fold) or ``val``.
    refit
        Whether new patients are scored by one model that was trained again on everybody.
    """

    task: str
    kind: str
    classes: tuple[str, ...]
    level: float
    score: str
    class_conditional: bool
    models: Mapping[ModelKey, Calibration]
    role: str
    refit: bool = False

    @property
    def groups(self) -> tuple[str, ...]:
        """The classes that are calibrated on their own."""
        return self.classes if self.class_conditional and self.classes else (_EVERY_CLASS,)

    def patients(self, group: str = _EVERY_CLASS) -> float:
        """Calibrating patients of a class; of all classes together if they are not calibrated on their own."""
        groups = self.groups if group == _EVERY_CLASS else (group,)
        return sum(model.total(name) for model in self.models.values() for name in groups)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the calibration cannot give, a sentence each."""
        needed = int(np.ceil(1 / (1 - self.level) - _TOLERANCE)) - 1
        few = {group: self.patients(group) for group in self.groups}
        few = {group: n for group, n in few.items() if n < needed - _TOLERANCE}
        if not self.classes:
            what = "the bound is 0" if self.kind == "survival" else "the intervals have no ends"
            return tuple(
                f"{n:.0f} calibrating patients are too few at {self.level:.0%}: {what}" for n in few.values()
            )
        return tuple(
            f"{n:.0f} calibrating patients{f' of {group}' if group else ''}, where {self.level:.0%} needs {needed}: "
            f"{'this class is' if group else 'every class is'} in every set"
            for group, n in few.items()
        )

    @property
    def floor(self) -> float:
        """Coverage that is proved for new patients that are like the calibrating ones; NaN if nothing is.

        Theorem 4 of Barber et al. 2021 and theorem 3 of Romano et al. 2020, for folds of equal size.
        """
        alpha = 1 - self.level
        if self.refit:
            return float("nan")
        if len(self.models) == 1:
            return self.level
        weights = np.concatenate([w for model in self.models.values() for w in model.weights.values()])
        if self.role != "test" or not np.allclose(weights, 1):
            return float("nan")
        k = len(self.models)
        n = min(self.patients(group) for group in self.groups)
        if n < 1:
            return 1.0
        excess = min(2 * (1 - 1 / k) / (n / k + 1), max(1 - k / n, 0.0) / (k + 1))
        return max(0.0, 1 - 2 * alpha - excess)

    @property
    def guarantee(self) -> str:
        """What may be said of the coverage, in a sentence or two."""
        within = " within each class" if self.class_conditional and self.classes else ""
        what = {"regression": "Intervals are", "survival": "Lower bounds are"}.get(self.kind, "Sets are")
        text = f"{what} made to hold the truth for {self.level:.0%} of new patients{within}"
        if self.refit:
            return (
                f"{text}. They are calibrated with the models of the folds and used with a model trained on all "
                "patients: this is close to the level in practice, but no bound is proved."
            )
        if len(self.models) == 1:
            return f"{text}, exactly so if these patients are like those that calibrated them."
        if np.isfinite(self.floor):
            return (
                f"{text}; for patients like those that calibrated them at least {self.floor:.0%} is proved, for any "
                "model, and close to the level is usual."
            )
        return f"{text}; this is usual for patients like those that calibrated them, but no bound is proved."

    def p_values(self, rows: pd.DataFrame) -> pd.DataFrame:
        """How well each class fits new patients: patients × classes.

        Parameters
        ----------
        rows
            Scores of the fold models for the patients, columns ``patient repeat fold class score`` (others are not
            looked at), of this task.

        Raises
        ------
        DataError
            If the task has no classes, or a fold model's scores are missing.
        """
        import pandas as pd

        if not self.classes:
            raise DataError(f"task {self.task} has no classes and so no p values", where="conformal sets")
        patients, scores = self._by_model(rows)
        reached = np.zeros((len(patients), len(self.classes)))
        for key, model in self.models.items():
            nonconformity = class_nonconformity(scores[key], self.score)
            for column, name in enumerate(self.classes):
                group = name if self.class_conditional else _EVERY_CLASS
                reached[:, column] += model.at_least(group, nonconformity[:, column])
        n = [self.patients(name if self.class_conditional else _EVERY_CLASS) for name in self.classes]
        return pd.DataFrame((1 + reached) / (1 + np.asarray(n)), index=patients, columns=list(self.classes))

    def apply(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Set or interval of every patient.

        Parameters
        ----------
        rows
            As for :meth:`p_values`.

        Returns
        -------
        One row per patient: ``patient task kind level``, ``labels`` (the set, a tuple; empty without classes), ``low``
        and ``high`` in units of the label, or days (NaN with classes; infinite or 0 where the calibrating patients are
        too few).
        """
        import pandas as pd

        if self.classes:
            p = self.p_values(rows)
            inside = p.to_numpy() > 1 - self.level + _TOLERANCE
            labels = [tuple(np.asarray(self.classes, object)[row]) for row in inside]
            low = high = np.full(len(p), np.nan)
            patients = p.index.to_numpy()
        else:
            patients, scores = self._by_model(rows)
            labels = [()] * len(patients)
            low, high = self._interval({key: of_model[:, 0] for key, of_model in scores.items()})
        fixed = {"task": self.task, "kind": self.kind, "level": self.level}
        table = pd.DataFrame({"patient": patients, **fixed, "low": low, "high": high})
        table.insert(4, "labels", pd.Series(labels, index=table.index, dtype=object))
        return table

    def _interval(self, scores: Mapping[ModelKey, Floats]) -> tuple[Floats, Floats]:
        """CV+ intervals: ``[V]`` lower and upper ends."""
        weights = np.concatenate([model.weights[_EVERY_CLASS] for model in self.models.values()])
        if self.kind == "regression":
            ends = [(scores[key], model.scores[_EVERY_CLASS]) for key, model in self.models.items()]
            below = np.concatenate([x[:, None] - r for x, r in ends], axis=1)
            above = np.concatenate([x[:, None] + r for x, r in ends], axis=1)
            return -_upper_quantile(-below, weights, self.level), _upper_quantile(above, weights, self.level)
        lines = [
            (model.intercept + model.slope * scores[key], model.scores[_EVERY_CLASS])
            for key, model in self.models.items()
        ]
        logs = np.concatenate([x[:, None] + r for x, r in lines], axis=1)
        low = np.exp(-_upper_quantile(-logs, weights, self.level))
        return low, np.full(len(low), np.inf)

    def _by_model(self, rows: pd.DataFrame) -> tuple[NDArray[Any], dict[ModelKey, Floats]]:
        """Patients and, per fold model, their scores ``[V, classes]``."""
        patients = np.unique(rows["patient"].to_numpy(str)).astype(object)
        classes = max(1, len(self.classes) - (self.kind == "binary"))
        of_model = {
            (int(repeat), int(fold)): group for (repeat, fold), group in rows.groupby(["repeat", "fold"])
        }
        scores = {}
        for key in self.models:
            if key not in of_model or len(of_model[key]) != len(patients) * classes:
                raise DataError(
                    f"task {self.task}: scores of fold model {key[0]}-{key[1]} are missing for some patients",
                    where="conformal sets",
                    fix="predict with every model that the calibration names",
                )
            scores[key] = with_negative(_wide(of_model[key], ("score",))[1], self.kind)
        return patients, scores

    def as_refit(self) -> TaskConformal:
        """The same calibration for one model that was trained again on all patients, named fold 0-0."""
        scores, weights = {}, {}
        for group in self.groups:
            both = [(m.scores[group], m.weights[group]) for m in self.models.values() if group in m.scores]
            if both:
                joined, counted = (np.concatenate(part) for part in zip(*both, strict=True))
                order = np.argsort(joined, kind="stable")
                scores[group], weights[group] = joined[order], counted[order]
        return replace(self, models={(0, 0): Calibration(scores, weights)}, refit=True)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: scores without names of patients, in ascending order."""
        models = [
            {
                "repeat": repeat,
                "fold": fold,
                "intercept": model.intercept,
                "slope": model.slope,
                "scores": {group: values.tolist() for group, values in model.scores.items()},
                "weights": {group: values.tolist() for group, values in model.weights.items()},
            }
            for (repeat, fold), model in self.models.items()
        ]
        fields = ("task", "kind", "level", "score", "class_conditional", "role", "refit")
        return {name: getattr(self, name) for name in fields} | {
            "classes": list(self.classes),
            "models": models,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> TaskConformal:
        """From :meth:`to_dict`.

        Raises
        ------
        DataError
            If something is missing or is not what it should be.
        """
        try:
            models = {
                (int(m["repeat"]), int(m["fold"])): Calibration(
                    {group: np.asarray(v, float) for group, v in m["scores"].items()},
                    {group: np.asarray(v, float) for group, v in m["weights"].items()},
                    float(m["intercept"]),
                    float(m["slope"]),
                )
                for m in state["models"]
            }
            names = ("task", "kind", "level", "score", "class_conditional", "role", "refit")
            task = cls(
                classes=tuple(state["classes"]), models=models, **{name: state[name] for name in names}
            )
        except (KeyError, TypeError, ValueError, AttributeError) as wrong:
            raise DataError(f"not the state of conformal sets: {wrong!r}", where="conformal sets") from wrong
        check_level(task.level)
        return task


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

        Raises
        ------
        DataError
            If no task has labelled patients of this role.
        """
        check_level(level)
        tasks = {
            str(task): _fit_task(rows, str(task), level, score, class_conditional, role)
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
        columns = ["patient", "task", "kind", "level", "labels", "low", "high"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def as_refit(self) -> Conformal:
        """For one model that was trained again on all patients, see :meth:`TaskConformal.as_refit`.

        Survival tasks have no bound then: log risks are determined up to a constant and a scale, so that those of the
        new model cannot be compared with those of the models of the folds.
        """
        return Conformal({n: task.as_refit() for n, task in self.tasks.items() if task.kind != "survival"})

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"tasks": [task.to_dict() for task in self.tasks.values()]}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Conformal:
        """From :meth:`to_dict`."""
        tasks = [TaskConformal.from_dict(task) for task in state.get("tasks", ())]
        return cls({task.task: task for task in tasks})


def class_nonconformity(probability: Floats, score: str) -> Floats:
    """Nonconformity of every class.

    Parameters
    ----------
    probability
        ``[V, C]``.
    score
        ``lac`` or ``aps``.

    >>> class_nonconformity(np.array([[0.5, 0.3, 0.2]]), "aps").tolist()
    [[0.5, 0.8, 1.0]]
    """
    if score == "lac":
        return np.round(1 - probability, _DECIMALS)
    likelier = probability[:, None, :] >= probability[:, :, None]
    return np.round(np.einsum("vcd,vd->vc", likelier, probability), _DECIMALS)


def with_negative(scores: Floats, kind: str) -> Floats:
    """``[V, 2]`` probabilities of a binary task from ``[V, 1]`` of its positive class; other tasks as they are."""
    return np.concatenate([1 - scores, scores], axis=1) if kind == "binary" else scores


def class_names(rows: pd.DataFrame, kind: str) -> tuple[str, ...]:
    """Labels of a task in the order of their columns; ``not X`` and ``X`` for a binary task."""
    if kind not in ("binary", "multiclass"):
        return ()
    names = tuple(sorted(str(name) for name in rows["class"].unique()))
    return (f"not {names[0]}", *names) if kind == "binary" else names


def labelled_folds(rows: pd.DataFrame, kind: str, role: str) -> Iterator[tuple[ModelKey, pd.DataFrame]]:
    """Per fold, its labelled patients of a role, with the patient as index.

    Columns: ``score_0 …`` (probabilities of the labels, or the score), ``label`` (column of the true class, NaN without
    classes), ``value`` (target or log of the observed time).
    """
    import pandas as pd

    truth = "time" if kind == "survival" else "target"
    known = rows[((rows["role"] == role) & rows[truth].notna()).to_numpy()]
    for (repeat, fold), group in known.groupby(["repeat", "fold"], sort=True):
        patients, score, target = _wide(group, ("score", truth))
        score = with_negative(score, kind)
        table = pd.DataFrame(
            score, index=patients, columns=[f"score_{column}" for column in range(score.shape[1])]
        )
        if kind == "binary":
            table["label"] = target[:, 0]
        elif kind == "multiclass":
            table["label"] = np.where(target.sum(axis=1) == 1, target.argmax(axis=1), np.nan)
            table = table[table["label"].notna()]
        else:
            table["value"] = np.log(target[:, 0]) if kind == "survival" else target[:, 0]
        yield (int(repeat), int(fold)), table


def _wide(rows: pd.DataFrame, columns: tuple[str, ...]) -> tuple[NDArray[Any], ...]:
    """Patients of one fold model in ascending order, then ``[V, classes]`` of each column, classes ascending."""
    patient, label = rows["patient"].to_numpy(str), rows["class"].to_numpy(str)
    order = np.lexsort((label, patient))
    patients = np.unique(patient)
    classes = len(np.unique(label))
    if len(patients) * classes != len(rows):
        raise DataError(
            f"{len(rows)} rows are not one for each of {len(patients)} patients and {classes} classes",
            where="conformal sets",
        )
    values = [rows[column].to_numpy(float)[order].reshape(-1, classes) for column in columns]
    return (patients.astype(object), *values)


def _fit_task(
    rows: pd.DataFrame, task: str, level: float, score: str, class_conditional: bool, role: str
) -> TaskConformal | None:
    from equipoise.platform.evaluation.predictions import kind_of

    kind = kind_of(rows)
    classes = class_names(rows, kind)
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
            models[key] = _calibration(_significant(residual), weight, None)
        else:
            intercept, slope, used = lines.get(key, (0.0, 0.0, frozenset()))
            free = ~table.index.isin(used)
            residual = (table["value"] - intercept - slope * table["score_0"]).to_numpy()
            models[key] = replace(
                _calibration(_significant(residual[free]), weight[free], None),
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
        return Calibration({_EVERY_CLASS: values}, {_EVERY_CLASS: weight})
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


def _upper_quantile(values: Floats, weights: Floats, level: float) -> Floats:
    """``[V]`` smallest of each row's values that ``level`` of n + 1 patients do not exceed; infinite if none is."""
    order = np.argsort(values, axis=1, kind="stable")
    reached = np.cumsum(weights[order], axis=1)
    needed = level * (weights.sum() + 1) - _TOLERANCE
    first = (reached < needed).sum(axis=1)
    padded = np.concatenate(
        [np.take_along_axis(values, order, axis=1), np.full((len(values), 1), np.inf)], axis=1
    )
    return padded[np.arange(len(values)), first]


def _significant(values: Floats) -> Floats:
    """Rounded to six significant digits."""
    return np.array([float(f"{value:.6g}") for value in values])


def check_level(level: float) -> None:
    """Refuse a level that no sets are made for."""
    if not 0.5 < level < 1:
        raise DataError(
            f"the level of prediction sets is {level}; it lies above 0.5 and below 1",
            where="conformal sets",
            fix="write 0.9",
        )
