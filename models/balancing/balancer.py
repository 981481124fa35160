"""The balancer: losses and gradients of several tasks become one update.

It runs the step written down in :mod:`equipoise.models.balancing.protocol`: weighting, gradients of every task
averaged over workers, aggregation, and what learned weightings need after the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from equipoise.models.balancing.gradients import TaskGradients
from equipoise.models.balancing.protocol import (
    BilevelWeighting,
    Feedback,
    GradAggregator,
    GramAggregator,
    JacobianAggregator,
    LossClosures,
    LossWeighting,
    Reduce,
    StepContext,
    identity_reduce,
)

Rescale = Literal["none", "sum_norm"]


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
    hypergradient
        ``[T]``, for a weighting that learns from validation.
    """

    weights: Tensor
    gram: Tensor | None = None
    hypergradient: Tensor | None = None


class Balancer:
    """One loss weighting and one gradient aggregator over one model.

    Parameters
    ----------
    model
        The bare model, on its device.
    tasks
        Names of the T tasks, in the order of losses.
    weighting, aggregator
        The two slots.
    reduce
        Mean over workers.
    rescale
        ``sum_norm`` gives the combined direction the norm of the sum of the weighted gradients, so that one
        learning rate means the same for every aggregator (their norms differ by factors up to 400).

    Raises
    ------
    ValueError
        If the model is wrapped for data parallel training, a parameter is neither shared nor a task's,
        or the method compares gradients on shared parameters and there are none.
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[str],
        weighting: LossWeighting,
        aggregator: GradAggregator,
        *,
        reduce: Reduce = identity_reduce,
        rescale: Rescale = "none",
    ) -> None:
        self.tasks = tuple(tasks)
        self.weighting = weighting
        self.aggregator = aggregator
        self.reduce = reduce
        self.rescale = rescale
        self.gradients = TaskGradients(model, self.tasks, reduce)
        compares = aggregator.kind != "none" or "gram" in weighting.needs
        if compares and len(self.tasks) > 1 and not self.gradients.shared:
            raise ValueError(
                f"the tasks share no parameter of this {type(model).__name__}: there is nothing to balance; "
                "use a loss weighting that looks at losses, with aggregation none"
            )

    def backward(
        self,
        losses: Tensor,
        means: Tensor,
        context: StepContext,
        closures: LossClosures,
        *,
        probe: bool = False,
    ) -> StepRecord:
        """Set ``.grad`` of every parameter.

        Parameters
        ----------
        losses
            ``[T]`` with graph: this worker's share, whose mean over workers is ``means``.
        means
            ``[T]`` float64 on the CPU, without graph; the same at every worker.
        context, closures
            State of the training, and closures of the loop for more losses.
        probe
            Take the products of gradients for the log even where the method does not need them.
        """
        weights = torch.where(context.present, self.weighting.weights(means, context).double(), 0.0)
        rows = tuple(torch.nonzero(context.present).flatten().tolist())
        aggregates = self.aggregator.kind != "none" and len(rows) > 1
        if not (aggregates or self.weighting.needs & {"gram", "validation"}):
            return self._in_one_pass(losses, weights, rows, probe=probe)
        return self._task_by_task(losses, means, weights, replace(context, rows=rows), closures)

    def learn(self, means: Tensor, context: StepContext, record: StepRecord, closures: LossClosures) -> None:
        """Let the weighting learn; after the optimiser's step."""
        after = closures.second_forward_losses() if "second_forward" in self.weighting.needs else None
        self.weighting.learn(means, context, Feedback(record.gram, record.hypergradient, after))

    def state_dict(self) -> dict[str, Any]:
        """State of both slots."""
        return {"weighting": self.weighting.state_dict(), "aggregator": self.aggregator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.weighting.load_state_dict(state["weighting"])
        self.aggregator.load_state_dict(state["aggregator"])

    def _in_one_pass(
        self, losses: Tensor, weights: Tensor, rows: tuple[int, ...], *, probe: bool
    ) -> StepRecord:
        """The gradient of the weighted sum: as cheap as a single task."""
        gram = None
        if probe and len(rows) > 1:
            gram = self._whole(
                self.gradients.gram(self.gradients.collect(losses, rows, keep_graph=True)), rows
            )
        total = (losses * weights.to(losses)).sum()
        if self.reduce is identity_reduce:
            for parameter in self.gradients.parameters:
                parameter.grad = None
            total.backward()
        else:
            self.gradients.write(self.gradients.gradient(total))
        return StepRecord(weights, gram)

    def _task_by_task(
        self, losses: Tensor, means: Tensor, weights: Tensor, context: StepContext, closures: LossClosures
    ) -> StepRecord:
        """Gradients of every present task, one direction for shared parameters, the sum for task-specific ones."""
        rows, width = list(context.rows), self.gradients.width
        jacobian = self.gradients.collect(losses, rows)
        gram = self.gradients.gram(jacobian)
        w = weights[rows]
        weighted = gram * w[:, None] * w[None, :]
        direction = self.gradients.blank()
        hypergradient = None
        if "validation" in self.weighting.needs:
            torch.mv(jacobian.T, w.to(jacobian), out=direction)
            hypergradient = self._hypergradient(jacobian, direction, context, closures)
        aggregates = len(rows) > 1 and self.aggregator.kind != "none"
        coefficients, norm = torch.ones_like(w), torch.zeros(())
        if aggregates and self.aggregator.kind == "jacobian":
            method = cast(JacobianAggregator, self.aggregator)
            torch.mv(jacobian[:, width:].T, w.to(jacobian), out=direction[width:])
            scaled = jacobian[:, :width].mul_(w.to(jacobian)[:, None])
            direction[:width] = method.direction(scaled, means[rows], context)
            norm = direction[:width].norm().double().cpu()
        else:
            if aggregates:
                coefficients = self._coefficients(weighted, means[rows], w, context, closures)
                norm = (coefficients @ weighted @ coefficients).clamp(min=0).sqrt()
            torch.mv(jacobian[:, width:].T, w.to(jacobian), out=direction[width:])
            torch.mv(jacobian[:, :width].T, (coefficients * w).to(jacobian), out=direction[:width])
        if aggregates and self.rescale == "sum_norm" and norm > 0:
            direction[:width] *= float(weighted.sum().clamp(min=0).sqrt() / norm)
        self.gradients.write(direction)
        effective = torch.zeros_like(weights)
        effective[rows] = coefficients * w
        return StepRecord(effective, self._whole(gram, context.rows), hypergradient)

    def _coefficients(
        self, weighted: Tensor, means: Tensor, w: Tensor, context: StepContext, closures: LossClosures
    ) -> Tensor:
        method = cast(GramAggregator, self.aggregator)
        if "samples" in method.needs:
            first, second = (
                self.gradients.collect(closures.sample_losses(i), context.rows, slot=1 + i) for i in range(2)
            )
            cross = self.gradients.gram(first, second) * w[:, None] * w[None, :]
            context = replace(context, cross_gram=cross)
        return method.coefficients(weighted, means, context).double()

    def _hypergradient(
        self, jacobian: Tensor, step: Tensor, context: StepContext, closures: LossClosures
    ) -> Tensor:
        r"""Derivative of the validation loss by each weight through one step of gradient descent.

        With θ' = θ − α Σ_k w_k g_k and d = ∇ Σ_primary L_val(θ'), the chain rule gives exactly
        ∂L_val/∂w_k = −α ⟨g_k, d⟩: no finite differences. g and d cover all parameters the step moves.
        """
        primary = cast(BilevelWeighting, self.weighting).primary
        before = self.gradients.shift(step, -context.lr)
        try:
            losses = closures.validation_losses()
            d = self.gradients.gradient((losses * primary.to(losses)).sum())
        finally:
            self.gradients.restore(before)
        hypergradient = torch.zeros(len(self.tasks), dtype=torch.float64)
        hypergradient[list(context.rows)] = -context.lr * torch.mv(jacobian, d).double().cpu()
        return hypergradient

    def _whole(self, gram: Tensor, rows: tuple[int, ...]) -> Tensor:
        """``[T, T]`` with zeros for absent tasks."""
        whole = torch.zeros(len(self.tasks), len(self.tasks), dtype=gram.dtype)
        whole[torch.tensor(rows)[:, None], torch.tensor(rows)[None, :]] = gram
        return whole


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
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        count = len(tasks)
        self.tasks = tuple(tasks)
        self.weights = torch.zeros(count, dtype=torch.float64)
        self.steps = torch.zeros(count, dtype=torch.float64)
        self.cosine = torch.zeros(count, count, dtype=torch.float64)
        self.conflicts = torch.zeros(count, count, dtype=torch.float64)
        self.pairs = torch.zeros(count, count, dtype=torch.float64)

    def add(self, record: StepRecord, present: torch.Tensor) -> None:
        """Add a step to the means."""
        self.weights += torch.where(present, record.weights, 0.0)
        self.steps += present
        if record.gram is None:
            return
        cosine = cosines(record.gram)
        known = ~cosine.isnan()
        self.cosine += torch.where(known, cosine, 0.0)
        self.conflicts += known & (cosine < 0)
        self.pairs += known

    def row(self) -> dict[str, float]:
        """``weight/<task>``; for two tasks or more ``conflict_rate`` and ``cosine/<a>|<b>``; NaN where never
        measured.

        The conflict rate is the share of (step, pair of tasks) in which two gradients on shared parameters
        had a negative product.
        """
        weights = (self.weights / self.steps).tolist()
        row = {f"weight/{task}": value for task, value in zip(self.tasks, weights, strict=True)}
        if len(self.tasks) < 2:
            return row
        seen, conflicts = self.pairs.triu(1).sum().item(), self.conflicts.triu(1).sum().item()
        row["conflict_rate"] = conflicts / seen if seen else math.nan
        mean = (self.cosine / self.pairs).tolist()
        for i, j in combinations(range(len(self.tasks)), 2):
            row[f"cosine/{self.tasks[i]}|{self.tasks[j]}"] = mean[i][j]
        return row
