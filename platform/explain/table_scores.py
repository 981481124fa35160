"""What tables and modalities contribute to a prediction: genes, pathways, and what is lost without a modality.

Integrated gradients go from the average patient (prepared tables at zero, every tile the average tile of training
patients) to the patient, all modalities along one path, so that the contributions of all columns and tiles together sum
to the difference between the two predictions. A patient is also predicted without each modality, as a patient who never
had it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.datasets.omics.components import ComponentTransform
from equipoise.datasets.omics.fitting import columns_of
from equipoise.platform.explain.explained import WSI, Explained, TrainedModel
from equipoise.platform.explain.gradients import mean_gradients

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cases import Case

#: Training patients whose tiles make the average tile.
REFERENCE_PATIENTS = 64


@dataclass(frozen=True)
class TableScores:
    """One prediction of one patient, taken apart by modality; means over the models that explain it.

    Attributes
    ----------
    value
        The explained number.
    without
        Modality → the number for the patient without it; empty for a patient with a single one.
    contributions
        Modality → sum of its integrated gradients.
    columns
        Modality of a table → name of a column (a gene) → its contribution.
    """

    value: float
    without: Mapping[str, float]
    contributions: Mapping[str, float]
    columns: Mapping[str, Mapping[str, float]]

    @property
    def shares(self) -> dict[str, float]:
        """Modality → its share of the sizes of all contributions; they sum to 1."""
        total = sum(abs(value) for value in self.contributions.values())
        return {name: abs(value) / total if total else 0.0 for name, value in self.contributions.items()}


def average_tile(cases: Iterable[Case]) -> NDArray[np.float64] | None:
    """``[D]`` the mean over patients of their mean tile; None if nobody has tiles."""
    means = [case.bag.mean(axis=0, dtype=np.float64) for case in cases if len(case.bag)]
    return np.mean(means, axis=0) if means else None


def reference_patients(patients: Sequence[str]) -> list[str]:
    """Some training patients, always the same ones."""
    return sorted(patients, key=lambda patient: hashlib.blake2b(patient.encode()).digest())[
        :REFERENCE_PATIENTS
    ]


def table_scores(
    models: Sequence[TrainedModel],
    explained: Sequence[Explained],
    case: Case,
    tiles: Sequence[NDArray[np.float64] | None],
    steps: int = 16,
) -> TableScores:
    """Take a prediction apart.

    Parameters
    ----------
    models, explained
        The models, and the case under each of them.
    case
        The patient.
    tiles
        The average tile of each model's training patients.
    steps
        Points along the path.
    """
    parts = [
        _of_one(trained, one, case, tile, steps)
        for trained, one, tile in zip(models, explained, tiles, strict=True)
    ]
    names = parts[0].contributions
    return TableScores(
        float(np.mean([part.value for part in parts])),
        {name: float(np.mean([part.without[name] for part in parts])) for name in parts[0].without},
        {name: float(np.mean([part.contributions[name] for part in parts])) for name in names},
        {name: _mean_columns([part.columns[name] for part in parts]) for name in parts[0].columns},
    )


def _of_one(
    trained: TrainedModel, one: Explained, case: Case, tile: NDArray[np.float64] | None, steps: int
) -> TableScores:
    inputs: dict[str, Tensor] = {}
    start: dict[str, Tensor] = {}
    if trained.targets.shape.features and len(case.bag) and tile is not None:
        x_1ND = inputs[WSI] = one.batch.bags
        start[WSI] = torch.as_tensor(tile).to(x_1ND).expand_as(x_1ND)
    for name, present in one.batch.present.items():
        if bool(present[0]):
            inputs[name] = one.batch.omics[name]
            start[name] = torch.zeros_like(inputs[name])
    gradients = mean_gradients(one, inputs, start, steps)
    scores = {name: ((x - start[name])[0] * gradients[name]) for name, x in inputs.items()}
    without = {name: float(one.value(one.without(name))) for name in inputs} if len(inputs) > 1 else {}
    columns = {
        name: _columns(trained, case, name, gradients[name].double().cpu().numpy())
        for name in inputs
        if name != WSI
    }
    sums = {name: float(part.double().sum()) for name, part in scores.items()}
    return TableScores(float(one.value()), without, sums, columns)


def _columns(
    trained: TrainedModel, case: Case, name: str, gradient_C: NDArray[np.float64]
) -> dict[str, float]:
    """Column → contribution; components are linear in the columns behind them, and are taken apart into these."""
    transform = trained.targets.tables[name]
    values = case.omics[name]
    names = columns_of(len(values), case.columns.get(name))
    if isinstance(transform, ComponentTransform):
        x_K = transform.before.apply(values, names, case.cohort).astype(np.float64) - transform.centre
        scores = x_K * (transform.axes.astype(np.float64) @ gradient_C) / transform.unit
        return dict(zip(transform.before.names, scores.tolist(), strict=True))
    scores = transform.apply(values, names, case.cohort).astype(np.float64) * gradient_C
    return dict(zip(transform.names, scores.tolist(), strict=True))


def _mean_columns(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Column → mean over the models; a model that does not read a column gives it 0."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) / len(parts) for name in names}


def summarise(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean, mean size and standard deviation of ``score`` over patients, the largest sizes first within a task."""
    groups = rows.groupby(list(by), sort=True)["score"]
    table = groups.agg(n="size", mean="mean", mean_abs=lambda s: s.abs().mean(), sd="std").reset_index()
    keys = [key for key in by if key != by[-1]]
    order = [*keys, "mean_abs", by[-1]]
    return table.sort_values(order, ascending=[*([True] * len(keys)), False, True], ignore_index=True)


def by_pathway(rows: pd.DataFrame, sets: Mapping[str, Sequence[str]], by: Sequence[str]) -> pd.DataFrame:
    """Sums of the scores of the genes of each set; ``genes`` counts those that the model reads.

    Parameters
    ----------
    rows
        Columns ``patient``, ``gene``, ``score`` and those of ``by``.
    sets
        Pathway → genes.
    by
        What is summarised apart.
    """
    parts = []
    for name, genes in sets.items():
        own = rows[rows["gene"].isin(set(genes))]
        if len(own):
            sums = own.groupby(["patient", *by], sort=True).agg(
                score=("score", "sum"), genes=("gene", "nunique")
            )
            parts.append(sums.reset_index().assign(pathway=name))
    if not parts:
        return pd.DataFrame(columns=[*by, "pathway", "genes", "n", "mean", "mean_abs", "sd"])
    together = pd.concat(parts, ignore_index=True)
    table = summarise(together, [*by, "pathway"])
    counts = together.groupby([*by, "pathway"])["genes"].max().rename("genes").reset_index()
    return table.merge(counts, on=[*by, "pathway"])[[*by, "pathway", "genes", "n", "mean", "mean_abs", "sd"]]
