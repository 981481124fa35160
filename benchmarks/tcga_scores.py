"""Risks of test folds, kept on disk, and their concordance with intervals and paired differences.

A file per cohort, method, fold and seed holds what a fold predicted, with the settings that it was made with; a
benchmark that was interrupted, or another one that needs the same row, does not fit it again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from equipoise.datasets.atomic_io import read_json, write_json
from equipoise.platform.evaluation.influence import Cell, CellMean, concordance_influence
from equipoise.platform.evaluation.intervals import (
    CONCORDANCE_INFLATION,
    LOGIT,
    influence_interval,
    paired_test,
)
from equipoise.platform.evaluation.survival_scores import horizon, uno_c

Metric = Literal["harrell", "uno"]
Z = 1.959964


@dataclass(frozen=True)
class FoldRisks:
    """What a fold predicted.

    Attributes
    ----------
    risks
        Patient of the test part → risk, higher is worse.
    scale
        Mean and standard deviation of the risks of the patients that the model was fitted on; empty if not asked for.
    variants
        Name → risks of the same patients with some of their modalities hidden.
    notes
        Penalties, weights, what was chosen.
    """

    risks: dict[str, float]
    scale: tuple[float, ...] = ()
    variants: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def standardised(self) -> dict[str, float]:
        """Risks with mean 0 and standard deviation 1 among the patients that the model was fitted on."""
        mean, spread = self.scale
        return {patient: (risk - mean) / spread for patient, risk in self.risks.items()}


@dataclass(frozen=True)
class RowStore:
    """Folder of the rows."""

    folder: Path

    def get(
        self, cohort: str, method: str, part: str, settings: Any, make: Callable[[], FoldRisks]
    ) -> FoldRisks:
        """The risks of a fold: those that are kept, if they were made with these settings, or else new ones."""
        file = self.folder / cohort / f"{re.sub('[^a-z0-9]+', '-', method.lower())}-{part}.json"
        wanted = json.loads(json.dumps(settings, default=str))
        kept = read_json(file, {})
        if kept.get("settings") == wanted:
            return FoldRisks(kept["risks"], tuple(kept["scale"]), kept["variants"], kept["notes"])
        made = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"settings": wanted, **asdict(made)})
        return made


@dataclass(frozen=True)
class Scores:
    """Labels of the patients of a cohort, by which risks are judged."""

    labels: Mapping[str, tuple[float, float]]

    def mean(
        self,
        folds: Sequence[Mapping[str, float]],
        metric: Metric = "harrell",
        among: Collection[str] | None = None,
    ) -> CellMean:
        """Mean over folds of a concordance, with influence values.

        Parameters
        ----------
        folds
            Per fold, patient → risk.
        metric
            Harrell's C, or Uno's up to the time after which fewer than 10 % of the fold are uncensored.
        among
            Patients who are compared; folds without a comparable pair among them are left out.
        """
        order = {patient: i for i, patient in enumerate(self.labels)}
        cells = []
        for k, risks in enumerate(folds):
            patients = [p for p in risks if among is None or p in among]
            days, event = np.array([self.labels[p] for p in patients], float).reshape(-1, 2).T
            risk = np.array([risks[p] for p in patients])
            found = (
                concordance_influence(days, event, risk)
                if metric == "harrell"
                else uno_c(days, event, risk, horizon(days, event))
            )
            if not math.isnan(float(found.value)):
                at = np.array([order[p] for p in patients])
                cells.append(Cell(float(found.value), found.influence, at, fold=k))
        mean = CellMean.of(cells, len(order))
        assert mean is not None
        return mean

    def row(
        self, folds: Sequence[Mapping[str, float]], among: Collection[str] | None = None
    ) -> dict[str, Any]:
        """Harrell's and Uno's C: mean and standard deviation of folds, interval of these models, of the procedure."""
        result: dict[str, Any] = {}
        for metric in ("harrell", "uno"):
            mean = self.mean(folds, metric, among)
            bounds = influence_interval(mean, 0.95, LOGIT, CONCORDANCE_INFLATION)
            result[metric] = {
                "c": mean.value,
                "fold_sd": float(np.std(mean.fold_means, ddof=1)) if len(mean.fold_means) > 1 else math.nan,
                "low": bounds.low,
                "high": bounds.high,
                "low_procedure": bounds.low_procedure,
                "high_procedure": bounds.high_procedure,
            }
        return result

    def difference(
        self,
        folds: Sequence[Mapping[str, float]],
        others: Sequence[Mapping[str, float]],
        among: Collection[str] | None = None,
    ) -> dict[str, float]:
        """Harrell's C of one less that of the other: paired influence values, 1.5 V."""
        apart = self.mean(folds, "harrell", among).minus(self.mean(others, "harrell", among))
        assert apart is not None
        test = paired_test(apart)
        half = Z * test.se
        return {
            "difference": test.difference,
            "low": test.difference - half,
            "high": test.difference + half,
            "p": test.p,
        }


def weighted_sum(
    parts: Sequence[Mapping[str, float]], weights: Sequence[float] | None = None
) -> dict[str, float]:
    """Sum of standardised risks over the patients that all parts have."""
    known = [p for p in parts[0] if all(p in other for other in parts)]
    factors = [1.0] * len(parts) if weights is None else weights
    return {p: sum(w * part[p] for w, part in zip(factors, parts, strict=True)) for p in known}
