"""Outputs of a model for cases, and the rows of the predictions table they become.

Cases are shown one at a time, with all their tiles and in full precision: a patient's score never depends on
who else is predicted, and never on padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.platform.errors import DataError
from equipoise.platform.training.batches import CaseList, collate
from equipoise.platform.training.targets import Label, Targets, TaskTarget, is_missing

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.cases import Case

Role = Literal["val", "test", "external"]


class Person(NamedTuple):
    """Who a case is about, without the tiles."""

    patient: str
    cohort: str
    site: str
    labels: Mapping[str, Label]


@dataclass(frozen=True)
class Outputs:
    """Outputs for V cases, on the CPU, and what to compare them with.

    ``outputs`` are task → ``[V, K]``; ``targets`` and ``label_mask`` as in
    :class:`~equipoise.models.batch.CaseBatch`.
    """

    people: tuple[Person, ...]
    outputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    label_mask: dict[str, Tensor]


@torch.inference_mode()
def run_model(model: nn.Module, targets: Targets, cases: CaseList | Sequence[Case]) -> Outputs:
    """Outputs of the model for every case, in order; the model is left in the mode it was in.

    Raises
    ------
    DataError
        If there is no case, or one does not fit what the model was prepared for.
    """
    if len(cases) == 0:
        raise DataError("there is no patient to predict")
    device = next(model.parameters()).device
    training = model.training
    people, seen = [], []
    model.eval()
    try:
        for case in cases:
            people.append(Person(case.patient, case.cohort, case.site, case.targets))
            batch = collate([case], targets)
            outputs = {name: out.float().cpu() for name, out in model(batch.to(device)).items()}
            seen.append((outputs, batch.targets, batch.label_mask))
    finally:
        model.train(training)
    names = [head.name for head in targets.heads]
    joined = (
        {name: torch.cat([row[name] for row in part]) for name in names} for part in zip(*seen, strict=True)
    )
    return Outputs(tuple(people), *joined)


def task_scores(task: TaskTarget, out_VK: Tensor) -> np.ndarray:
    """What the predictions table reports, ``[V, classes]`` or ``[V, 1]``, float64.

    Probabilities of the named classes, values in the units of the label table, or log risks (higher is
    worse).
    """
    out = out_VK.double()
    if task.head.kind == "binary":
        return out.softmax(dim=1)[:, 1:].numpy()
    if task.head.kind == "multiclass":
        return out.softmax(dim=1).numpy()
    if task.head.kind == "regression":
        return np.asarray(task.decode(out.numpy()), float)
    return out.numpy()


def predict(
    model: nn.Module,
    targets: Targets,
    cases: CaseList | Sequence[Case],
    *,
    role: Role,
    repeat: int,
    fold: int,
) -> pd.DataFrame:
    """Rows of the predictions table (:mod:`equipoise.platform.evaluation.predictions`).

    Parameters
    ----------
    model, targets
        A trained model and what its training patients fixed.
    cases
        Whom to predict; labels are copied to the table where there are any, in original units.
    role
        What these patients are to the model.
    repeat, fold
        Which model it is.
    """
    import pandas as pd

    from equipoise.platform.evaluation.predictions import validate

    result = run_model(model, targets, cases)
    rows = []
    for task in targets.tasks:
        name = task.head.name
        scores = task_scores(task, result.outputs[name])
        for person, score in zip(result.people, scores, strict=True):
            key: dict[str, object] = {"patient": person.patient, "cohort": person.cohort, "site": person.site}
            key |= {"repeat": repeat, "fold": fold, "role": role, "task": name}
            rows += [key | row for row in _task_rows(task, score, person.labels.get(name))]
    return validate(pd.DataFrame(rows), where=f"predictions of fold {repeat}-{fold}, {role}")


def _task_rows(task: TaskTarget, score_K: np.ndarray, label: Label) -> list[dict[str, object]]:
    missing = is_missing(label)
    nothing = {"target": np.nan, "time": np.nan, "event": np.nan}
    if task.head.kind == "survival":
        days, event = (np.nan, np.nan) if missing else label  # type: ignore[misc]
        return [nothing | {"class": "", "score": score_K[0], "time": days, "event": event}]
    if task.head.kind == "regression":
        return [nothing | {"class": "", "score": score_K[0], "target": np.nan if missing else label}]
    first = 1 if task.head.kind == "binary" else 0  # a binary task names its positive class only
    return [
        nothing
        | {"class": name, "score": score_K[k], "target": np.nan if missing else float(label == k + first)}
        for k, name in enumerate(task.classes)
    ]
