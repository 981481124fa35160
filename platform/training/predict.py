"""Outputs of a model for cases, and the rows of the predictions table.

Cases are predicted with all their tiles and in full precision: small ones together, large ones one at a time. The other
patients that are predicted, and padding, change a patient's score by the rounding of sums alone, some 1e-7 of its size.
The exception is an external cohort of a study that standardises a table per cohort: it is standardised on the patients
that are predicted together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.models.base import reads_states
from equipoise.models.hazards import hazard_risk
from equipoise.platform.errors import DataError
from equipoise.platform.training.batches import CaseList, collate
from equipoise.platform.training.distributed import WorkerGroup, shard
from equipoise.platform.training.statistics import Label, is_missing
from equipoise.platform.training.targets import Targets, TaskTarget

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.cohorts.cases import Case

Role = Literal["val", "test", "external"]

#: Most tiles, padding included, and most numbers of cases that are predicted together.
MAX_TILES, MAX_NUMBERS = 2**12, 2**18


class CaseInfo(NamedTuple):
    """Patient, cohort, site and labels of a case, without its tiles."""

    patient: str
    cohort: str
    site: str
    labels: Mapping[str, Label]


@dataclass(frozen=True)
class Outputs:
    """Outputs for V cases, on the CPU, and the targets to compare them with.

    ``outputs`` are task → ``[V, K]``; ``targets`` and ``label_mask`` as in
    :class:`~equipoise.models.batch.CaseBatch`; ``cohort`` is ``[V]``, see :func:`cohort_indices`; ``latents`` are
    task → ``[V, dim]``, empty unless asked for.
    """

    infos: tuple[CaseInfo, ...]
    outputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    label_mask: dict[str, Tensor]
    cohort: Tensor
    latents: dict[str, Tensor] = field(default_factory=dict)


@torch.inference_mode()
def run_model(
    model: nn.Module, targets: Targets, cases: CaseList | Sequence[Case], *, keep_latents: bool = False
) -> Outputs:
    """Outputs of the model for every case, in order; the mode of the model (training or evaluation) is restored.

    ``keep_latents`` also keeps the inputs of the heads, for models that have ``latents`` and ``outputs``.

    Raises
    ------
    DataError
        If there is no case, or one has other widths or columns than the training cases.
    """
    if len(cases) == 0:
        raise DataError("there is no patient to predict")
    device = next(model.parameters()).device
    training = model.training
    infos, seen, read = [], [], []
    split_model: Any = model  # nn.Module does not declare latents and outputs
    split = keep_latents and hasattr(model, "latents") and hasattr(model, "outputs")
    model.eval()
    try:
        for group in small_groups(cases, targets):
            infos += [CaseInfo(case.patient, case.cohort, case.site, case.targets) for case in group]
            batch = collate(group, targets, states=reads_states(model))
            if split:
                latents = split_model.latents(batch.to(device))
                read.append({name: latent.float().cpu() for name, latent in latents.items()})
            raw = split_model.outputs(latents) if split else model(batch.to(device))
            outputs = {name: out.float().cpu() for name, out in raw.items()}
            seen.append((outputs, batch.targets, batch.label_mask))
    finally:
        model.train(training)
    names = [head.name for head in targets.heads]
    outputs, truth, labelled = (
        {name: torch.cat([row[name] for row in part]) for name in names} for part in zip(*seen, strict=True)
    )
    latents = {name: torch.cat([row[name] for row in read]) for name in names} if split else {}
    return Outputs(tuple(infos), outputs, truth, labelled, cohort_indices(infos, targets), latents)


def small_groups(cases: Iterable[Case], targets: Targets) -> Iterator[list[Case]]:
    """Consecutive cases in groups that cost little to compute at once: few numbers, and bags of similar length.

    A large bag is a group of its own: it keeps a processor busy, and padding others to it would be waste.
    """
    columns = sum(targets.shape.omics.values())
    group: list[Case] = []
    shortest = longest = 0
    for case in cases:
        tiles = len(case.bag)
        low, high = (min(shortest, tiles), max(longest, tiles)) if group else (tiles, tiles)
        padded = (len(group) + 1) * high
        numbers = padded * targets.shape.features + (len(group) + 1) * columns
        if group and (padded > MAX_TILES or numbers > MAX_NUMBERS or high > 2 * low):
            yield group
            group, low, high = [], tiles, tiles
        group.append(case)
        shortest, longest = low, high
    if group:
        yield group


def cohort_indices(infos: Sequence[CaseInfo], targets: Targets) -> Tensor:
    """``[V]`` indices of the cohorts of cases; those that are no training cohorts have negative ones of their own."""
    others = sorted({info.cohort for info in infos} - set(targets.cohorts))
    index = {name: k for k, name in enumerate(targets.cohorts)} | {
        name: -1 - k for k, name in enumerate(others)
    }
    return torch.tensor([index[info.cohort] for info in infos], dtype=torch.int64)


def run_distributed(model: nn.Module, targets: Targets, cases: CaseList, group: WorkerGroup) -> Outputs:
    """:func:`run_model`, with the cases sharded over the workers; every worker gets the whole result."""
    if group.world == 1:
        return run_model(model, targets, cases)
    local_cases = CaseList(cases.source, tuple(shard(cases.patients, group)))
    shares = group.gather_objects(run_model(model, targets, local_cases) if len(local_cases) else None)
    gathered = [part for part in shares if part is not None]
    # The shards are concatenated; restore the order of the cases.
    order = np.argsort(
        np.concatenate([np.arange(len(cases))[k :: group.world] for k in range(len(gathered))])
    )
    together = joined_outputs(gathered, targets)
    infos = tuple(together.infos[i] for i in order)
    outputs, truth, labelled = (
        {name: rows[order] for name, rows in part.items()}
        for part in (together.outputs, together.targets, together.label_mask)
    )
    return Outputs(infos, outputs, truth, labelled, together.cohort[order])


def joined_outputs(parts: Sequence[Outputs], targets: Targets | None = None) -> Outputs:
    """Outputs of several parts of the cases, or of several models, one behind the other.

    ``targets`` number the cohorts again, where those that are no training cohorts may differ from part to part.
    """
    outputs, truth, labelled = (
        {name: torch.cat([getattr(part, kind)[name] for part in parts]) for name in parts[0].outputs}
        for kind in ("outputs", "targets", "label_mask")
    )
    infos = tuple(info for part in parts for info in part.infos)
    cohort = torch.cat([part.cohort for part in parts]) if targets is None else cohort_indices(infos, targets)
    return Outputs(infos, outputs, truth, labelled, cohort)


def task_scores(task: TaskTarget, out_VK: Tensor) -> np.ndarray:
    """Scores for the predictions table, ``[V, classes]`` or ``[V, 1]``, float64.

    Probabilities of the named classes, values in the units of the label table, or, for survival, a risk
    (higher is worse): the log risk of Cox's model, minus the sum of the chances of survival for hazards, minus the
    expected interval for a head on text.
    """
    out = out_VK.double()
    if task.head.kind == "binary":
        return out.softmax(dim=1)[:, 1:].numpy()
    if task.head.kind == "multiclass":
        return out.softmax(dim=1).numpy()
    if task.head.kind == "regression":
        return np.asarray(task.decode(out.numpy()), float)
    if task.head.text is not None:
        chances = out.softmax(dim=1).numpy()
        return -(chances @ np.arange(task.head.outputs))[:, None]
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
        A trained model and the targets fitted on its training patients.
    cases
        Patients to predict; known labels are copied to the table, in original units.
    role
        Role of these patients for the model.
    repeat, fold
        Fold of the model.

    Returns
    -------
    The predictions, and the latents of the same patients
    (:mod:`equipoise.platform.evaluation.latents`); no rows if the model does not return latents.
    """
    import pandas as pd

    from equipoise.platform.evaluation.latents import LATENT_COLUMNS
    from equipoise.platform.evaluation.predictions import validate

    targets = targets.with_cohorts_of(cases)
    result = run_model(model, targets, cases, keep_latents=True)
    vectors = [
        (info.patient, repeat, fold, role, task, latent.numpy())
        for task, latents in result.latents.items()
        for info, latent in zip(result.infos, latents, strict=True)
    ]
    rows = prediction_rows(targets, result, role=role, repeat=repeat, fold=fold)
    predictions = validate(rows, where=f"predictions of fold {repeat}-{fold}, {role}")
    return predictions, pd.DataFrame(vectors, columns=list(LATENT_COLUMNS))


def prediction_rows(targets: Targets, result: Outputs, *, role: Role, repeat: int, fold: int) -> pd.DataFrame:
    """Outputs as rows of the predictions table, not yet validated; parameters as in :func:`predict_with_latents`."""
    import pandas as pd

    rows = []
    for task in targets.tasks:
        name = task.head.name
        scores = task_scores(task, result.outputs[name])
        for info, score in zip(result.infos, scores, strict=True):
            key: dict[str, object] = {"patient": info.patient, "cohort": info.cohort, "site": info.site}
            key |= {"repeat": repeat, "fold": fold, "role": role, "task": name}
            rows += [key | row for row in _task_rows(task, score, info.labels.get(name))]
    return pd.DataFrame(rows)


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
