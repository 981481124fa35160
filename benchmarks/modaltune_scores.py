"""Figures of ModalTune's test cases: balanced accuracy and Harrell's C with a bootstrap over patients.

An :class:`Estimate` is the value and its bootstrap replicates, so that means over seeds and cancers and differences of
methods keep the pairing of patients: all methods see the same draws. Patients are drawn with replacement within class
and event. Seeds are averaged inside every replicate; cancers have other patients and independent draws.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.evaluation.intervals import bootstrap_weights, percentile_interval
from equipoise.platform.evaluation.metrics import harrell_c, sensitivity

REPLICATES = 1000

Risks = Mapping[str, float]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Value, replicates ``[R]``, and the values of single seeds."""

    value: float
    replicates: Floats
    seeds: tuple[float, ...] = ()

    def minus(self, other: Estimate) -> Estimate:
        """Difference of two methods on the same patients."""
        return Estimate(self.value - other.value, self.replicates - other.replicates)

    @staticmethod
    def mean(parts: Sequence[Estimate]) -> Estimate:
        """Mean over cancers, or over metrics of the same patients."""
        seeds: tuple[float, ...] = ()
        if all(len(part.seeds) == len(parts[0].seeds) for part in parts):
            seeds = tuple(np.mean([part.seeds for part in parts], axis=0).tolist())
        value = float(np.mean([part.value for part in parts]))
        return Estimate(value, np.mean([part.replicates for part in parts], axis=0), seeds)

    @property
    def row(self) -> dict[str, float | None]:
        """Value, 95 % bounds, and the standard deviation over seeds if there are several; None where undefined."""
        bounds = percentile_interval(self.replicates, 0.95, "bootstrap")
        found = {"value": self.value, "low": bounds.low, "high": bounds.high}
        if len(self.seeds) > 1:
            found["seed_sd"] = float(np.std(self.seeds, ddof=1))
        return {key: None if math.isnan(value) else value for key, value in found.items()}


@dataclass(frozen=True)
class TestPart:
    """Patients of one cancer on which methods are compared.

    Parameters
    ----------
    patients
        Who they are.
    follow_up
        Patient → days and event, for those who have it.
    classes
        Patient → class; those that are not in ``names`` count for no accuracy.
    names
        The classes.
    seed
        Of the draws, another one for each cancer.
    """

    __test__ = False

    patients: tuple[str, ...]
    follow_up: Mapping[str, tuple[float, float]]
    classes: Mapping[str, str]
    names: tuple[str, ...]
    seed: int
    weights: NDArray[np.uint16] = field(init=False)

    def __post_init__(self) -> None:
        keys = [
            (self.classes[p], self.follow_up[p][1] if p in self.follow_up else -1.0) for p in self.patients
        ]
        codes = {key: i for i, key in enumerate(sorted(set(keys)))}
        drawn = bootstrap_weights(
            [codes[key] for key in keys], REPLICATES, np.random.SeedSequence([self.seed])
        )
        object.__setattr__(self, "weights", np.vstack([np.ones(len(keys), np.uint16), drawn]))

    def concordance(
        self,
        seeds: Sequence[Risks],
        *,
        among: Collection[str] | None = None,
        strata: Mapping[str, str] | None = None,
    ) -> Estimate:
        """Harrell's C, mean over seeds; of pairs within the same stratum only, if strata are given."""
        chosen = [
            i for i, p in enumerate(self.patients) if p in self.follow_up and (among is None or p in among)
        ]
        patients = [self.patients[i] for i in chosen]
        days, event = np.array([self.follow_up[p] for p in patients], float).reshape(-1, 2).T
        groups = None if strata is None else [strata[p] for p in patients]
        return self._over(
            [
                harrell_c(days, event, [risks[p] for p in patients], self.weights[:, chosen], groups)
                for risks in seeds
            ]
        )

    def balanced_accuracy(self, seeds: Sequence[Mapping[str, Risks]]) -> Estimate:
        """Mean over classes of the share that is called right, mean over seeds.

        ``seeds`` are class → patient → score; the largest score is called. Classes without a patient here
        count for nothing.
        """
        chosen = [i for i, p in enumerate(self.patients) if self.classes[p] in self.names]
        patients = [self.patients[i] for i in chosen]
        truth = np.array([self.names.index(self.classes[p]) for p in patients])
        weights, values = self.weights[:, chosen], []
        for scores in seeds:
            table = np.array([[scores[name][p] for name in self.names if name in scores] for p in patients])
            known = [k for k, name in enumerate(self.names) if name in scores]
            called = np.array(known)[table.argmax(axis=1)]
            shares = [sensitivity(truth == k, called == k, weights) for k in np.unique(truth)]
            values.append(np.mean(shares, axis=0))
        return self._over(values)

    @staticmethod
    def _over(values: Sequence[Floats]) -> Estimate:
        mean = np.mean(values, axis=0)
        return Estimate(float(mean[0]), mean[1:], tuple(float(value[0]) for value in values))


def worst(differences: Mapping[str, Estimate]) -> dict[str, Any]:
    """The smallest of several differences, by name; its interval is not corrected for the choice."""
    name = min(differences, key=lambda key: differences[key].value)
    return {"cancer": name} | differences[name].row
