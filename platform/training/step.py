"""One optimiser step: cases → losses → balanced gradients → new weights; and what balancing may ask for."""

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
from equipoise.models.batch import CaseBatch
from equipoise.models.losses import LossSums, TaskLosses
from equipoise.platform.errors import EquipoiseError
from equipoise.platform.training.batches import CaseList, collate, draw_tiles
from equipoise.platform.training.checkpoint import HasState
from equipoise.platform.training.distributed import Group, share
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.targets import Targets

#: Streams of random draws beside the order of training patients.
VALIDATION, SAMPLE = 1, 2


class NonFiniteLossError(EquipoiseError):
    """A loss became NaN or infinite (exit code 1)."""


@dataclass(frozen=True)
class Parts:
    """What a training consists of, on its device."""

    model: nn.Module
    losses: TaskLosses
    optimizer: torch.optim.Optimizer
    balancer: Balancer
    device: torch.device
    group: Group

    @property
    def changing(self) -> dict[str, HasState]:
        """What a checkpoint has to hold."""
        return {"model": self.model, "optimizer": self.optimizer, "balancer": self.balancer}


class Epoch:
    """The steps of one epoch; it is the :class:`~equipoise.models.balancing.protocol.StepTools` of balancing.

    Parameters
    ----------
    parts
        Model, losses, optimiser, balancer.
    targets
        Tasks, scalers, widths.
    train, val
        Training patients; inner validation patients, for methods that learn weights on them.
    params
        Settings.
    size
        Patients per step, over all workers.
    seed, epoch
        What everything random is a function of.
    """

    def __init__(
        self,
        parts: Parts,
        targets: Targets,
        train: CaseList,
        val: CaseList,
        params: TrainingParams,
        *,
        size: int,
        seed: int,
        epoch: int,
        lr: float,
    ) -> None:
        self.parts = parts
        self.targets = targets
        self.train = train
        self.val = val
        self.params = params
        self.size = size
        self.seed = seed
        self.epoch = epoch
        self.lr = lr
        self.tasks = tuple(head.name for head in targets.heads)
        self.record = EpochRecord(self.tasks)
        self.total = LossSums(*torch.zeros(2, len(self.tasks), device=parts.device))
        self._step = 0
        self._batch: CaseBatch | None = None
        self._dropout: tuple[Tensor, Tensor | None] | None = None

    def step(self, rows: Sequence[int]) -> None:
        """Learn from the training patients ``rows`` of one global batch."""
        parts = self.parts
        if "second_forward" in parts.balancer.weighting.needs:
            self._dropout = _generator_state(parts.device)
        self._batch = self._read(self.train, rows)
        sums = self._sums(self._batch)
        losses, counts = self._share(sums)
        means = parts.group.reduce(losses.detach().clone()).double().cpu()
        if not bool(torch.isfinite(means).all()):
            raise non_finite(
                self.epoch, "training", self.targets, means, [self.train.patients[i] for i in rows]
            )
        context = StepContext(self.tasks, (counts > 0).cpu(), self.epoch, self._step, self.seed, self.lr)
        probe = self.params.probe and self._step == 0
        record = parts.balancer.backward(losses, means, context, self, probe=probe)
        if self.params.grad_clip is not None:
            nn.utils.clip_grad_norm_(parts.model.parameters(), self.params.grad_clip)
        parts.optimizer.step()
        parts.balancer.learn(means, context, record, self)
        self.record.add(record, context.present)
        self.total = LossSums(self.total.sums + sums.sums.detach(), self.total.counts + sums.counts.detach())
        self._step += 1

    @property
    def batch(self) -> CaseBatch:
        """The training batch of the present step."""
        assert self._batch is not None
        return self._batch

    def losses_again(self) -> Tensor:
        """``[T]`` means of the same batch, with the same dropout, at the present parameters."""
        assert self._batch is not None
        assert self._dropout is not None
        with torch.no_grad(), _generators_at(self._dropout, self.parts.device):
            losses, _ = self._share(self._sums(self._batch))
        return self.parts.group.reduce(losses).double().cpu()

    def validation_losses(self) -> Tensor:
        """``[T]`` losses of inner validation patients drawn for this step, without dropout."""
        batch = self._read(self.val, self._draw(len(self.val), VALIDATION))
        self.parts.model.eval()
        try:
            return self._share(self._sums(batch))[0]
        finally:
            self.parts.model.train()

    def sample_losses(self, index: int) -> Tensor:
        """``[T]`` losses of training patients drawn for this step and index."""
        batch = self._read(self.train, self._draw(len(self.train), SAMPLE + index))
        return self._share(self._sums(batch))[0]

    def totals(self) -> LossSums:
        """Loss sums and label counts of the epoch, over all workers."""
        group = self.parts.group
        return LossSums(group.total(self.total.sums), group.total(self.total.counts))

    def _draw(self, count: int, stream: int) -> list[int]:
        sequence = np.random.SeedSequence([self.seed, self.epoch, self._step, stream])
        return np.random.default_rng(sequence).permutation(count)[: self.size].tolist()

    def _read(self, source: CaseList, rows: Sequence[int]) -> CaseBatch:
        """This worker's share of a global batch; without one, a case whose labels nobody sees."""
        own = share(rows, self.parts.group)
        cases = [source[i] for i in own or rows[:1]]
        most = self.params.bag_tiles
        tiles = [draw_tiles(len(case.bag), most, self.seed, self.epoch, case.patient) for case in cases]
        batch = collate(cases, self.targets, tiles)
        if not own:
            unseen = {task: torch.zeros_like(mask) for task, mask in batch.label_mask.items()}
            batch = dataclasses.replace(batch, label_mask=unseen)
        return batch.to(self.parts.device)

    def _sums(self, batch: CaseBatch) -> LossSums:
        with _autocast(self.params.amp, self.parts.device):
            outputs = self.parts.model(batch)
        return self.parts.losses(outputs, batch.targets, batch.label_mask)

    def _share(self, sums: LossSums) -> tuple[Tensor, Tensor]:
        """``[T]`` losses whose mean over workers is the mean over cases, and ``[T]`` counts of all workers."""
        group = self.parts.group
        counts = group.total(sums.counts.detach())
        return sums.sums * (group.world / counts.clamp(min=1)), counts


def non_finite(
    epoch: int, part: str, targets: Targets, means: Tensor, patients: Sequence[str]
) -> NonFiniteLossError:
    """The error that names epoch, tasks and patients."""
    bad = [
        head.name for head, mean in zip(targets.heads, means.tolist(), strict=True) if not math.isfinite(mean)
    ]
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
    """Dropout of the first forward pass once more; the generators are given back as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield


def _autocast(amp: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    wanted = amp == "bf16" or (amp == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else contextlib.nullcontext()
