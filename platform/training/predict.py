"""Outputs of a model for cases, and the rows of the predictions table they become.

Cases are shown one at a time, with all their tiles and in full precision: a patient's score never depends on
who else is predicted, and never on padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.models.hazards import hazard_risk
from equipoise.platform.errors import DataError
from equipoise.platform.training.batches import CaseList, collate
from equipoise.platform.training.distributed import Group, share
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
    :class:`~equipoise.models.batch.CaseBatch`; ``latents`` are task → ``[V, dim]``, empty unless asked for.
    """

    people: tuple[Person, ...]
    outputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    label_mask: dict[str, Tensor]
    latents: dict[str, Tensor] = field(default_factory=dict)


@torch.inference_mode()
def run_model(
    model: nn.Module, targets: Targets, cases: CaseList | Sequence[Case], *, keep_latents: bool = False
) -> Outputs:
    """Outputs of the model for every case, in order; the model is left in the mode it was in.

    ``keep_latents`` keeps what the heads read too, of models that have ``latents`` and ``outputs``.

    Raises
    ------
    DataError
        If there is no case, or one does not fit what the model was prepared for.
    """
    if len(cases) == 0:
        raise DataError("there is no patient to predict")
    device = next(model.parameters()).device
    training = model.training
    people, seen, read = [], [], []
    parts: Any = model  # a module lets nobody know what methods it has
    split = keep_latents and hasattr(model, "latents") and hasattr(model, "outputs")
    model.eval()
    try:
        for case in cases:
            people.append(Person(case.patient, case.cohort, case.site, case.targets))
            batch = collate([case], targets)
            if split:
                latents = parts.latents(batch.to(device))
                read.append({name: latent.float().cpu() for name, latent in latents.items()})
            raw = parts.outputs(latents) if split else model(batch.to(device))
            outputs = {name: out.float().cpu() for name, out in raw.items()}
            seen.append((outputs, batch.targets, batch.label_mask))
    finally:
        model.train(training)
    names = [head.name for head in targets.heads]
    outputs, truth, labelled = (
        {name: torch.cat([row[name] for row in part]) for name in names} for part in zip(*seen, strict=True)
    )
    latents = {name: torch.cat([row[name] for row in read]) for name in names} if split else {}
    return Outputs(tuple(people), outputs, truth, labelled, latents)


def run_together(model: nn.Module, targets: Targets, cases: CaseList, group: Group) -> Outputs:
    """:func:`run_model` with every worker taking its share; the result is the same at all of them."""
    if group.world == 1:
        return run_model(model, targets, cases)
    own = CaseList(cases.source, tuple(share(cases.patients, group)))
    shares = group.exchange(run_model(model, targets, own) if len(own) else None)
    given = [part for part in shares if part is not None]
    # Workers' shares stand one behind the other; cases go back to where they were.
    place = np.argsort(np.concatenate([np.arange(len(cases))[k :: group.world] for k in range(len(given))]))
    joined = (
        {name: torch.cat([getattr(part, kind)[name] for part in given])[place] for name in given[0].outputs}
        for kind in ("outputs", "targets", "label_mask")
    )
    people = [person for part in given for person in part.people]
    return Outputs(tuple(people[i] for i in place), *joined)


def task_scores(task: TaskTarget, out_VK: Tensor) -> np.ndarray:
    """What the predictions table reports, ``[V, classes]`` or ``[V, 1]``, float64.

    Probabilities of the named classes, values in the units of the label table, or, for survival, a risk
    (higher is worse): the log risk of Cox's model, minus the sum of the chances of survival for hazards.
    """
    out = out_VK.double()
    if task.head.kind == "binary":
        return out.softmax(dim=1)[:, 1:].numpy()
    if task.head.kind == "multiclass":
        return out.softmax(dim=1).numpy()
    if task.head.kind == "regression":
        return np.asarray(task.decode(out.numpy()), float)
    if task.head.edges is not None:
        return hazard_risk(out).numpy()
    return out.numpy()


def predict_with_latents(
    model: nn.Module,
    targets: Targets,
    cases: CaseList | Sequence[Case],
    *,
    role: Role,
    repeat: int,
    fold: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
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

    Returns
    -------
    The predictions, and the latents of the same patients
    (:mod:`equipoise.platform.evaluation.latents`); no row of these if the model does not give them.
    """
    import pandas as pd

    from equipoise.platform.evaluation.latents import LATENT_COLUMNS
    from equipoise.platform.evaluation.predictions import validate

    result = run_model(model, targets, cases, keep_latents=True)
    rows = []
    for task in targets.tasks:
        name = task.head.name
        scores = task_scores(task, result.outputs[name])
        for person, score in zip(result.people, scores, strict=True):
            key: dict[str, object] = {"patient": person.patient, "cohort": person.cohort, "site": person.site}
            key |= {"repeat": repeat, "fold": fold, "role": role, "task": name}
            rows += [key | row for row in _task_rows(task, score, person.labels.get(name))]
    vectors = [
        (person.patient, repeat, fold, role, task, latent.numpy())
        for task, latents in result.latents.items()
        for person, latent in zip(result.people, latents, strict=True)
    ]
    predictions = validate(pd.DataFrame(rows), where=f"predictions of fold {repeat}-{fold}, {role}")
    return predictions, pd.DataFrame(vectors, columns=list(LATENT_COLUMNS))


def predict(
    model: nn.Module,
    targets: Targets,
    cases: CaseList | Sequence[Case],
    *,
    role: Role,
    repeat: int,
    fold: int,
) -> pd.DataFrame:
    """The predictions of :func:`predict_with_latents` alone."""
    return predict_with_latents(model, targets, cases, role=role, repeat=repeat, fold=fold)[0]


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
