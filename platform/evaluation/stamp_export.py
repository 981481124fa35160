"""Export of the predictions table with the column names of STAMP 2, for scripts that read ``patient-preds.csv``.

Layout as in STAMP's ``modeling/deploy.py`` (MIT, state of 2026): classification ``PATIENT, <task>, pred,
<task>_<class>…, loss``; regression ``PATIENT, <task>, pred, loss``; survival ``PATIENT, pred_score, time,
event``. One table per task, role and fold; external cohorts also as the mean of the folds (log risks
standardised as in the metrics). Two differences
are intended: our ``loss`` of a classification is the negative log likelihood of the true class (STAMP applies a
softmax to the probabilities once more), and rows stay in patient order (STAMP sorts by loss).
"""

from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.platform.evaluation.predictions import kind_of, validate
from equipoise.platform.evaluation.samples import external_ensemble


def stamp_tables(
    predictions: pd.DataFrame, negative: dict[str, str] | None = None
) -> dict[str, pd.DataFrame]:
    """Tables by relative path without extension, ``<task>/<role>-<repeat>-<fold>``.

    Parameters
    ----------
    predictions
        The predictions table.
    negative
        Name of the negative class of binary tasks; the table holds only the positive one. Default ``not
        <positive>``.
    """
    table = validate(predictions)
    tables = {}
    # Unlabelled external patients alone do not show whether a task is survival or regression; the whole task does.
    kinds = {task: kind_of(rows) for task, rows in table.groupby("task")}
    of_task = dict(list(table.groupby("task")))
    for (task, role), rows in table.groupby(["task", "role"], sort=True):
        kind, other = kinds[task], (negative or {}).get(str(task))
        for (repeat, fold), part in rows.groupby(["repeat", "fold"], sort=True):
            tables[f"{task}/{role}-{repeat}-{fold}"] = _wide(str(task), kind, part, other)
        if role == "external":
            tables[f"{task}/external-mean"] = _wide(str(task), kind, external_ensemble(of_task[task]), other)
    return tables


def export_stamp(
    predictions: pd.DataFrame, folder: Path, negative: dict[str, str] | None = None
) -> list[Path]:
    """Write the tables as CSV below ``folder``; returns the files."""
    from equipoise.datasets.atomic_io import atomic_path

    written = []
    for name, wide in stamp_tables(predictions, negative).items():
        path = folder / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            wide.to_csv(temporary, index=False)
        written.append(path)
    return written


def _wide(task: str, kind: str, rows: pd.DataFrame, negative: str | None) -> pd.DataFrame:
    if kind == "survival":
        return pd.DataFrame(
            {
                "PATIENT": rows["patient"].to_numpy(),
                "pred_score": rows["score"].to_numpy(),
                "time": rows["time"].to_numpy(),
                "event": rows["event"].to_numpy(),
            }
        )
    if kind == "regression":
        score, target = rows["score"].to_numpy(), rows["target"].to_numpy()
        loss = np.abs(score - target)
        return pd.DataFrame(
            {"PATIENT": rows["patient"].to_numpy(), task: target, "pred": score, "loss": loss}
        )
    return _wide_classes(task, rows, negative)


def _wide_classes(task: str, rows: pd.DataFrame, negative: str | None) -> pd.DataFrame:
    score = rows.pivot(index="patient", columns="class", values="score")
    target = rows.pivot(index="patient", columns="class", values="target")
    if score.shape[1] == 1:
        positive = str(score.columns[0])
        other = negative or f"not {positive}"
        score, target = (
            score.assign(**{other: 1 - score[positive]}),
            target.assign(**{other: 1 - target[positive]}),
        )
    names = score.columns.to_numpy()
    known = target.notna().all(axis=1).to_numpy()
    truth = np.where(known, names[np.nan_to_num(target.to_numpy()).argmax(1)], None)
    likelihood = (score.to_numpy() * np.nan_to_num(target.to_numpy())).sum(1)
    with np.errstate(divide="ignore"):
        loss = np.where(known, -np.log(likelihood), np.nan)
    wide = pd.DataFrame(
        {"PATIENT": score.index.to_numpy(), task: truth, "pred": names[score.to_numpy().argmax(1)]}
    )
    for name in names:
        wide[f"{task}_{name}"] = score[name].to_numpy()
    return wide.assign(loss=loss)
