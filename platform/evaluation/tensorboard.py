"""Predictions in TensorBoard: precision-recall curves, and the vectors that heads read in the projector.

One folder ``tb/evaluation/<repeat>-<fold>`` per fold, because neither scores nor vectors of the models of different
folds are comparable. Curves are named ``validation/<task>`` and ``test/<task>``, in a multiclass task with the class
behind it. The projector has a tab per task; a point is a patient, without a name: fold, part, cohort and label (of a
regression its third, of a survival task whether there was an event) are what is shown, in a random order. Vectors are
as sensitive as the labels beside them: the folder is for whoever may see the run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from equipoise.platform.evaluation.predictions import kind_of, labelled

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

#: Most patients and numbers of a vector in one tab of the projector, so that a page of it stays below a megabyte;
#: longer vectors are shown by their first principal components.
MOST_PATIENTS, MOST_NUMBERS = 1000, 64
METADATA = ("label", "cohort", "part", "fold")

_PARTS = {"val": "validation", "test": "test", "external": "external"}
_THIRDS = ("low", "middle", "high")


def write_evaluation_events(
    run: Path, predictions: pd.DataFrame, latents: pd.DataFrame | None, seed: int = 0
) -> int:
    """Write ``tb/evaluation`` of a run folder in place of an earlier one; returns the number of curves and tabs.

    Parameters
    ----------
    run
        The run folder.
    predictions
        The predictions table.
    latents
        The latents table of the same folds; None without one.
    seed
        Of the order of the patients, and of who is shown where there are many.
    """
    from torch.utils.tensorboard import SummaryWriter

    # Not below tb/: TensorBoard would list incomplete files and keep them.
    target, temporary = run / "tb" / "evaluation", run / "evaluation" / ".tensorboard"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    written = 0
    for (repeat, fold), rows in predictions.groupby(["repeat", "fold"], sort=True):
        vectors = None
        if latents is not None:
            vectors = latents[(latents["repeat"] == repeat) & (latents["fold"] == fold)]
        with SummaryWriter(str(temporary / f"{repeat}-{fold}")) as writer:
            written += _curves(writer, rows)
            if vectors is not None and len(vectors):
                written += _tabs(writer, rows, vectors, f"{repeat}-{fold}", seed)
    if not written:
        shutil.rmtree(temporary, ignore_errors=True)
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.rename(target)
    return written


def _curves(writer: SummaryWriter, rows: pd.DataFrame) -> int:
    """Precision-recall curves of the classification tasks on validation and test patients."""
    count = 0
    known = rows[labelled(rows) & rows["role"].isin(["val", "test"])]
    for (role, task), of_task in known.groupby(["role", "task"], sort=True):
        kind = kind_of(of_task)
        if kind not in ("binary", "multiclass"):
            continue
        for name, part in of_task.groupby("class", sort=True):
            truth = part["target"].to_numpy()
            if len(np.unique(truth)) < 2:  # without both there is no curve
                continue
            tag = f"{_PARTS[str(role)]}/{task}" + (f"/{name}" if kind == "multiclass" else "")
            writer.add_pr_curve(tag, truth.astype(int), part["score"].to_numpy(float))
            count += 1
    return count


def _tabs(writer: SummaryWriter, rows: pd.DataFrame, vectors: pd.DataFrame, fold: str, seed: int) -> int:
    """Vectors of each task, with labels that do not name anybody."""
    count = 0
    for task, of_task in vectors.groupby("task", sort=True):
        predicted = rows[rows["task"] == task]
        shown = of_task.merge(_labels(predicted), on=["patient", "role"], how="inner")
        if len(shown) < 2:
            continue
        order = np.random.default_rng(seed).permutation(len(shown))[:MOST_PATIENTS]
        shown = shown.iloc[order]
        matrix = shorten(np.stack(shown["latent"].to_list()).astype(float))
        described = shown.assign(part=shown["role"].map(_PARTS), fold=fold)[list(METADATA)].astype(str)
        writer.add_embedding(
            np.round(matrix, 4), described.to_numpy().tolist(), metadata_header=list(METADATA), tag=str(task)
        )
        count += 1
    return count


def shorten(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[N, D]`` as they are, or their first :data:`MOST_NUMBERS` principal components where D is larger."""
    if vectors.shape[1] <= MOST_NUMBERS:
        return vectors
    centred = vectors - vectors.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    result: NDArray[np.float64] = (left * scale)[:, :MOST_NUMBERS]
    return result


def _labels(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns patient, role, cohort, label: what may stand beside a point."""
    kind = kind_of(rows)
    people = rows.drop_duplicates(["patient", "role"])[["patient", "role", "cohort"]]
    return people.assign(label=list(_label_texts(rows, people, kind)))


def _label_texts(rows: pd.DataFrame, people: pd.DataFrame, kind: str) -> Iterator[str]:
    if kind in ("binary", "multiclass"):
        name = rows.loc[rows["target"] == 1].drop_duplicates("patient").set_index("patient")["class"]
        known = set(rows.loc[labelled(rows), "patient"])
        for patient in people["patient"]:
            unnamed = f"not {rows['class'].iloc[0]}" if patient in known else "no label"
            yield str(name.get(patient, unnamed))
        return
    first = rows.drop_duplicates("patient").set_index("patient")
    if kind == "survival":
        for event in first["event"].reindex(people["patient"]):
            yield "no label" if event != event else "event" if event else "censored"
        return
    value = first["target"].reindex(people["patient"])
    cuts = np.nanquantile(first["target"], [1 / 3, 2 / 3]) if first["target"].notna().any() else []
    for number in value:
        yield "no label" if number != number else _THIRDS[int(np.searchsorted(cuts, number))]
