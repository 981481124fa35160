"""The training loop. Cross-validation, search and federation call it; none has a loop of its own.

Everything random in an epoch (order, tiles, dropout) comes from (seed, epoch), and the learning rate is a
function of the epoch. A checkpoint therefore holds no generator: an interrupted and resumed training equals
an uninterrupted one bit for bit on the same machine and number of threads. The loop never sets the number of
threads; its caller does. :mod:`equipoise.platform.training.monitor` defines the value by which an epoch is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from equipoise.models.base import reads_states
from equipoise.models.gptomic.protocol import BranchedModel
from equipoise.models.losses import LossSums, TaskLosses
from equipoise.models.score_memory import ScoreMemory
from equipoise.models.seeds import torch_seed
from equipoise.platform.errors import DataError
from equipoise.platform.training import checkpoint as checkpoints
from equipoise.platform.training.added_loss import added_loss
from equipoise.platform.training.batches import CaseList, draw_order
from equipoise.platform.training.build import build_balancer, pick_device, seeded
from equipoise.platform.training.distributed import SINGLE_WORKER, WorkerGroup
from equipoise.platform.training.modulation import BranchView, balanced_heads, parameter_groups
from equipoise.platform.training.monitor import LEADING, ValidationMonitor, metrics_of
from equipoise.platform.training.params import BalancingParams, TrainingParams
from equipoise.platform.training.predict import Outputs
from equipoise.platform.training.reader import BatchReader
from equipoise.platform.training.step import Epoch, TrainingState, non_finite
from equipoise.platform.training.strata import draw_stratified_order, strata_of
from equipoise.platform.training.targets import Targets
from equipoise.platform.training.task_sampling import cells_of, draw_task_order

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Called after every epoch with its row of the history.
Reporter = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class FitResult:
    """How training went; the model holds the weights of the best epoch.

    Parameters
    ----------
    history
        A row per epoch: ``epoch`` (from 1), ``lr``, ``train/<task>``, ``val/<task>`` (mean losses; NaN
        without labels), ``monitor`` (smaller is better) and ``monitor/<name>``, what each monitor would have been,
        and the record of balancing (:class:`~equipoise.models.balancing.record.EpochRecord`). For a model with branches
        ``rho/<branch>``, ``coefficient/<branch>`` (:mod:`equipoise.platform.training.modulation`) and
        ``c/<task>/<branch>`` (:func:`validation_outputs`).
    best_epoch
        The epoch whose weights were kept.
    stopped_early
        Whether patience ran out before the epochs did.
    exact
        Whether a solver found the optimum (:mod:`equipoise.platform.training.exact`); the history has one row then.
    """

    history: tuple[dict[str, float], ...]
    best_epoch: int
    stopped_early: bool
    exact: bool = False


def fit(
    model: nn.Module,
    targets: Targets,
    train: CaseList,
    val: CaseList,
    params: TrainingParams,
    *,
    seed: int,
    balancing: BalancingParams | None = None,
    report: Reporter | None = None,
    checkpoint: Path | None = None,
    group: WorkerGroup = SINGLE_WORKER,
    stop_after: int | None = None,
) -> FitResult:
    """Train until inner validation stops improving, and leave the best weights in the model.

    Parameters
    ----------
    model
        A model of the registry, with initial weights.
    targets
        Scalers, class weights and widths fitted on the training patients
        (:func:`~equipoise.platform.training.targets.fit_targets`).
    train, val
        Training and inner validation patients. There is no parameter for test patients.
    params, balancing
        Settings of the study.
    seed
        Of order, tiles and dropout.
    report
        Any callable; an exception that it raises ends training after the epoch's checkpoint was written.
    checkpoint
        File for the state after every epoch; training resumes from it if it exists.
    group
        Workers that train together; each of them calls ``fit`` with the same arguments.
    stop_after
        Train this many epochs of the schedule without validation, and keep the last weights; ``val`` is empty then.

    Raises
    ------
    DataError
        If a part is empty or a patient is in both.
    NonFiniteLossError
        Naming epoch, task and patients.
    StudyError
        If the checkpoint belongs to another training.
    """
    if stop_after is None:
        check_patients(train, val)
    balancing = balancing or BalancingParams()
    size = params.batch_for(targets.heads, len(train))
    reader = BatchReader(targets, train, val, states=reads_states(model))
    state = _start(model, targets, params, balancing, group, reader, steps=math.ceil(len(train) / size))
    strata = strata_of(train, targets) if params.order == "stratified" else None
    cells = list(cells_of(train, targets).values()) if params.task_sampling is not None else None
    val_losses = TaskLosses(targets.heads, targets.class_weights, ties=params.ties)
    monitor = ValidationMonitor(params.monitor, targets, val_losses)
    fingerprint: dict[str, Any] = {}
    if checkpoint is not None:
        fingerprint = checkpoints.training_fingerprint(model, targets, train, val, params, balancing, seed)
    progress = checkpoints.TrainingProgress()
    if checkpoint is not None:
        progress = checkpoints.resume(checkpoint, fingerprint, state.stateful)
    if not progress.history and (memory := state.losses.memory) is not None:
        before = reader.outputs(model, train, group)
        memory.start(targets.heads, before.outputs, before.targets, before.label_mask, before.cohort)
    epochs = params.epochs if stop_after is None else min(stop_after, params.epochs)
    while len(progress.history) < epochs and not _out_of_patience(progress, params):
        epoch = len(progress.history)
        lr = learning_rate(params, epoch)
        for settings in state.optimizer.param_groups:
            settings["lr"] = lr
        steps = Epoch(
            state,
            targets,
            train,
            val,
            params,
            size=size,
            seed=seed,
            epoch=epoch,
            lr=lr,
            total_steps=params.epochs * math.ceil(len(train) / size),
        )
        model.train()
        # Workers that train together draw different dropout masks.
        with seeded(torch_seed(seed, epoch, spawn_key=(group.rank,) if group.rank else ()), state.device):
            for rows in _order(params, len(train), size, seed, epoch, strata, cells):
                steps.step(rows)
        trained = steps.totals()
        known = torch.where(trained.counts > 0, trained.means(), math.nan)
        state.balancer.weighting.on_epoch_end(known.double().cpu())
        if stop_after is not None:
            progress.best_epoch = 0  # the next weights are the ones to keep
            row = history_row(epoch, lr, targets, trained, None) | {"monitor": math.nan}
            progress.add(row | steps.record.row() | steps.branch_row(), model)
            if report is not None:
                report(progress.history[-1])
            continue
        result, branch_row = validation_outputs(model, targets, val, reader, group)
        validated = monitor.losses_of(result)
        if not bool(torch.isfinite(validated.means()).all()):
            raise non_finite(
                epoch, "validation", steps.tasks[: len(targets.heads)], validated.means(), val.patients
            )
        added = (
            added_loss(val_losses, reader.outputs(model, train, group), result)
            if params.monitor == "added_loss"
            else None
        )
        row = history_row(epoch, lr, targets, trained, validated)
        row |= monitor.row(validated, result, first=epoch == 0, added=added)
        progress.add(row | steps.record.row() | steps.branch_row() | branch_row, model)
        if checkpoint is not None and group.rank == 0:
            checkpoints.save(checkpoint, fingerprint, progress, state.stateful)
        if report is not None:
            report(progress.history[-1])
    return _result(model, progress, params)


def _order(
    params: TrainingParams,
    count: int,
    size: int,
    seed: int,
    epoch: int,
    strata: NDArray[np.int64] | None,
    cells: list[NDArray[np.int64]] | None,
) -> Iterator[list[int]]:
    """Training patients of each step of an epoch."""
    if params.task_sampling is not None and cells is not None:
        return draw_task_order(cells, count, size, params.task_sampling.temperature, seed, epoch)
    if strata is not None:
        return draw_stratified_order(strata, size, seed, epoch)
    return draw_order(count, size, seed, epoch)


def load_fit_result(
    model: nn.Module,
    targets: Targets,
    train: CaseList,
    val: CaseList,
    params: TrainingParams,
    *,
    seed: int,
    balancing: BalancingParams,
    checkpoint: Path,
) -> FitResult:
    """The result of :func:`fit` in the workers, from their last checkpoint; loads the best weights into the model."""
    fingerprint = checkpoints.training_fingerprint(model, targets, train, val, params, balancing, seed)
    return _result(model, checkpoints.load(checkpoint, fingerprint, {}), params)


def _result(model: nn.Module, progress: checkpoints.TrainingProgress, params: TrainingParams) -> FitResult:
    model.load_state_dict(progress.best_weights)
    return FitResult(tuple(progress.history), progress.best_epoch, _out_of_patience(progress, params))


def learning_rate(params: TrainingParams, epoch: int) -> float:
    """Learning rate of an epoch (from 0): half a cosine over all epochs, a step per epoch, not per batch."""
    if params.schedule == "constant":
        return params.lr
    return params.lr * 0.5 * (1 + math.cos(math.pi * epoch / params.epochs))


def _start(
    model: nn.Module,
    targets: Targets,
    params: TrainingParams,
    balancing: BalancingParams,
    group: WorkerGroup,
    reader: BatchReader,
    *,
    steps: int,
) -> TrainingState:
    device = pick_device(params.device)
    model.to(device)
    compared = any(head.compares_patients for head in targets.heads)
    memory = (
        ScoreMemory(steps, ties=params.ties, device=device)
        if params.risk_sets == "memory" and compared
        else None
    )
    losses = TaskLosses(
        targets.heads, targets.class_weights, ties=params.ties, gather=group.gather, memory=memory
    )
    return TrainingState(
        model=model,
        losses=losses.to(device),
        # Fused: one kernel for all parameters, also on CPU.
        optimizer=torch.optim.AdamW(
            parameter_groups(model), lr=params.lr, weight_decay=params.weight_decay, fused=True
        ),
        balancer=build_balancer(
            balancing, model, balanced_heads(model, targets.heads), group.reduce, group.world
        ),
        device=device,
        group=group,
        reader=reader,
    )


def history_row(
    epoch: int, lr: float, targets: Targets, trained: LossSums, validated: LossSums | None
) -> dict[str, float]:
    """What the history says of the losses of an epoch (from 0); without validation, of training alone."""
    row: dict[str, float] = {"epoch": epoch + 1, "lr": lr}
    for part, losses in (("train", trained), ("val", validated)):
        if losses is None:
            continue
        values = torch.where(losses.counts > 0, losses.means(), math.nan).tolist()
        # Losses of tasks that branches add stand behind those of the study.
        row |= {f"{part}/{head.name}": value for head, value in zip(targets.heads, values, strict=False)}
    return row


def validation_outputs(
    model: nn.Module, targets: Targets, val: CaseList, reader: BatchReader, group: WorkerGroup
) -> tuple[Outputs, dict[str, float]]:
    """Outputs for validation patients and, for a model with branches, how well each branch alone predicts them.

    The row has ``c/<task>/<branch>``, Harrell's C of survival tasks, and ``<metric>/<task>/<branch>`` of the leading
    metric of others, over the patients that have the branch.
    """
    if not isinstance(model, BranchedModel):
        return reader.outputs(model, val, group), {}
    view = BranchView(model, targets.heads)
    result, branches = view.split(reader.outputs(view, val, group))
    row = {}
    for name, outputs in branches.items():
        for head, metrics in zip(targets.heads, metrics_of(targets, outputs).values(), strict=True):
            metric = LEADING[head.kind]
            key = "c" if head.kind == "survival" else metric
            row[f"{key}/{head.name}/{name}"] = metrics[metric]
    return result, row


def _out_of_patience(progress: checkpoints.TrainingProgress, params: TrainingParams) -> bool:
    done = len(progress.history)
    return done >= params.min_epochs and done - progress.best_epoch >= params.patience


def check_patients(train: CaseList, val: CaseList) -> None:
    """Refuse an empty part, and a patient in both."""
    for part, cases in (("training", train), ("inner validation", val)):
        if len(cases) == 0:
            raise DataError(
                f"the {part} part of the fold is empty", fix="change splits.folds or splits.inner_val"
            )
    if both := sorted(set(train.patients) & set(val.patients)):
        raise DataError(f"patients in both training and validation: {', '.join(both[:5])}")
