"""Training on the patients of a study, with its targets, losses and balancing and the steps of every other training.

Batches, losses, balancing and the optimiser's step are those of :mod:`equipoise.platform.training.step`.
"""

from __future__ import annotations

import io
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from equipoise.datasets.omics.fitting import columns_of
from equipoise.models.base import frozen_digests
from equipoise.models.losses import LossSums, TaskLosses
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.federation.clients.local_training import LocalJob, LocalOutcome
from equipoise.platform.federation.messages import ClientManifest
from equipoise.platform.federation.params import LocalParams
from equipoise.platform.federation.vector import SHARED
from equipoise.platform.registry import get
from equipoise.platform.training.batches import CaseList, draw_order
from equipoise.platform.training.build import build_balancer, pick_device
from equipoise.platform.training.distributed import SINGLE_WORKER
from equipoise.platform.training.modulation import balanced_heads
from equipoise.platform.training.params import BalancingParams, TrainingParams
from equipoise.platform.training.statistics import is_missing
from equipoise.platform.training.step import Epoch, TrainingState
from equipoise.platform.training.strata import draw_stratified_order, strata_of
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cases import Case

#: The modality of tile features, beside the names of tables.
WSI = "wsi"


@dataclass(frozen=True)
class ClientData:
    """Patients of a client.

    Parameters
    ----------
    train
        Training patients.
    val
        Inner validation patients, for balancing methods that learn weights from them.
    """

    train: CaseList
    val: CaseList | None = None


@dataclass(frozen=True)
class StudyJob:
    """A local training with what the study adds.

    Parameters
    ----------
    job
        The training.
    parts
        Model, losses, optimiser, balancer.
    data, targets, params
        Patients, targets and settings.
    size
        Patients per step.
    total_steps
        Of the client in the whole federation, where the number of rounds is known.
    strata
        Of the client's training patients, where ``training.order`` mixes them evenly.
    """

    job: LocalJob
    parts: TrainingState
    data: ClientData
    targets: Targets
    params: TrainingParams
    size: int
    total_steps: int | None = None
    strata: np.ndarray | None = None


class LocalSteps(Protocol):
    """Takes the steps of a local training; returns the number of passes, and the training losses."""

    def __call__(self, work: StudyJob) -> tuple[int, LossSums]: ...


class StudyTrainer:
    """Trains the model of a study on the patients of clients.

    Parameters
    ----------
    client_data
        Client → its patients.
    factory
        Makes a model; its initial weights are not used.
    targets
        Tasks, scalers, widths, the same at every client.
    local, training, balancing
        Settings.
    steps
        How the steps are taken: :func:`plain_steps`, or with private gradients.
    rounds
        Of the federation, for balancing methods that learn weights; None if it is not known.
    """

    def __init__(
        self,
        client_data: Mapping[str, ClientData],
        *,
        factory: Callable[[], nn.Module],
        targets: Targets,
        local: LocalParams,
        training: TrainingParams,
        balancing: BalancingParams,
        steps: LocalSteps,
        rounds: int | None = None,
    ) -> None:
        self.client_data, self.targets, self.local = dict(client_data), targets, local
        self.declared = self.client_data
        self.seen = targets  # what batches are made with
        if not targets.shape.features:  # tables alone fit in memory; bags stay in the store
            self.client_data = {c: with_transformed_tables(d, targets) for c, d in client_data.items()}
            identity = {name: IdentityTransform(table.names) for name, table in targets.tables.items()}
            self.seen = replace(targets, tables=identity)  # type: ignore[arg-type]
        self.device = pick_device(training.device)
        self.model = factory().to(self.device)
        self.tasks = tuple(head.name for head in targets.heads)
        self.losses = TaskLosses(targets.heads, targets.class_weights, ties=training.ties).to(self.device)
        self.training, self.balancing, self.steps, self.rounds = training, balancing, steps, rounds
        self.params = training.model_copy(update={"probe": False})
        self._strata_of: dict[str, np.ndarray] = {}

    def declare(self, client: str, groups: Sequence[str]) -> ClientManifest:
        """Counts of the client's patients."""
        cases = self.declared[client].train
        batch = batch_size(self.local, self.training, self.targets, len(cases))
        hides = bool(getattr(self.model, "hides_modalities", False))
        return declare(client, cases, self.targets, groups, batch=batch, hides_modalities=hides)

    def train(self, job: LocalJob) -> LocalOutcome:
        """Train on the client's patients."""
        data = self.client_data[job.client]
        heads = balanced_heads(self.model, self.targets.heads)
        balancer = build_balancer(self.balancing, self.model, heads)
        if job.memory:
            balancer.load_state_dict(torch.load(io.BytesIO(job.memory), weights_only=True))
        parts = TrainingState(self.model, self.losses, job.optimizer, balancer, self.device, SINGLE_WORKER)
        size = batch_size(self.local, self.training, self.targets, len(data.train))
        with job.hooked(self.device):
            total = self._total_steps(job, len(data.train), size)
            passes, losses = self.steps(
                StudyJob(job, parts, data, self.seen, self.params, size, total, self._strata(job.client))
            )
        frozen_digests(self.model)  # an error if training has changed what is frozen
        # Losses of tasks that branches of the model add stay at the client.
        rows = zip(self.tasks, losses.means().tolist(), losses.counts.tolist(), strict=False)
        return LocalOutcome(passes, {task: (mean, count) for task, mean, count in rows}, _state_of(balancer))

    def _strata(self, client: str) -> np.ndarray | None:
        """Strata of a client's training patients, read once."""
        if self.training.order != "stratified":
            return None
        if client not in self._strata_of:
            self._strata_of[client] = strata_of(self.declared[client].train, self.targets)
        return self._strata_of[client]

    def _total_steps(self, job: LocalJob, patients: int, size: int) -> int | None:
        """Steps of a client that takes part in every round."""
        if self.rounds is None:
            return None
        request = job.context.request
        return self.rounds * (request.steps or request.epochs * math.ceil(patients / size))


