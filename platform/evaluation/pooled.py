"""The scored patients of a sample in one array, for what is read on the scale of probabilities.

Ranks of different fold models must not be mixed, and metrics are therefore computed per fold (:mod:`~.samples`). A
probability is on one scale whichever model said it: calibration, decisions at a threshold and net benefit take the
patients of all test folds together, each with what the model that did not train on it says.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from equipoise.platform.evaluation.evaluate import all_samples
from equipoise.platform.evaluation.intervals import AUROC_INFLATION
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.samples import ALL, MODEL, POOLED, Sample

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pooled:
    """Rows (a patient in a test part) of one class of a sample.

    ``target``, ``score``, ``patient`` (index), ``group`` (fold, and stratum in it) and ``repeat`` are ``[M]``;
    ``patients`` is the number N of patients; ``factor`` multiplies variances because patients also trained the models
    of other folds (:data:`~equipoise.platform.evaluation.intervals.AUROC_INFLATION`, 1 for fixed models).
    """

    target: Floats
    score: Floats
    patient: Ints
    group: Ints
    repeat: Ints
    patients: int
    factor: float

    @property
    def weight(self) -> Floats:
        """``[M]`` weights: every patient counts once, however often it was tested."""
        return 1 / np.bincount(self.patient, minlength=self.patients)[self.patient]

    def by_patient(self, values: Floats) -> Floats:
        """Sums ``[N, ...]`` over the rows of each patient of ``[M, ...]``."""
        total = np.zeros((self.patients, *values.shape[1:]))
        np.add.at(total, self.patient, values)
        return total

    def mean(self, values: Floats) -> tuple[Floats, Floats]:
        """Mean over patients of ``[M, ...]`` values and its standard error."""
        per_patient = self.by_patient(values * self.weight.reshape(-1, *[1] * (values.ndim - 1)))
        n = self.patients
        mean = per_patient.mean(0)
        error = per_patient.std(0, ddof=1) / np.sqrt(n) if n > 1 else np.full(mean.shape, np.nan)
        return mean, error * np.sqrt(self.factor)

    @property
    def events(self) -> int:
        """Patients of the class."""
        return len(np.unique(self.patient[self.target == 1]))

    @property
    def undefined(self) -> str:
        """Why nothing can be said that needs both classes; empty if there are both."""
        if self.events in (0, self.patients):
            return f"all {self.patients} patients are {'positive' if self.events else 'negative'}"
        return ""


def variance_factor(sample: Sample) -> float:
    """Factor on the variance of a mean over the patients of a sample, for these models."""
    folds = len({group.fold for group in sample.groups})
    return 1.0 if sample.is_fixed or folds < 2 else 1 + AUROC_INFLATION.models / (folds - 1)


def pooled(sample: Sample, column: int = 0) -> Pooled:
    """The rows of one class of a classification sample."""
    groups = sample.groups
    sizes = [len(group.patient) for group in groups]

    def joined(values: list[Any], dtype: Any) -> Any:
        return np.concatenate(values).astype(dtype) if values else np.zeros(0, dtype)

    number = np.repeat(np.arange(len(groups)), sizes)
    strata = [np.zeros(n, int) if g.strata is None else g.strata for g, n in zip(groups, sizes, strict=True)]
    stratum = joined(strata, np.int64)
    _, group = np.unique(number * (1 + int(stratum.max(initial=0))) + stratum, return_inverse=True)
    return Pooled(
        joined([g.target[:, column] for g in groups], float),
        joined([g.score[:, column] for g in groups], float),
        joined([g.patient for g in groups], np.int64),
        group.astype(np.int64),
        np.repeat([g.repeat for g in groups], sizes).astype(np.int64),
        len(sample.strata),
        variance_factor(sample),
    )


def pooled_samples(predictions: pd.DataFrame, params: EvaluationParams) -> list[Sample]:
    """Samples of the model on all test patients together, and within each cohort; on each external cohort.

    ``cohort`` is ``pooled`` for the patients of several cohorts together and ``all`` where there is one.
    """
    found = [
        sample
        for sample in all_samples(predictions, params)
        if sample.role != "val" and sample.site == ALL and sample.predictor == MODEL
    ]
    several = {(s.role, s.task) for s in found if s.cohort == POOLED}
    return [s for s in found if s.groups and not (s.cohort == ALL and (s.role, s.task) in several)]


def pooled_classes(samples: Sequence[Sample]) -> Iterator[tuple[Mapping[str, Any], Pooled]]:
    """The rows of every class of the classification samples, with the columns that say what they are about."""
    for sample in samples:
        if sample.kind in ("binary", "multiclass"):
            for column, name in enumerate(sample.classes):
                yield identity(sample, name), pooled(sample, column)


def identity(sample: Sample, class_name: str | None = None) -> Mapping[str, Any]:
    """The columns that say what a row of a table is about."""
    names = {"role": sample.role, "cohort": sample.cohort, "task": sample.task}
    return names if class_name is None else names | {"class": class_name}
