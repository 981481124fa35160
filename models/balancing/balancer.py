"""The balancer: losses and gradients of several tasks become one update.

It runs the step written down in :mod:`equipoise.models.balancing.protocol`: weighting, gradients of every task
averaged over workers, aggregation, and what learned weightings need after the step.

Two settings make a step with many tasks cheap, and both keep the loss weights of the step. ``at="representation"``
takes the gradients of the tasks at the representation that they share instead of at the parameters (MGDA-UB, Sener
and Koltun, NeurIPS 2018, arXiv 1810.04650, section 3.3; LibMTL's ``rep_grad``): one pass per task ends there, and a
single pass goes on to the parameters. ``every=k`` takes them in every k-th step
(:mod:`~equipoise.models.balancing.refresh`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from equipoise.models.balancing.gradients import TaskGradients, products
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
from equipoise.models.balancing.record import StepRecord
from equipoise.models.balancing.refresh import Refresh
from equipoise.models.balancing.weighting import positive
from equipoise.models.base import SharedRepresentation

Rescale = Literal["none", "sum_norm"]
Place = Literal["parameters", "representation"]


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
    workers
        How many there are; products of gradients at the representation are sums over the patients of all of them.
    rescale
        ``sum_norm`` gives the combined direction the norm of the sum of the weighted gradients, so that one
        learning rate means the same for every aggregator (their norms differ by factors up to 400).
    at
        Where gradients of tasks are compared. At the ``representation``, coefficients act on all shared parameters;
        an aggregator that works coordinate by coordinate gives its direction to the parameters before the
        representation, and shared parameters behind it get the plain gradient of the weighted sum.
    every
        Steps for which coefficients are kept; 1 takes new ones in every step.

    Raises
    ------
    ValueError
        If the model is wrapped for data parallel training, a parameter is neither shared nor a task's, the method
        compares gradients on shared parameters and there are none, or it cannot work ``at`` the representation or
        keep coefficients.
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[str],
        weighting: LossWeighting,
        aggregator: GradAggregator,
        *,
        reduce: Reduce = identity_reduce,
        workers: int = 1,
        rescale: Rescale = "none",
        at: Place = "parameters",
        every: int = 1,
    ) -> None:
        self.tasks = tuple(tasks)
        self.weighting = weighting
        self.aggregator = aggregator
        self.reduce = reduce
        self.workers = workers
        self.rescale = rescale
        self.at = at
        self.refresh = Refresh(every)
        self.gradients = TaskGradients(model, self.tasks, reduce)
        #: Aggregators of other packages need not say it.
        self.log_losses: bool = getattr(aggregator, "log_losses", False)
        compares = aggregator.kind != "none" or "gram" in weighting.needs
        if compares and len(self.tasks) > 1 and not self.gradients.shared:
            raise ValueError(
                f"the tasks share no parameter of this {type(model).__name__}: there is nothing to balance; "
                "use a loss weighting that looks at losses, with aggregation none"
            )
        if every > 1 and aggregator.kind == "jacobian":
            raise ValueError("an aggregator that works coordinate by coordinate has no coefficients to keep")
        if at == "representation" and ("validation" in weighting.needs or "samples" in aggregator.needs):
            raise ValueError(
                "further batches have representations of their own: compare gradients at parameters"
            )
        own = getattr(model, "representation", None)
        self.kept = own if isinstance(own, SharedRepresentation) else None
        if self.kept is not None:
            self.kept.kept = at == "representation"

    def backward(
        self,
        losses: Tensor,
        means: Tensor,
        context: StepContext,
        closures: LossClosures,
        *,
        probe: bool = False,
        representation: Tensor | None = None,
    ) -> StepRecord:
        """Set ``.grad`` of every parameter.

        A task's own parameters that the step has nothing to say about get none, so that no optimiser moves them.

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
        representation
            What the losses were computed from, for a balancer ``at`` the representation; if not given, what the
            model passed through its ``representation`` in the last forward pass.

        Raises
        ------
        ValueError
            If the representation is needed and there is none.
        """
        weights = torch.where(context.present, self.weighting.weights(means, context).double(), 0.0)
        if self.log_losses:
            name = type(self.aggregator).__name__
            weights = weights / torch.where(context.present, positive(means, name), 1.0)
        if self.at == "representation" and representation is None and self.kept is not None:
            representation = self.kept.take()
        rows = tuple(torch.nonzero(context.present).flatten().tolist())
        counted = tuple(row for row in rows if weights[row] != 0)
        aggregates = self.aggregator.kind != "none" and len(rows) > 1
        if not (aggregates or self.weighting.needs & {"gram", "validation"}):
            seen = self.at == "parameters" or representation is not None  # tasks may share nothing
            gram = self._probed(losses, rows, representation) if probe and seen and len(rows) > 1 else None
            record = self._in_one_pass(losses, weights, gram)
        elif not self.refresh.due(counted):
            kept = torch.ones_like(weights)
            kept[list(counted)] = self.refresh.coefficients(counted)
            record = self._weighted(losses, weights, kept)
        else:
            context = replace(context, rows=rows)
            if self.at == "representation":
                record = self._at_representation(losses, means, weights, context, representation)
            else:
                record = self._task_by_task(losses, means, weights, context, closures)
        self.gradients.release_idle()
        return replace(record, loss_weights=weights)

    def learn(self, means: Tensor, context: StepContext, record: StepRecord, closures: LossClosures) -> None:
        """Let the weighting learn, if the step took what it learns from; after the optimiser's step."""
        needs = self.weighting.needs
        if "gram" in needs and record.gram is None:
            return
        if "validation" in needs and record.hypergradient is None:
            return
        if needs & {"gram", "validation"} and context.total_steps:
            context = replace(context, total_steps=-(-context.total_steps // self.refresh.every))
        after = closures.second_forward_losses() if "second_forward" in needs else None
        self.weighting.learn(means, context, Feedback(record.gram, record.hypergradient, after))

    def state_dict(self) -> dict[str, Any]:
        """State of both slots, and of what is kept between steps."""
        return {
            "weighting": self.weighting.state_dict(),
            "aggregator": self.aggregator.state_dict(),
            "refresh": self.refresh.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.weighting.load_state_dict(state["weighting"])
        self.aggregator.load_state_dict(state["aggregator"])
        if "refresh" in state:  # states of earlier versions took gradients in every step
            self.refresh.load_state_dict(state["refresh"])

    def _probed(self, losses: Tensor, rows: tuple[int, ...], representation: Tensor | None) -> Tensor:
        """``[T, T]`` products for the log alone."""
        if self.at == "representation":
            gradients = self._representation_gradients(losses, rows, representation)
            return self._whole(self._products(gradients), rows)
        return self._whole(self.gradients.gram(self.gradients.collect(losses, rows, keep_graph=True)), rows)

    def _in_one_pass(self, losses: Tensor, weights: Tensor, gram: Tensor | None) -> StepRecord:
        """The gradient of the weighted sum: as cheap as a single task."""
        self.gradients.backward((losses * weights.to(losses)).sum())
        return StepRecord(weights, gram)

    def _weighted(
        self, losses: Tensor, weights: Tensor, coefficients: Tensor, gram: Tensor | None = None
    ) -> StepRecord:
        """Σ c_k w_k g_k for shared parameters, Σ w_k g_k for a task's own; weights and coefficients ``[T]``.

        The pass for a task's own parameters stops there, so that it is short.
        """
        if bool(((coefficients == 1) | (weights == 0)).all()):
            return self._in_one_pass(losses, weights, gram)
        effective = coefficients * weights
        self.gradients.backward(
            (losses * effective.to(losses)).sum(), own=(losses * weights.to(losses)).sum()
        )
        return StepRecord(effective, gram)

    def _task_by_task(
        self, losses: Tensor, means: Tensor, weights: Tensor, context: StepContext, closures: LossClosures
    ) -> StepRecord:
        """Gradients of every present task, one direction for shared parameters, the sum for task-specific ones."""
        rows, width = list(context.rows), self.gradients.width
        jacobian = self.gradients.collect(losses, rows)
        gram = self.gradients.gram(jacobian)
        w = weights[rows]
        direction = self.gradients.blank()
        hypergradient = None
        if "validation" in self.weighting.needs:
            torch.mv(jacobian.T, w.to(jacobian), out=direction)
            hypergradient = self._hypergradient(jacobian, direction, context, closures)
        torch.mv(jacobian[:, width:].T, w.to(jacobian), out=direction[width:])
        coefficients = torch.ones_like(w)
        if self.aggregator.kind == "jacobian" and len(rows) > 1:
            method = cast(JacobianAggregator, self.aggregator)
            scaled = jacobian[:, :width].mul_(w.to(jacobian)[:, None])
            direction[:width] = method.direction(scaled, means[rows], context)
            direction[:width] *= self._rescaling(_weighted_gram(gram, w), direction[:width].norm())
        else:
            coefficients = self._coefficients(gram, means, w, context, closures)
            torch.mv(jacobian[:, :width].T, (coefficients * w).to(jacobian), out=direction[:width])
        self.gradients.write(direction)
        effective = torch.zeros_like(weights)
        effective[rows] = coefficients * w
        return StepRecord(effective, self._whole(gram, context.rows), hypergradient)

    def _at_representation(
        self,
        losses: Tensor,
        means: Tensor,
        weights: Tensor,
        context: StepContext,
        representation: Tensor | None,
    ) -> StepRecord:
        """Gradients of every present task at what they share, then one pass to the parameters."""
        rows = list(context.rows)
        jacobian = self._representation_gradients(losses, context.rows, representation)
        gram = self._products(jacobian)
        whole, w = self._whole(gram, context.rows), weights[rows]
        if self.aggregator.kind == "jacobian" and len(rows) > 1:
            assert representation is not None
            method = cast(JacobianAggregator, self.aggregator)
            direction = method.direction(jacobian.mul_(w.to(jacobian)[:, None]), means[rows], context)
            square = self.reduce(direction.double().square().sum()) / self.workers
            direction *= self._rescaling(_weighted_gram(gram, w), square.sqrt())
            given = direction.view_as(representation).to(representation)
            hook = representation.register_hook(lambda _: given)
            try:
                return self._in_one_pass(losses, weights, whole)
            finally:
                hook.remove()
        coefficients = torch.ones_like(weights)
        coefficients[rows] = self._coefficients(gram, means, w, context, None)
        return self._weighted(losses, weights, coefficients, whole)

    def _representation_gradients(
        self, losses: Tensor, rows: Sequence[int], representation: Tensor | None
    ) -> Tensor:
        """``[t, R]`` gradients of ``losses[rows]`` at this worker's representation; the graph is kept."""
        if representation is None:
            raise ValueError(
                "balancing at the representation needs one that all tasks are computed from, and the model says of "
                "none or it depends on no parameter: write at: parameters"
            )
        grads = [
            torch.autograd.grad(losses[row], representation, retain_graph=True, allow_unused=True)[0]
            for row in rows
        ]
        absent = torch.zeros_like(representation)
        rows_tR = torch.stack([(absent if grad is None else grad).flatten() for grad in grads])
        return rows_tR.to(losses.dtype)  # half precision under autocast

    def _products(self, gradients: Tensor) -> Tensor:
        """``[t, t]`` products over the patients of all workers.

        A worker's losses are W times its share of the mean, of which its own patients have the gradient.
        """
        local = products(gradients, gradients).to(gradients.device)
        return (self.reduce(local) / self.workers).cpu()

    def _coefficients(
        self, gram: Tensor, means: Tensor, w: Tensor, context: StepContext, closures: LossClosures | None
    ) -> Tensor:
        """``[t]`` coefficients of the weighted gradients, rescaled; ones where there is nothing to aggregate.

        A task whose gradient is zero is treated as one that is absent: it gets 0, and the others get what they would
        without it.
        """
        if self.aggregator.kind == "none":
            self.refresh.keep(context.rows, torch.ones_like(w))
            return torch.ones_like(w)
        weighted = _weighted_gram(gram, w)
        result = torch.zeros_like(w)
        here = torch.nonzero(weighted.diagonal() > 0).flatten()
        rows = [context.rows[i] for i in here.tolist()]
        if len(here) < 2:
            result[here] = 1.0
            return result
        method = cast(GramAggregator, self.aggregator)
        if "samples" in method.needs:
            assert closures is not None
            first, second = (
                self.gradients.collect(closures.sample_losses(i), rows, slot=1 + i) for i in range(2)
            )
            context = replace(context, cross_gram=_weighted_gram(self.gradients.gram(first, second), w[here]))
        context = replace(context, rows=tuple(rows))
        inner = weighted[here[:, None], here[None, :]]
        result[here] = method.coefficients(inner, means[rows], context).double()
        result *= self._rescaling(weighted, (result @ weighted @ result).clamp(min=0).sqrt())
        self.refresh.keep(rows, result[here])
        return result

    def _rescaling(self, weighted: Tensor, norm: Tensor) -> float:
        """The factor that gives a direction of this norm the norm of the sum, if asked for."""
        if self.rescale == "none" or not norm > 0:
            return 1.0
        return float(weighted.sum().clamp(min=0).sqrt() / norm.double().cpu())

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


def _weighted_gram(gram: Tensor, w: Tensor) -> Tensor:
    """Products of weighted gradients."""
    return gram * w[:, None] * w[None, :]