def plain_steps(work: StudyJob) -> tuple[int, LossSums]:
    """The given number of passes over the patients, or of steps."""
    context, weighting = work.job.context, work.parts.balancer.weighting
    epochs, steps = context.request.epochs, context.request.steps
    total: LossSums | None = None
    for passes in itertools.count(1):
        epoch = _pass(work, passes)
        seen = epoch.totals()
        total = seen if total is None else LossSums(total.sums + seen.sums, total.counts + seen.counts)
        over = passes == epochs if steps is None else context.steps == steps
        if steps is None or over:
            known = torch.where(total.counts > 0, total.means(), torch.nan)
            weighting.on_epoch_end(known.double().cpu())
        if over:
            return passes, total
        if steps is None:
            total = None
    raise AssertionError("unreachable")


def _pass(work: StudyJob, number: int) -> Epoch:
    """One pass over the patients, or the remaining steps."""
    job, data, context = work.job, work.data, work.job.context
    index = job.first_epoch + number - 1
    epoch = Epoch(
        work.parts,
        work.targets,
        data.train,
        data.val if data.val is not None else CaseList({}, ()),
        work.params,
        size=work.size,
        seed=job.seed,
        epoch=index,
        lr=context.request.lr,
        factors=job.loss_factors([head.name for head in work.parts.losses.heads]),
        total_steps=work.total_steps,
    )
    context.batch = lambda: epoch.batch
    steps = context.request.steps
    left = None if steps is None else steps - context.steps
    order = (
        draw_order(len(data.train), work.size, job.seed, index)
        if work.strata is None
        else draw_stratified_order(work.strata, work.size, job.seed, index)
    )
    for rows in itertools.islice(order, left):
        epoch.step(rows)
        context.steps += 1
    return epoch


def batch_size(local: LocalParams, training: TrainingParams, targets: Targets, count: int) -> int:
    """Patients per step of a client with ``count`` patients."""
    if local.batch == "auto":
        compared = any(head.compares_patients for head in targets.heads)
        if compared and not targets.shape.features and training.batch == "auto":
            return count
        return training.batch_for(targets.heads, count)
    return count if local.batch == "full" else local.batch


