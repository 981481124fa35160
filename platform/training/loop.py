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
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.models.balancing.protocol import BalancedModel, GradAggregator, LossWeighting, StepContext
from equipoise.models.losses import LossSums, TaskLosses
from equipoise.platform.errors import DataError, EquipoiseError
from equipoise.platform.training import checkpoint as checkpoints
from equipoise.platform.training.batches import CaseList, collate, draw_order, draw_tiles
from equipoise.platform.training.build import build_balancing, pick_device
from equipoise.platform.training.monitor import badness
from equipoise.platform.training.params import BalancingParams, TrainingParams
from equipoise.platform.training.predict import run_model
from equipoise.platform.training.targets import Targets

#: Called after every epoch with its row of the history.
Reporter = Callable[[dict[str, float]], None]


class NonFiniteLossError(EquipoiseError):
    """A loss became NaN or infinite (exit code 1)."""


@dataclass(frozen=True)
class FitResult:
    """How training went; the model holds the weights of the best epoch.

    Parameters
    ----------
    history
        A row per epoch: ``epoch`` (from 1), ``lr``, ``train/<task>``, ``val/<task>`` (mean losses; NaN
        without labels), ``monitor`` (smaller is better).
    best_epoch
        The epoch whose weights were kept.
    stopped_early
        Whether patience ran out before the epochs did.
    """

    history: tuple[dict[str, float], ...]
    best_epoch: int
    stopped_early: bool


@dataclass(frozen=True)
class _Run:
    """The parts of one training."""

    model: nn.Module
    losses: TaskLosses
    val_losses: TaskLosses
    optimizer: torch.optim.Optimizer
    weighting: LossWeighting
    aggregator: GradAggregator
    device: torch.device

    @property
    def changing(self) -> dict[str, checkpoints.HasState]:
        """What a checkpoint has to hold."""
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "weighting": self.weighting,
            "aggregator": self.aggregator,
        }


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
    size = params.batch_for({head.kind for head in targets.heads})
    run = _start(model, targets, params, balancing)
    identity = checkpoints.identity(model, targets, train, val, params, balancing, seed)
    progress = checkpoints.Progress()
    if checkpoint is not None and checkpoint.exists():
        progress = checkpoints.load(checkpoint, identity, run.changing)
    while len(progress.history) < params.epochs and not _out_of_patience(progress, params):
        epoch = len(progress.history)
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(params, epoch)
        with _seeded(seed, epoch, run.device):
            trained = _train_epoch(run, targets, train, params, size, seed, epoch)
        run.weighting.on_epoch_end(trained.means())
        result = run_model(model, targets, val)
        validated = run.val_losses(result.outputs, result.targets, result.label_mask)
        monitor = badness(params.monitor, targets, validated, result)
        if not math.isfinite(monitor):
            raise _non_finite(epoch, "validation", targets, validated.means(), val.patients)
        progress.add(_history_row(epoch, params, targets, trained, validated, monitor), model)
        if checkpoint is not None:
            checkpoints.save(checkpoint, identity, progress, run.changing)
        if report is not None:
            report(progress.history[-1])
    model.load_state_dict(progress.best_weights)
    return FitResult(tuple(progress.history), progress.best_epoch, _out_of_patience(progress, params))


def learning_rate(params: TrainingParams, epoch: int) -> float:
    """Learning rate of an epoch (from 0): half a cosine over all epochs, a step per epoch, not per batch."""
    if params.schedule == "constant":
        return params.lr
    return params.lr * 0.5 * (1 + math.cos(math.pi * epoch / params.epochs))


def _start(model: nn.Module, targets: Targets, params: TrainingParams, balancing: BalancingParams) -> _Run:
    device = pick_device(params.device)
    model.to(device)
    weighting, aggregator = build_balancing(balancing, targets.heads, device)
    groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "weight_decay": params.weight_decay}]
    if learned := list(weighting.parameters()):
        groups.append({"params": learned, "weight_decay": 0.0})
    return _Run(
        model=model,
        losses=TaskLosses(targets.heads, targets.class_weights, ties=params.ties).to(device),
        val_losses=TaskLosses(targets.heads, targets.class_weights, ties=params.ties),
        optimizer=torch.optim.AdamW(
            groups, lr=params.lr, fused=True
        ),  # one kernel for all parameters, also on CPU
        weighting=weighting,
        aggregator=aggregator,
        device=device,
    )


def _train_epoch(
    run: _Run, targets: Targets, train: CaseList, params: TrainingParams, size: int, seed: int, epoch: int
) -> LossSums:
    """One pass over the training patients; returns unweighted loss sums and label counts."""
    run.model.train()
    names = [head.name for head in targets.heads]
    total = LossSums(*torch.zeros(2, len(names), device=run.device))
    for step, rows in enumerate(draw_order(len(train), size, seed, epoch)):
        cases = [train[i] for i in rows]
        tiles = [draw_tiles(len(case.bag), params.bag_tiles, seed, epoch, case.patient) for case in cases]
        batch = collate(cases, targets, tiles).to(run.device)
        with _autocast(params.amp, run.device):
            outputs = run.model(batch)
        sums = run.losses(outputs, batch.targets, batch.label_mask)
        means = sums.means()
        if not bool(torch.isfinite(means).all()):
            raise _non_finite(epoch, "training", targets, means, [case.patient for case in cases])
        context = StepContext(tasks=names, present=sums.counts > 0, epoch=epoch, step=step)
        run.optimizer.zero_grad(set_to_none=True)
        weighted = run.weighting.weights(means, context) * means
        run.aggregator.backward(weighted, cast(BalancedModel, run.model), context)
        if params.grad_clip is not None:
            nn.utils.clip_grad_norm_(run.model.parameters(), params.grad_clip)
        run.optimizer.step()
        total = LossSums(total.sums + sums.sums.detach(), total.counts + sums.counts)
    return total


def _history_row(
    epoch: int,
    params: TrainingParams,
    targets: Targets,
    trained: LossSums,
    validated: LossSums,
    monitor: float,
) -> dict[str, float]:
    row: dict[str, float] = {"epoch": epoch + 1, "lr": learning_rate(params, epoch)}
    for part, losses in (("train", trained), ("val", validated)):
        values = torch.where(losses.counts > 0, losses.means(), math.nan).tolist()
        row |= {f"{part}/{head.name}": value for head, value in zip(targets.heads, values, strict=True)}
    return row | {"monitor": monitor}


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
def _seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global generators: seed them for an epoch, give them back as they were."""
    state = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(state)
        if device.type == "cuda":
            torch.cuda.manual_seed(state)
        yield


def _autocast(amp: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    wanted = amp == "bf16" or (amp == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else contextlib.nullcontext()


def _non_finite(
    epoch: int, part: str, targets: Targets, means: Tensor, patients: list[str] | tuple[str, ...]
) -> NonFiniteLossError:
    bad = [
        head.name for head, mean in zip(targets.heads, means.tolist(), strict=True) if not math.isfinite(mean)
    ]
    shown = ", ".join(patients[:8]) + (f" and {len(patients) - 8} more" if len(patients) > 8 else "")
    return NonFiniteLossError(
        f"the {part} loss of {', '.join(bad)} is not a number or infinite; patients: {shown}",
        where=f"epoch {epoch + 1}",
        fix="look at these patients' features and labels, or lower training.lr, or set training.grad_clip: 1",
    )
