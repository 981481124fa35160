"""The calibration of one task: how unusual each fold model's patients were, and the sets that follow for others.

The method is described in :mod:`~equipoise.platform.prediction.conformal`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.errors import DataError
from equipoise.platform.prediction.nonconformity import (
    Floats,
    ModelKey,
    by_patient,
    class_nonconformity,
    with_negative,
)

if TYPE_CHECKING:
    import pandas as pd

#: A p value this close to 1 - level counts as equal to it.
TOLERANCE = 1e-9
#: Key of all classes together.
EVERY_CLASS = ""


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
        Probability with which sets are to hold what is true.
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
        return self.classes if self.class_conditional and self.classes else (EVERY_CLASS,)

    def patients(self, group: str = EVERY_CLASS) -> float:
        """Calibrating patients of a class; of all classes together if they are not calibrated on their own."""
        groups = self.groups if group == EVERY_CLASS else (group,)
        return sum(model.total(name) for model in self.models.values() for name in groups)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the calibration cannot give, a sentence each."""
        needed = int(np.ceil(1 / (1 - self.level) - TOLERANCE)) - 1
        few = {group: self.patients(group) for group in self.groups}
        few = {group: n for group, n in few.items() if n < needed - TOLERANCE}
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
        text = f"{what} made to hold the true value for {self.level:.0%} of new patients{within}"
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
                group = name if self.class_conditional else EVERY_CLASS
                reached[:, column] += model.at_least(group, nonconformity[:, column])
        n = [self.patients(name if self.class_conditional else EVERY_CLASS) for name in self.classes]
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
            inside = p.to_numpy() > 1 - self.level + TOLERANCE
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
        weights = np.concatenate([model.weights[EVERY_CLASS] for model in self.models.values()])
        if self.kind == "regression":
            ends = [(scores[key], model.scores[EVERY_CLASS]) for key, model in self.models.items()]
            below = np.concatenate([x[:, None] - r for x, r in ends], axis=1)
            above = np.concatenate([x[:, None] + r for x, r in ends], axis=1)
            return -_upper_quantile(-below, weights, self.level), _upper_quantile(above, weights, self.level)
        lines = [
            (model.intercept + model.slope * scores[key], model.scores[EVERY_CLASS])
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
            scores[key] = with_negative(by_patient(of_model[key], ("score",))[1], self.kind)
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


def _upper_quantile(values: Floats, weights: Floats, level: float) -> Floats:
    """``[V]`` smallest of each row's values that ``level`` of n + 1 patients do not exceed; infinite if none is."""
    order = np.argsort(values, axis=1, kind="stable")
    reached = np.cumsum(weights[order], axis=1)
    needed = level * (weights.sum() + 1) - TOLERANCE
    first = (reached < needed).sum(axis=1)
    padded = np.concatenate(
        [np.take_along_axis(values, order, axis=1), np.full((len(values), 1), np.inf)], axis=1
    )
    return padded[np.arange(len(values)), first]


def check_level(level: float) -> None:
    """Refuse a level that no sets are made for."""
    if not 0.5 < level < 1:
        raise DataError(
            f"the level of prediction sets is {level}; it lies above 0.5 and below 1",
            where="conformal sets",
            fix="write 0.9",
        )
