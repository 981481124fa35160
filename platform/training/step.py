"""One optimiser step: cases → losses → balanced gradients → new weights; and the tools that balancing may call."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.models.balancing.balancer import Balancer
from equipoise.models.balancing.protocol import StepContext
from equipoise.models.balancing.record import EpochRecord
from equipoise.models.base import reads_states
from equipoise.models.batch import CaseBatch
from equipoise.models.losses import LossSums, TaskLosses
from equipoise.platform.errors import EquipoiseError
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.checkpoint import Stateful
from equipoise.platform.training.distributed import WorkerGroup, shard
from equipoise.platform.training.modulation import balanced_heads, epoch_modulation
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.reader import BatchReader
from equipoise.platform.training.targets import Targets

#: Streams of random draws beside the order of training patients.
VALIDATION, SAMPLE = 1, 2


class NonFiniteLossError(EquipoiseError):
    """A loss became NaN or infinite (exit code 1)."""


@dataclass(frozen=True)
class TrainingState:
    """Model, losses, optimiser and balancer of a training, on its device, and what reads its batches."""

    model: nn.Module
    losses: TaskLosses
    optimizer: torch.optim.Optimizer
    balancer: Balancer
    device: torch.device
    group: WorkerGroup
    reader: BatchReader | None = None

    @property
    def stateful(self) -> dict[str, Stateful]:
        """Everything whose state belongs in a checkpoint."""
        parts: dict[str, Stateful] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "balancer": self.balancer,
        }
        return parts if self.losses.memory is None else parts | {"scores": self.losses.memory}


class Epoch:
    """The steps of one epoch; implements the :class:`~equipoise.models.balancing.protocol.LossClosures` of balancing.

    Parameters
    ----------
    state
        Model, losses, optimiser, balancer.
    targets
        Tasks, scalers, widths.
    train, val
        Training patients; inner validation patients, for methods that learn weights on them.
    params
        Settings of the study.
    size
        Patients per step, over all workers.
    seed, epoch
        Everything random is a function of them.
    factors
        ``[T]``: gradients are those of ``factor · sum of losses / patients of the batch`` in place of the mean over
        labels; weightings still see the means. For a site of a federation, which knows a part of all labels
        (:mod:`equipoise.platform.federation.objective`).
    total_steps
        Of the whole training, for weightings that learn.
    """

    def __init__(
        self,
        state: TrainingState,
        targets: Targets,
        train: CaseList,
        val: CaseList,
        params: TrainingParams,
        *,
        size: int,
        seed: int,
        epoch: int,
        lr: float,
        factors: Tensor | None = None,
        total_steps: int | None = None,
    ) -> None:
        self.state = state
        self.reader = state.reader or BatchReader(targets, states=reads_states(state.model))
        self.targets = targets
        self.train = train
        self.val = val
        self.params = params
        self.size = size
        self.seed = seed
        self.epoch = epoch
        self.lr = lr
        self.total_steps = total_steps
        self.tasks = tuple(head.name for head in balanced_heads(state.model, targets.heads))
        # The tasks that branches add have the labels of the study's, branch by branch.
        self.factors = None if factors is None else factors.repeat(len(self.tasks) // len(factors))
        self.modulation = epoch_modulation(
            state.model, targets, params, state.group, state.device, seed=seed, epoch=epoch
        )
        self.record = EpochRecord(self.tasks, aggregates=state.balancer.aggregator.kind != "none")
        self.total = LossSums(*torch.zeros(2, len(self.tasks), device=state.device))
        self._step = 0
        self._batch: CaseBatch | None = None
        self._dropout: tuple[Tensor, Tensor | None] | None = None

    def step(self, rows: Sequence[int]) -> None:
        """Take one step on the training patients ``rows`` of a global batch."""
        state = self.state
        if "second_forward" in state.balancer.weighting.needs:
            self._dropout = _generator_state(state.device)
        self._batch = self._read(self.train, rows)
        sums, terms = self._sums(self._batch)
        if self.modulation is not None:
            self.modulation.observe(self._batch)
        if state.losses.memory is not None:
            state.losses.memory.keep()
        losses, counts = self._share(sums)
        means = state.group.reduce(losses.detach().clone()).double().cpu()
        if not bool(torch.isfinite(means).all()):
            raise non_finite(
                self.epoch, "training", self.tasks, means, [self.train.patients[i] for i in rows]
            )
        context = StepContext(
            self.tasks, (counts > 0).cpu(), self.epoch, self._step, self.seed, self.lr, self.total_steps
        )
        probe = self.params.probe and self._step == 0
        losses = self._scaled(losses if terms is None else losses + terms, counts, len(rows))
        record = state.balancer.backward(losses, means, context, self, probe=probe)
        with self._slowing():
            if self.params.grad_clip is not None:
                nn.utils.clip_grad_norm_(state.model.parameters(), self.params.grad_clip)
            state.optimizer.step()
        state.balancer.learn(means, context, record, self)
        self.record.add(record, context.present)
        self.total = LossSums(self.total.sums + sums.sums.detach(), self.total.counts + sums.counts.detach())
        self._step += 1

    @property
    def batch(self) -> CaseBatch:
        """The training batch of the current step."""
        assert self._batch is not None
        return self._batch

    def second_forward_losses(self) -> Tensor:
        """``[T]`` means of the same batch, with the same dropout, at the current parameters."""
        assert self._batch is not None
        assert self._dropout is not None
        with torch.no_grad(), _generators_at(self._dropout, self.state.device):
            losses, _ = self._share(self._sums(self._batch)[0])
        return self.state.group.reduce(losses).double().cpu()

    def validation_losses(self) -> Tensor:
        """``[T]`` losses of inner validation patients drawn for this step, without dropout."""
        batch = self._read(self.val, self._draw(len(self.val), VALIDATION))
        self.state.model.eval()
        try:
            return self._share(self._sums(batch)[0])[0]
        finally:
            self.state.model.train()

    def sample_losses(self, index: int) -> Tensor:
        """``[T]`` losses of training patients drawn for this step and index."""
        rows = self._draw(len(self.train), SAMPLE + index)
        sums, terms = self._sums(self._read(self.train, rows))
        losses, counts = self._share(sums)
        return self._scaled(losses if terms is None else losses + terms, counts, len(rows))

    def totals(self) -> LossSums:
        """Loss sums and label counts of the epoch, over all workers, of every task of the balancing method."""
        group = self.state.group
        return LossSums(group.total(self.total.sums), group.total(self.total.counts))

    def branch_row(self) -> dict[str, float]:
        """What happened between the branches of the model, for the history; empty without branches."""
        return {} if self.modulation is None else self.modulation.row()

    def _draw(self, count: int, stream: int) -> list[int]:
        sequence = np.random.SeedSequence([self.seed, self.epoch, self._step, stream])
        return np.random.default_rng(sequence).permutation(count)[: self.size].tolist()

    def _read(self, source: CaseList, rows: Sequence[int]) -> CaseBatch:
        """This worker's share of a global batch; without one, a case whose labels nobody sees."""
        local_rows = shard(rows, self.state.group)
        mine = local_rows or rows[:1]
        batch = self.reader.read(source, mine, self.params.bag_tiles, self.seed, self.epoch)
        if not local_rows:
            unseen = {task: torch.zeros_like(mask) for task, mask in batch.label_mask.items()}
            batch = dataclasses.replace(batch, label_mask=unseen)
        if source is self.train and self.state.losses.memory is not None:
            batch = dataclasses.replace(batch, position=torch.tensor(mine))
        return batch.to(self.state.device)

    def _slowing(self) -> contextlib.AbstractContextManager[None]:
        """In which the optimiser steps: branches of the model may be slowed."""
        if self.modulation is None:
            return contextlib.nullcontext()
        return self.modulation.slowing(self.state.optimizer, self._step)

    def _sums(self, batch: CaseBatch) -> tuple[LossSums, Tensor | None]:
        """Loss sums of all tasks, and what a modulation of branches adds to their losses."""
        branches = self.modulation
        with _autocast(self.params.amp, self.state.device):
            outputs = self.state.model(batch) if branches is None else branches.forward(batch)
        sums = self.state.losses(outputs, batch.targets, batch.label_mask, batch.cohort, batch.position)
        if branches is None:
            return sums, None
        return branches.with_branch_tasks(sums, batch), branches.terms(batch)

    def _share(self, sums: LossSums) -> tuple[Tensor, Tensor]:
        """``[T]`` losses whose mean over workers is the mean over cases, and ``[T]`` counts of all workers."""
        group = self.state.group
        counts = group.total(sums.counts.detach())
        return sums.sums * (group.world / counts.clamp(min=1)), counts

    def _scaled(self, losses: Tensor, counts: Tensor, patients: int) -> Tensor:
        if self.factors is None:
            return losses
        return losses * (self.factors.to(counts) * counts / patients)


def non_finite(
    epoch: int, part: str, tasks: Sequence[str], means: Tensor, patients: Sequence[str]
) -> NonFiniteLossError:
    """The error that names epoch, tasks and patients."""
    bad = [task for task, mean in zip(tasks, means.tolist(), strict=True) if not math.isfinite(mean)]
    shown = ", ".join(patients[:8]) + (f" and {len(patients) - 8} more" if len(patients) > 8 else "")
    return NonFiniteLossError(
        f"the {part} loss of {', '.join(bad)} is not a number or infinite; patients: {shown}",
        where=f"epoch {epoch + 1}",
        fix="look at these patients' features and labels, or lower training.lr, or set training.grad_clip: 1",
    )


def _generator_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextlib.contextmanager
def _generators_at(state: tuple[Tensor, Tensor | None], device: torch.device) -> Any:
    """Replay the dropout of the first forward pass; the state of the generators is restored afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield


def _autocast(amp: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    wanted = amp == "bf16" or (amp == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else contextlib.nullcontext()
