r"""Whether the encoder's features of patients are near by class or by centre, before any training.

The vector of a patient is the mean of its tiles. The robustness index with its interval is that of
:mod:`~equipoise.platform.evaluation.robustness`; the package ``croma`` (an extra) adds what it defines:

- **MaRI**, the index with neighbours weighted by their distance, and **CRoMa**, the median over patients of
  :math:`(d_{OS} - d_{SO}) / (d_{OS} + d_{SO})` with the mean of its worst tenth (Grisi et al., arXiv 2607.25497);
- **APD**, the average performance drop of PathoROB (Kömen et al., arXiv 2507.17845): how much balanced accuracy a
  logistic probe on the features loses, relative to balanced training, when class and centre go together more and more
  in its training patients, while its test patients stay balanced. 0 is no loss, −0.2 a fifth of the accuracy.

APD needs two centres that both have patients of two classes: those with the largest smallest cell are taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from equipoise.platform.evaluation.csv_tables import read_table, write_rows
from equipoise.platform.evaluation.robustness import ROBUSTNESS_COLUMNS, labelled_people, robustness

Floats = NDArray[np.float64]

FEATURE_COLUMNS = (*ROBUSTNESS_COLUMNS, "mari", "croma", "croma_tail", "apd", "apd_cells")
_ADDED = ("mari", "croma", "croma_tail", "apd")
_TEXTS = ("task", "centre", "note", "apd_cells")

#: Shares by which class and centre go together beyond balance, the balanced training first.
BIASES = (0.0, 1 / 3, 2 / 3, 1.0)
#: Drawings of the training patients, and the share of validation patients that choose the probe's penalty.
DRAWINGS, VALIDATION = 5, 0.25
#: Principal components of the features that the probe of APD reads, and most patients of a cell that count.
COMPONENTS, MOST_OF_CELL = 50, 60
#: Fewest patients in each of the four cells of two centres and two classes.
FEWEST = 12
NOT_INSTALLED = "MaRI, CRoMa and APD need the package croma; fix: pip install 'equipoise[croma]'"


class Cells(NamedTuple):
    """Patients of two centres and two classes."""

    centres: tuple[Any, Any]
    classes: tuple[int, int]
    smallest: int


def feature_robustness(
    predictions: pd.DataFrame, features: Mapping[str, Floats], confidence: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Robustness of features for every classification task; columns ``FEATURE_COLUMNS``.

    Parameters
    ----------
    predictions
        The predictions table: labels, cohorts and sites of patients.
    features
        Patient → ``[D]`` mean of its tiles; patients without slides are absent.
    confidence
        Level of the interval of the index.
    seed
        Of the drawings of APD.

    Returns
    -------
    A row per task and kind of centre; what could not be computed is NaN, with the reason in ``note``.
    """
    rows = []
    for task, of_task in predictions.groupby("task", sort=True):
        names = sorted(set(of_task["patient"]) & set(features))
        if len(names) < 2 or (of_task["class"] == "").all():
            continue
        vectors = pd.DataFrame(
            {"patient": names, "repeat": 0, "fold": 0, "role": "external", "task": task,
             "latent": [np.asarray(features[name], float) for name in names]}
        )  # fmt: skip
        people = labelled_people(of_task)
        for row in robustness(of_task, vectors, confidence).to_dict("records"):
            known = people.loc[[name for name in names if name in people.index]]
            matrix = np.stack([np.asarray(features[name], float) for name in known.index])
            rows.append({**row, **_with_croma(matrix, known, str(row["centre"]), str(row["note"]), seed)})
    table = pd.DataFrame(rows, columns=list(FEATURE_COLUMNS))
    return table.astype({name: float for name in FEATURE_COLUMNS if name not in _TEXTS})


def _with_croma(matrix: Floats, people: pd.DataFrame, centre: str, note: str, seed: int) -> dict[str, Any]:
    result: dict[str, Any] = dict.fromkeys(_ADDED, float("nan")) | {"apd_cells": "", "note": note}
    try:
        from croma import MaRI
    except ModuleNotFoundError:
        return result | {"note": "; ".join(filter(None, [note, NOT_INSTALLED]))}
    notes = [note] if note else []
    manifest = pd.DataFrame(
        {"sample_id": people.index, "group_id": people.index, "image_path": people.index,
         "label": people["label"].astype(str).to_numpy(), "centre": people[centre].astype(str).to_numpy()}
    )  # fmt: skip
    candidates = [k for k in (5, 11, 21) if k < len(people)]
    if candidates:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its support, which stands in the table
            found = MaRI.compute(matrix, manifest, k_candidates=candidates, confounder_column="centre")
        result["mari"] = float(found.value)
    margin = _margin(matrix, manifest)
    if isinstance(margin, str):
        notes.append(margin)
    else:
        result["croma"], result["croma_tail"] = margin
    cells = best_cells(people["label"].to_numpy(), people[centre].to_numpy())
    if cells is None or cells.smallest < FEWEST:
        most = "no two centres share two classes" if cells is None else f"{cells.smallest} patients in a cell"
        notes.append(f"no APD: {most}, {FEWEST} are needed")
    else:
        result["apd"] = performance_drop(
            matrix, people["label"].to_numpy(), people[centre].to_numpy(), cells, seed
        )
        result["apd_cells"] = " and ".join(str(name) for name in cells.centres)
    return result | {"note": "; ".join(notes)}


