"""Workers that train one model together: means, gathered rows, shared validation.

Every worker takes its share of every global batch (patients rank, rank + W, … of it), so that W workers see
what one worker sees. Losses are scaled such that the mean over workers is the mean over labelled cases, and
gradients per task are averaged before conflicts are resolved (``reference``: DESIGN, flow 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from equipoise.models.balancing import protocol
from equipoise.models.losses import alone

Item = TypeVar("Item")


class Group(Protocol):
    """The workers of one training, seen from one of them."""

    rank: int
    world: int

    @property
    def reduce(self) -> protocol.Reduce:
        """Mean over workers, in place; :func:`~equipoise.models.balancing.protocol.alone` for one worker."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """Sum over workers."""
        ...

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all workers, one worker's behind the other's.

        Gradients flow back to one's own rows, summed over the losses of all workers: as each computes the same
        loss from the same rows, that is W times one's own gradient, and the mean over workers is exact.
        """
        ...

    def exchange(self, item: Any) -> list[Any]:
        """What each worker gave, by rank."""
        ...


class Alone:
    """A single worker."""

    rank = 0
    world = 1

    @property
    def reduce(self) -> protocol.Reduce:
        """Identity."""
        return protocol.alone

    def total(self, values: Tensor) -> Tensor:
        """Identity."""
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """Identity."""
        return alone(rows)

    def exchange(self, item: Any) -> list[Any]:
        """A list of one."""
        return [item]


class ProcessGroup:
    """Workers of ``torch.distributed`` (gloo on CPU, nccl on GPU), whose group exists already.

    Raises
    ------
    RuntimeError
        If no process group was set up.
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

    def exchange(self, item: Any) -> list[Any]:
        """What each worker gave, by rank; workers are processes of one's own, so pickling is safe."""
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, item)
        return found


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
        found = [torch.empty_like(padded) for _ in range(world)]
        torch.distributed.all_gather(found, padded)
        ctx.world, ctx.start, ctx.stop = world, sum(sizes[:rank]), sum(sizes[: rank + 1])
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][ctx.start : ctx.stop] * ctx.world, None, None


ALONE = Alone()


def share(items: Sequence[Item], group: Group) -> list[Item]:
    """The items of this worker: every W-th, from its rank on."""
    return list(items[group.rank :: group.world])