def declare(
    client: str,
    cases: CaseList,
    targets: Targets,
    groups: Iterable[str],
    *,
    batch: int = 1,
    hides_modalities: bool = False,
) -> ClientManifest:
    """Count a client's patients, reading one case at a time.

    A group that no patient of a site can train gets 0: a head without labels, the encoder of a modality that no
    labelled patient has, a Cox task without an observed event (its partial likelihood is constant, and averaging its
    zero gradient would only shrink the other clients' steps).

    Parameters
    ----------
    groups
        Groups of the schema.
    hides_modalities
        Whether the model hides modalities at random in training, so that all patients train the tokens for absent
        ones.
    """
    patients, labelled, events = [], Counter[str](), Counter[str]()
    for case in cases:
        known = {head.name for head in targets.heads if not is_missing(case.targets.get(head.name))}
        modalities = {*case.omics, *([WSI] if len(case.bag) else [])}
        patients.append((known, modalities))
        labelled.update(known)
        for head in targets.heads:
            if head.kind == "survival" and head.name in known:
                events[head.name] += int(case.targets[head.name][1] > 0)  # type: ignore[index]
    flags = [f"{task.name}: no label" for task in targets.heads if not labelled[task.name]]
    learnable = set()
    for head in targets.heads:
        if head.compares_patients and labelled[head.name] and not events[head.name]:
            flags.append(f"{head.name}: no event among {labelled[head.name]} patients, nothing to learn")
        elif labelled[head.name]:
            learnable.add(head.name)
    counts = dict.fromkeys(groups, 0)
    read = [name for kind, _, name in (group.partition(":") for group in counts) if kind == "modality"]
    flags += [
        f"{name}: no patient has it"
        for name in dict.fromkeys(part for group in read for part in group.split("+"))
        if not any(name in known for _, known in patients)
    ]
    for known, modalities in patients:
        tasks_here = known & learnable
        for group in counts if tasks_here else ():
            kind, _, name = group.partition(":")
            has = any(part in modalities for part in name.split("+"))
            counts[group] += {
                SHARED: True,
                "task": name in tasks_here,
                "modality": has,
                "absent": hides_modalities or not has,
            }[kind]
    tasks = [head.name for head in targets.heads]
    survival = [head.name for head in targets.heads if head.kind == "survival"]
    return ClientManifest(
        client,
        len(patients),
        {task: labelled[task] for task in tasks},
        {task: events[task] for task in survival},
        counts,
        tuple(flags),
        batch,
        {h.name: (events if h.compares_patients else labelled)[h.name] for h in targets.heads},
    )


@dataclass(frozen=True)
class IdentityTransform:
    """The transform of a table whose rows have been transformed already."""

    names: tuple[str, ...]
    per_cohort: ClassVar[bool] = False

    def apply(self, values: np.ndarray, columns: tuple[str, ...], cohort: str | None = None) -> np.ndarray:
        """The unchanged row."""
        return values


def with_transformed_tables(data: ClientData, targets: Targets) -> ClientData:
    """Transform the tables of a client's patients once, for all rounds."""

    def transform(cases: CaseList) -> CaseList:
        transformed = {case.patient: replace(case, omics=transformed_rows(case, targets)) for case in cases}
        return CaseList(transformed, cases.patients)

    return ClientData(transform(data.train), None if data.val is None else transform(data.val))


def transformed_rows(case: Case, targets: Targets) -> dict[str, np.ndarray]:
    """Modality → transformed row, for the modalities of the case."""
    return {
        modality: table.apply(values, columns_of(len(values), case.columns.get(modality)), case.cohort)
        for modality, table in targets.tables.items()
        if (values := case.omics.get(modality)) is not None
    }


def check_clients(clients: Mapping[str, ClientData], balancing: BalancingParams) -> None:
    """Refuse a federation without clients, a client without patients, and a patient of two clients.

    Raises
    ------
    DataError
        Naming the client or patient.
    StudyError
        If the loss weighting needs inner validation patients and a client has none.
    """
    if not clients:
        raise DataError("there is no client", where="federation.sites")
    seen: dict[str, str] = {}
    needs: frozenset[str] = get("weightings", balancing.weighting).attribute("needs")
    for client, data in clients.items():
        if not len(data.train):
            raise DataError(f"client {client} has no training patient", fix="leave it out")
        for patient in (*data.train.patients, *(data.val.patients if data.val else ())):
            if seen.setdefault(patient, client) != client:
                raise DataError(
                    f"patient {patient} belongs to {seen[patient]} and to {client}; that is leakage"
                )
        if "validation" in needs and not (data.val and len(data.val)):
            raise StudyError(
                f"{balancing.weighting} needs inner validation patients, and client {client} has none",
                where="balancing",
                fix="choose another weighting, or give clients an inner validation part",
            )


def _state_of(balancer: Any) -> bytes:
    state = balancer.state_dict()
    if not any(state.values()):
        return b""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
