"""What balanced steps did: weights, products of gradients, and their means over an epoch for the log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepRecord:
    """What a step did, for the log and for :meth:`Balancer.learn`.

    Parameters
    ----------
    weights
        ``[T]`` how much each task's gradient on shared parameters counted in the end: loss weight times
        aggregation coefficient (the loss weight only, where aggregation works coordinate by coordinate).
    gram
        ``[T, T]`` products of the gradients of the unweighted losses, zero rows for absent tasks; None where
        they were not taken.
    loss_weights
        ``[T]`` of the weighting alone.
    hypergradient
        ``[T]``, for a weighting that learns from validation.
    """

    weights: Tensor
    gram: Tensor | None = None
    hypergradient: Tensor | None = None
    loss_weights: Tensor | None = None


def cosines(gram: Tensor) -> Tensor:
    """``[T, T]`` cosines between tasks' gradients, NaN where one of them is zero."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    scale = norms[:, None] * norms[None, :]
    return torch.where(scale > 0, gram / scale, torch.nan)


class EpochRecord:
    """Means over the steps of an epoch in which a task (a pair of tasks) was present.

    Parameters
    ----------
    tasks
        Names of the T tasks, in the order of the steps' tensors.
    aggregates
        Whether an aggregator acts on the weighted gradients, so that the weights of the losses are a record of their
        own.
    """

    def __init__(self, tasks: Sequence[str], *, aggregates: bool = False) -> None:
        count = len(tasks)
        self.tasks = tuple(tasks)
        self.aggregates = aggregates
        self.loss_weights = torch.zeros(count, dtype=torch.float64)
        self.weights = torch.zeros(count, dtype=torch.float64)
        self.steps = torch.zeros(count, dtype=torch.float64)
        self.cosine = torch.zeros(count, count, dtype=torch.float64)
        self.conflicts = torch.zeros(count, count, dtype=torch.float64)
        self.pairs = torch.zeros(count, count, dtype=torch.float64)

    def add(self, record: StepRecord, present: torch.Tensor) -> None:
        """Add a step to the means."""
        self.weights += torch.where(present, record.weights, 0.0)
        if record.loss_weights is not None:
            self.loss_weights += torch.where(present, record.loss_weights, 0.0)
        self.steps += present
        if record.gram is None:
            return
        cosine = cosines(record.gram)
        known = ~cosine.isnan()
        self.cosine += torch.where(known, cosine, 0.0)
        self.conflicts += known & (cosine < 0)
        self.pairs += known

    def row(self) -> dict[str, float]:
        """``weight/<task>``, and ``loss_weight/<task>`` where an aggregator acts; for two tasks or more
        ``conflict_rate`` and ``cosine/<a>|<b>``; NaN where never measured.

        The conflict rate is the share of (step, pair of tasks) in which two gradients on shared parameters
        had a negative product.
        """
        weights = (self.weights / self.steps).tolist()
        row = {f"weight/{task}": value for task, value in zip(self.tasks, weights, strict=True)}
        if self.aggregates:
            own = (self.loss_weights / self.steps).tolist()
            row |= {f"loss_weight/{task}": value for task, value in zip(self.tasks, own, strict=True)}
        if len(self.tasks) < 2:
            return row
        seen, conflicts = self.pairs.triu(1).sum().item(), self.conflicts.triu(1).sum().item()
        row["conflict_rate"] = conflicts / seen if seen else math.nan
        mean = (self.cosine / self.pairs).tolist()
        for i, j in combinations(range(len(self.tasks)), 2):
            row[f"cosine/{self.tasks[i]}|{self.tasks[j]}"] = mean[i][j]
        return row
