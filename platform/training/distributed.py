"""Workers that train one model together: means, gathered rows, shared validation.

Every worker takes its shard of every global batch (its patients rank, rank + W, …), so that W workers together
see what one worker sees. Losses are scaled such that the mean over workers is the mean over labelled cases, and
gradients per task are averaged before conflicts are resolved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from equipoise.models.balancing import protocol
from equipoise.models.losses import identity_gather

Item = TypeVar("Item")


class WorkerGroup(Protocol):
    """The workers of one training, as one of them uses them."""

    rank: int
    world: int

    @property
    def reduce(self) -> protocol.Reduce:
        """Mean over workers, in place; :func:`~equipoise.models.balancing.protocol.identity_reduce` for one worker."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """Sum over workers."""
        ...

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all workers, concatenated in the order of ranks.

        Gradients flow back to the worker's own rows, summed over the losses of all workers: as each computes the
        same loss from the same rows, that is W times the own gradient, and the mean over workers is exact.
        """
        ...

    def gather_objects(self, item: Any) -> list[Any]:
        """The items of all workers, in the order of ranks."""
        ...


class SingleWorker:
    """A single worker."""

    rank = 0
    world = 1

    @property
    def reduce(self) -> protocol.Reduce:
        """Identity."""
        return protocol.identity_reduce

    def total(self, values: Tensor) -> Tensor:
        """Identity."""
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """Identity."""
        return identity_gather(rows)

    def gather_objects(self, item: Any) -> list[Any]:
        """A list of one."""
        return [item]


class ProcessGroup:
    """Workers of ``torch.distributed`` (gloo on CPU, nccl on GPU); the process group must exist.

    Raises
    ------
    RuntimeError
        If no process group was initialised.
    """

    def __init__(self) -> None:
        if not torch.distributed.is_initialized():
            raise RuntimeError("no process group: torch.distributed.init_process_group was not called")
        self.rank = torch.distributed.get_rank()
        self.world = torch.distributed.get_world_size()

    @property
    def reduce(self) -> protocol.Reduce:
        """Mean over workers, in place."""
        return self._mean

    def _mean(self, values: Tensor) -> Tensor:
        torch.distributed.all_reduce(values)
        return values.div_(self.world)

    def total(self, values: Tensor) -> Tensor:
        """Sum over workers."""
        values = values.clone()
        torch.distributed.all_reduce(values)
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all workers, with gradients."""
        return _Gather.apply(rows, self.rank, self.world)

    def gather_objects(self, item: Any) -> list[Any]:
        """The items of all workers, in the order of ranks; workers are our own processes, so pickling is safe."""
        result: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(result, item)
        return result


class _Gather(torch.autograd.Function):
    """All workers' rows; the number of rows may differ between workers."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, world: int) -> Tensor:
        count = torch.tensor([len(rows)], device=rows.device)
        counts = [torch.zeros_like(count) for _ in range(world)]
        torch.distributed.all_gather(counts, count)
        sizes = [int(c) for c in counts]
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in range(world)]
        torch.distributed.all_gather(gathered, padded)
        ctx.world, ctx.start, ctx.stop = world, sum(sizes[:rank]), sum(sizes[: rank + 1])
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][ctx.start : ctx.stop] * ctx.world, None, None


SINGLE_WORKER = SingleWorker()


def shard(items: Sequence[Item], group: WorkerGroup) -> list[Item]:
    """The items of this worker: every W-th, starting at its rank."""
    return list(items[group.rank :: group.world])
