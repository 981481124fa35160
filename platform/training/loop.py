"""The training loop. Cross-validation, search and federation call it; they do not have their own.

Everything random in an epoch (order, tiles, dropout) comes from (seed, epoch), and the learning rate is a
function of the epoch. A checkpoint therefore holds no generator: an interrupted and resumed training equals
an undisturbed one bit for bit on the same machine and number of threads. The loop never sets that number;
whoever starts it does.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from equipoise.models.losses import LossSums, TaskLosses
from equipoise.platform.errors import DataError
from equipoise.platform.training import checkpoint as checkpoints
from equipoise.platform.training.batches import CaseList, draw_order
from equipoise.platform.training.build import build_balancer, pick_device
from equipoise.platform.training.distributed import ALONE, Group
from equipoise.platform.training.monitor import badness
from equipoise.platform.training.params import BalancingParams, TrainingParams
from equipoise.platform.training.predict import run_together
from equipoise.platform.training.step import Epoch, Parts, non_finite
from equipoise.platform.training.targets import Targets

#: Called after every epoch with its row of the history.
Reporter = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class FitResult:
    """How training went; the model holds the weights of the best epoch.

    Parameters
    ----------
    history
        A row per epoch: ``epoch`` (from 1), ``lr``, ``train/<task>``, ``val/<task>`` (mean losses; NaN
        without labels), ``monitor`` (smaller is better),
        and what balancing did (:class:`~equipoise.models.balancing.record.EpochRecord`).
    best_epoch
        The epoch whose weights were kept.
    stopped_early
        Whether patience ran out before the epochs did.
    """

    history: tuple[dict[str, float], ...]
    best_epoch: int
    stopped_early: bool


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
    group: Group = ALONE,
) -> FitResult:
    """Train until inner validation stops improving, and leave the best weights in the model.

    Parameters
    ----------
    model
        A model of the registry, with initial weights.
    targets
        What the training patients fixed (:func:`~equipoise.platform.training.targets.fit_targets`).
    train, val
        Training and inner validation patients. There is no parameter for test patients: they cannot get here.
    params, balancing
        Settings of the study.
    seed
        Of order, tiles and dropout.
    report
        Any callable; what it raises ends training, with the epoch's checkpoint already written.
    checkpoint
        Where to keep the state after every epoch, and to resume from if there is one.
    group
        Workers that train together; each of them calls ``fit`` with the same arguments.

    Raises
    ------
    DataError
        If a part is empty or a patient is in both.
    NonFiniteLossError
        Naming epoch, task and patients.
    StudyError
        If the checkpoint belongs to another training.
    """
    _check_patients(train, val)
    balancing = balancing or BalancingParams()
    size = params.batch_for(targets.heads)
    parts = _start(model, targets, params, balancing, group)
    val_losses = TaskLosses(targets.heads, targets.class_weights, ties=params.ties)
    identity = checkpoints.identity(model, targets, train, val, params, balancing, seed)
    progress = checkpoints.Progress()
    if checkpoint is not None and checkpoint.exists():
        progress = checkpoints.load(checkpoint, identity, parts.changing)
    while len(progress.history) < params.epochs and not _out_of_patience(progress, params):
        epoch = len(progress.history)
        lr = learning_rate(params, epoch)
        for settings in parts.optimizer.param_groups:
            settings["lr"] = lr
        steps = Epoch(parts, targets, train, val, params, size=size, seed=seed, epoch=epoch, lr=lr)
        model.train()
        with _seeded(seed, epoch, parts.device, group.rank):
            for rows in draw_order(len(train), size, seed, epoch):
                steps.step(rows)
        trained = steps.totals()
        known = torch.where(trained.counts > 0, trained.means(), math.nan)
        parts.balancer.weighting.on_epoch_end(known.double().cpu())
        result = run_together(model, targets, val, group)
        validated = val_losses(result.outputs, result.targets, result.label_mask)
        monitor = badness(params.monitor, targets, validated, result)
        if not math.isfinite(monitor):
            raise non_finite(epoch, "validation", targets, validated.means(), val.patients)
        row = _history_row(epoch, lr, targets, trained, validated) | {"monitor": monitor}
        progress.add(row | steps.record.row(), model)
        if checkpoint is not None and group.rank == 0:
            checkpoints.save(checkpoint, identity, progress, parts.changing)
        if report is not None:
            report(progress.history[-1])
    return _result(model, progress, params)


def finished(
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
    """What :func:`fit` returned to the workers whose last checkpoint this is; the model gets the best weights."""
    identity = checkpoints.identity(model, targets, train, val, params, balancing, seed)
    return _result(model, checkpoints.load(checkpoint, identity, {}), params)


def _result(model: nn.Module, progress: checkpoints.Progress, params: TrainingParams) -> FitResult:
    model.load_state_dict(progress.best_weights)
    return FitResult(tuple(progress.history), progress.best_epoch, _out_of_patience(progress, params))


def learning_rate(params: TrainingParams, epoch: int) -> float:
    """Learning rate of an epoch (from 0): half a cosine over all epochs, a step per epoch, not per batch."""
    if params.schedule == "constant":
        return params.lr
    return params.lr * 0.5 * (1 + math.cos(math.pi * epoch / params.epochs))


def _start(
    model: nn.Module, targets: Targets, params: TrainingParams, balancing: BalancingParams, group: Group
) -> Parts:
    device = pick_device(params.device)
    model.to(device)
    losses = TaskLosses(targets.heads, targets.class_weights, ties=params.ties, gather=group.gather)
    return Parts(
        model=model,
        losses=losses.to(device),
        # Fused: one kernel for all parameters, also on CPU.
        optimizer=torch.optim.AdamW(
            model.parameters(), lr=params.lr, weight_decay=params.weight_decay, fused=True
        ),
        balancer=build_balancer(balancing, model, targets.heads, group.reduce),
        device=device,
        group=group,
    )


def _history_row(
    epoch: int, lr: float, targets: Targets, trained: LossSums, validated: LossSums
) -> dict[str, float]:
    row: dict[str, float] = {"epoch": epoch + 1, "lr": lr}
    for part, losses in (("train", trained), ("val", validated)):
        values = torch.where(losses.counts > 0, losses.means(), math.nan).tolist()
        row |= {f"{part}/{head.name}": value for head, value in zip(targets.heads, values, strict=True)}
    return row


def _out_of_patience(progress: checkpoints.Progress, params: TrainingParams) -> bool:
    done = len(progress.history)
    return done >= params.min_epochs and done - progress.best_epoch >= params.patience


def _check_patients(train: CaseList, val: CaseList) -> None:
    for part, cases in (("training", train), ("inner validation", val)):
        if len(cases) == 0:
            raise DataError(
                f"the {part} part of the fold is empty", fix="change splits.folds or splits.inner_val"
            )
    if both := sorted(set(train.patients) & set(val.patients)):
        raise DataError(f"patients in both training and validation: {', '.join(both[:5])}")


@contextlib.contextmanager
def _seeded(seed: int, epoch: int, device: torch.device, rank: int) -> Iterator[None]:
    """Dropout draws from torch's global generators: seed them for an epoch, give them back as they were."""
    own = (rank,) if rank else ()
    sequence = np.random.SeedSequence([seed, epoch], spawn_key=own)
    state = int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(state)
        if device.type == "cuda":
            torch.cuda.manual_seed(state)
        yield