def _margin(matrix: Floats, manifest: pd.DataFrame) -> tuple[float, float] | str:
    """CRoMa and the mean of its worst tenth, or why there is none: every patient needs neighbours of both kinds."""
    from croma import CRoMa

    try:
        found = CRoMa.compute(matrix, manifest, confounder_column="centre")
    except RuntimeError:
        return "no CRoMa: a patient has too few others of its class elsewhere, or of another class here"
    return float(found.value), float(found.ltm_alpha)


def best_cells(label: NDArray[np.int64], centre: NDArray[Any]) -> Cells | None:
    """The two centres and two classes whose smallest cell is the largest; None without patients in all four."""
    counts = pd.crosstab(pd.Series(centre), pd.Series(label))
    found = []
    for centres in combinations(counts.index, 2):
        for classes in combinations(counts.columns, 2):
            smallest = int(counts.loc[list(centres), list(classes)].to_numpy().min())
            if smallest:
                found.append(Cells(centres, (int(classes[0]), int(classes[1])), smallest))
    return max(found, key=lambda cells: cells.smallest, default=None)


def schedule(smallest: int) -> list[tuple[list[tuple[int, int, int]], int]]:
    """Training patients of every cell (centre, class) at each of :data:`BIASES`, as ``croma.probe_sweep`` takes them.

    Each centre and each class keeps its number of training patients; only their combination changes. About a quarter of
    the smallest cell is left to test.
    """
    balanced = int((smallest - 3) / (2 * (1 + VALIDATION) * 1.15))
    plans = []
    for bias in BIASES:
        together, apart = (round(balanced * (1 + sign * bias)) for sign in (1, -1))
        plans.append(([(0, 0, together), (0, 1, apart), (1, 0, apart), (1, 1, together)], 2 * balanced))
    return plans


def performance_drop(
    matrix: Floats, label: NDArray[np.int64], centre: NDArray[Any], cells: Cells, seed: int = 0
) -> float:
    """Average performance drop over the biases, in the patients of four cells."""
    from croma import apd, probe_sweep

    inside = np.isin(label, cells.classes) & np.isin(centre, list(cells.centres))
    chosen = matrix[inside]
    scale = chosen.std(axis=0)
    chosen = (chosen - chosen.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    left, size, _ = np.linalg.svd(chosen, full_matrices=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the probe's solver: PathoROB stops it after 100 iterations, too
        accuracies = probe_sweep(
            (left * size)[:, :COMPONENTS],
            (centre[inside] == cells.centres[1]).astype(int),
            (label[inside] == cells.classes[1]).astype(int),
            schedule=schedule(min(cells.smallest, MOST_OF_CELL)),
            iterations=DRAWINGS,
            seed=seed,
            validation_fraction=VALIDATION,
        )
    return float(apd(accuracies))


def write_feature_robustness(table: pd.DataFrame, folder: Path) -> None:
    """Write ``feature_robustness.csv`` below ``folder``; an earlier one goes where there is no row."""
    write_rows(table, folder / "feature_robustness.csv")


def read_feature_robustness(path: Path) -> pd.DataFrame:
    """Read ``feature_robustness.csv``; raises DataError if columns are missing."""
    numbers = [name for name in FEATURE_COLUMNS if name not in _TEXTS]
    table = read_table(path, "robustness of features", FEATURE_COLUMNS, _TEXTS)
    return table.astype(dict.fromkeys(numbers, float))


def mean_features(sources: Sequence[Mapping[str, Any]]) -> dict[str, Floats]:
    """Patient → mean of its tiles, of patients who have slides; sources yield cases whose bag is their mean tile."""
    return {
        patient: np.asarray(case.bag[0], float)
        for source in sources
        for patient in source
        if len((case := source[patient]).bag)
    }
