"""Gradients of every task in one matrix, averaged over workers before anything is decided on them.

``autograd.grad`` through a module wrapped for data parallel training is not synchronised, and neither is its
second ``backward``; both are silent. Gradients are therefore taken on the bare module, one pass per task
through shared and task-specific parameters together, and reduced as one buffer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from equipoise.models.balancing.protocol import BalancedModel, Reduce, identity_reduce

#: Parameters whose products are summed at once.
BLOCK = 4096


def products(left: Tensor, right: Tensor) -> Tensor:
    """``[t, t]`` products of the rows of two matrices ``[t, P]``, float64 on the CPU."""
    # In blocks that fit the cache: four times as fast as one dot product per pair, and more exact, as only
    # a block is summed in single precision.
    whole = left.shape[1] // BLOCK * BLOCK
    chunks = [part[:, :whole].unflatten(1, (-1, BLOCK)).transpose(0, 1) for part in (left, right)]
    blocks = torch.bmm(chunks[0], chunks[1].transpose(1, 2)).double().sum(0)
    return (blocks + left[:, whole:].double() @ right[:, whole:].double().T).cpu()


class TaskGradients:
    """The ``[T, P + Q]`` matrix of task gradients: P shared parameters, then Q parameters of single tasks.

    Every row covers the task-specific parameters of all tasks: in the joint model tokens attend to each other, so
    that a task's loss also moves the others' tokens.

    Parameters
    ----------
    model
        The bare model.
    tasks
        In the order of the rows.
    reduce
        Mean over workers.

    Raises
    ------
    ValueError
        If the model is wrapped for data parallel training, or has a parameter that is neither shared nor a
        task's own.
    """

    def __init__(self, model: nn.Module, tasks: Sequence[str], reduce: Reduce = identity_reduce) -> None:
        if not hasattr(model, "shared_parameters"):
            raise ValueError(
                f"{type(model).__name__} does not say which parameters tasks share; a wrapped model "
                "(DistributedDataParallel) must be given bare, its gradients are reduced here"
            )
        balanced: BalancedModel = model  # type: ignore[assignment]
        self.shared = [p for p in balanced.shared_parameters() if p.requires_grad]
        specific = {id(p): p for task in tasks for p in balanced.task_parameters(task) if p.requires_grad}
        self.task_specific = list(specific.values())
        self.parameters: list[Tensor] = [*self.shared, *self.task_specific]
        known = {id(p) for p in self.parameters}
        unassigned = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in known]
        if unassigned:
            raise ValueError(
                f"parameters that are neither shared nor a task's own: {', '.join(unassigned[:5])}"
            )
        self.reduce = reduce
        self.width = sum(p.numel() for p in self.shared)
        self.size = sum(p.numel() for p in self.parameters)
        self._buffers: dict[int, Tensor] = {}
        self._direction: Tensor | None = None

    def collect(
        self, losses: Tensor, rows: Sequence[int], *, slot: int = 0, keep_graph: bool = False
    ) -> Tensor:
        """``[t, P + Q]`` gradients of ``losses[rows]``; one backward pass each, one reduction for all.

        The buffer belongs to ``slot`` and is overwritten by the next call. ``keep_graph`` keeps the graph for
        another pass.
        """
        jacobian = self._buffer(slot, len(losses))[: len(rows)]
        for i, row in enumerate(rows):
            graph = keep_graph or i < len(rows) - 1
            grads = torch.autograd.grad(losses[row], self.parameters, retain_graph=graph, allow_unused=True)
            self._write(jacobian[i], grads)
        return self.reduce(jacobian)

    def backward(self, loss: Tensor, own: Tensor | None = None) -> None:
        """Make the gradient of a loss, averaged over workers, the ``.grad`` of all parameters.

        With ``own``, tasks' own parameters get the gradient of that loss instead; its pass ends there.
        """
        if self.reduce is not identity_reduce:
            self.write(self.gradient(loss, own))
            return
        for parameter in self.parameters:
            parameter.grad = None
        if own is None:
            loss.backward()
            return
        if self.task_specific:
            own.backward(inputs=self.task_specific, retain_graph=True)
        if self.shared:
            loss.backward(inputs=self.shared)

    def gradient(self, loss: Tensor, own: Tensor | None = None) -> Tensor:
        """``[P + Q]`` gradient of a loss by all parameters, averaged over workers; ``own`` as in :meth:`backward`."""
        if own is None:
            grads = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        else:
            specific = (
                torch.autograd.grad(own, self.task_specific, retain_graph=True, allow_unused=True)
                if self.task_specific
                else ()
            )
            grads = (*torch.autograd.grad(loss, self.shared, allow_unused=True), *specific)
        flat = self.parameters[0].detach().new_empty(self.size)
        self._write(flat, grads)
        return self.reduce(flat)

    def gram(self, jacobian: Tensor, other: Tensor | None = None) -> Tensor:
        """``[t, t]`` products of gradients on shared parameters, float64 on the CPU."""
        left = jacobian[:, : self.width]
        return products(left, left if other is None else other[:, : self.width])

    def release_idle(self) -> None:
        """Take the ``.grad`` from a task's own parameters where it is exactly zero.

        The step then has nothing to say about them: their task has no label in the batch, a weight of 0, or
        censored patients only. With a gradient of zero, momentum and decoupled weight decay would still move them.
        """
        given = [p for p in self.task_specific if p.grad is not None]
        if not given:
            return
        largest = torch._foreach_norm([cast(Tensor, p.grad) for p in given], math.inf)
        for parameter, value in zip(given, torch.stack(list(largest)).tolist(), strict=True):
            if value == 0:
                parameter.grad = None

    def write(self, direction: Tensor) -> None:
        """Make ``[P + Q]`` the ``.grad`` of all parameters, without copying it."""
        start = 0
        for parameter in self.parameters:
            stop = start + parameter.numel()
            parameter.grad = direction[start:stop].view_as(parameter)
            start = stop

    def blank(self) -> Tensor:
        """The ``[P + Q]`` vector that a direction is written into; the same one in every step."""
        if self._direction is None:
            self._direction = self.parameters[0].detach().new_empty(self.size)
        return self._direction

    def shift(self, direction: Tensor, by: float) -> list[Tensor]:
        """Add ``by * direction`` to the parameters in place; returns copies of what they were."""
        before = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_add_(self.parameters, self._views(direction), alpha=by)
        return before

    def restore(self, before: list[Tensor]) -> None:
        """Put parameters back exactly as they were."""
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, before)

    def _buffer(self, slot: int, tasks: int) -> Tensor:
        if slot not in self._buffers:
            self._buffers[slot] = self.parameters[0].detach().new_empty(tasks, self.size)
        return self._buffers[slot]

    def _views(self, flat: Tensor) -> list[Tensor]:
        chunks = flat.split([p.numel() for p in self.parameters])
        return [piece.view_as(p) for piece, p in zip(chunks, self.parameters, strict=True)]

    def _write(self, flat: Tensor, grads: Sequence[Tensor | None]) -> None:
        views = self._views(flat)
        known = [(view, grad) for view, grad in zip(views, grads, strict=True) if grad is not None]
        torch._foreach_copy_([view for view, _ in known], [grad for _, grad in known])
        for view, grad in zip(views, grads, strict=True):
            if grad is None:
                view.zero_()
