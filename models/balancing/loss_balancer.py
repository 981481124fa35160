"""Balancing in one's own training loop: any ``nn.Module``, any losses, every method of this folder.

:class:`~equipoise.models.balancing.balancer.Balancer` runs a balanced step and asks its caller for what a training
loop knows: means over workers, which tasks are present, where training stands, which parameters tasks share.
:class:`LossBalancer` answers these questions for a plain loop over batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from equipoise.models.balancing.balancer import Balancer, Place, Rescale
from equipoise.models.balancing.entries import Need
from equipoise.models.balancing.protocol import (
    GradAggregator,
    LossWeighting,
    Reduce,
    StepContext,
    identity_reduce,
)
from equipoise.models.balancing.record import StepRecord
from equipoise.models.balancing.refresh import Refresh
from equipoise.models.base import SharedRepresentation

#: Losses of a step: task → scalar, where a task without labels in the batch is absent or None; or scalars in the
#: order of the tasks.
Losses = Mapping[str, Tensor | None] | Sequence[Tensor | None] | Tensor

#: Returns losses of a batch of its choice at the current parameters.
LossFunction = Callable[[], Losses]

#: What a method needs → the argument of :meth:`LossBalancer.step` that gives it, and what it has to return.
ARGUMENTS: dict[Need, tuple[str, str]] = {
    "second_forward": ("forward", "losses of the same batch"),
    "validation": ("validation", "losses of a validation batch"),
    "samples": ("samples", "losses of another training batch on every call"),
}


class Optimizer(Protocol):
    """What :meth:`LossBalancer.step` uses of an optimiser."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any: ...


class LossBalancer:
    """One balancing method for the losses of several tasks, to be called in one's own training loop.

    Built by :func:`equipoise.api.balancer` from the names of a method. A step takes the place of
    ``loss.backward()`` and ``optimizer.step()``::

        balance = equipoise.api.balancer(model, ["grade", "msi"], "uncertainty+pcgrad")
        for epoch in range(epochs):
            for x, grade, msi in loader:
                out = model(x)
                balance.step({"grade": mse(out[:, 0], grade), "msi": bce(out[:, 1], msi)}, optimizer)
            balance.end_epoch()

    Parameters
    ----------
    model
        The bare module, on its device. A module wrapped for data parallel training is refused: its gradients would
        be averaged after conflicts are resolved; give the module inside it, and ``reduce``.
    tasks
        Names of the T tasks.
    weighting, aggregator
        The two slots of the method.
    name
        Of the method, for messages and the checkpoint.
    shared
        Parameters that the tasks share. If not given: ``model.shared_parameters()`` where the model has it and
        ``task_parameters(task)``, otherwise those that no loss or at least two of the first step's losses depend
        on; a parameter that a single loss depends on belongs to its task. Loss weights act on all parameters,
        gradient aggregators on the shared ones.
    nonnegative
        Refuse negative losses, for methods that take logarithms or ratios of losses.
    rescale
        ``sum_norm`` gives the direction of every aggregator the norm of the summed gradients.
    at
        ``representation`` compares gradients at the tensor that :meth:`step` is given as ``representation``.
    every
        Steps for which the coefficients of an aggregator are kept.
    seed
        Of methods that draw random numbers.
    reduce
        Mean over workers of a tensor; the identity for a single process.
    workers
        How many workers there are.
    total_steps
        Of the whole training, where it is known; weightings that learn take larger steps in a short one.

    Raises
    ------
    ValueError
        If there are no tasks, a name comes twice, or the model is wrapped.
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[str],
        weighting: LossWeighting,
        aggregator: GradAggregator,
        *,
        name: str,
        shared: Iterable[nn.Parameter] | None = None,
        nonnegative: bool = False,
        rescale: Rescale = "none",
        at: Place = "parameters",
        every: int = 1,
        seed: int = 0,
        reduce: Reduce = identity_reduce,
        workers: int = 1,
        total_steps: int | None = None,
    ) -> None:
        self.tasks = tuple(tasks)
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"a balancer needs at least one loss and distinct names, not {list(self.tasks)}")
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            raise ValueError(f"give the module inside {type(model).__name__} (model.module), and reduce=")
        self.model, self.weighting, self.aggregator = model, weighting, aggregator
        self.name, self.rescale, self.seed, self.reduce = name, rescale, seed, reduce
        self.at, self.workers, self.refresh, self.total_steps = at, workers, Refresh(every), total_steps
        self.epoch = self.steps = 0
        self.record: StepRecord | None = None
        self.nonnegative = nonnegative
        if isinstance(kept := getattr(model, "representation", None), SharedRepresentation):
            kept.kept = at == "representation"  # now: losses of the first step exist before the balancer
        self._shared = None if shared is None else list(shared)
        self._balancer: Balancer | None = None
        self._sums = torch.zeros(2, len(self.tasks), dtype=torch.float64)  # losses and steps of this epoch

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the callables that :meth:`step` needs with this method."""
        asked = self.weighting.needs | self.aggregator.needs
        return tuple(argument for need, (argument, _) in ARGUMENTS.items() if need in asked)

    @property
    def weights(self) -> dict[str, float]:
        """task → how much its gradient counted on shared parameters in the last step; 0 for an absent task.

        Loss weight times coefficient of the aggregator. Empty before the first step.
        """
        return {} if self.record is None else dict(zip(self.tasks, self.record.weights.tolist(), strict=True))

    def step(
        self,
        losses: Losses,
        optimizer: Optimizer,
        *,
        forward: LossFunction | None = None,
        validation: LossFunction | None = None,
        samples: LossFunction | None = None,
        representation: Tensor | None = None,
    ) -> StepRecord:
        """Set the gradients of all parameters, step the optimiser, let the method learn.

        Parameters
        ----------
        losses
            Mean loss of every task in this batch, with graph; the tasks that the batch has no label of are absent
            or None.
        optimizer
            Over the model's parameters. Gradients of the step before are overwritten, so that ``zero_grad`` is not
            needed.
        forward
            For ``famo``: losses of the *same* batch, called after the optimiser's step without building a graph.
        validation
            For ``auto_lambda``: losses of a validation batch, called at the parameters of a virtual step.
        samples
            For ``sdmgrad``: losses of another training batch on every call; called twice a step.
        representation
            For a balancer ``at`` the representation: the tensor that all losses were computed from; not needed where
            the model has a ``representation`` of its own
            (:class:`~equipoise.models.base.SharedRepresentation`).

        Raises
        ------
        ValueError
            If the method needs a callable that is not given, a loss is not a finite scalar or depends on no
            parameter, a name is unknown, no task has a loss, or, with ``shared`` not given, a task has none in the
            first step.
        """
        lr = float(optimizer.param_groups[0]["lr"])
        calls = _Calls(self, {"forward": forward, "validation": validation, "samples": samples})
        means, context, record = self._backward(losses, lr, calls, representation)
        optimizer.step()
        self._balanced.learn(means, context, record, calls)
        return record

    def backward(
        self,
        losses: Losses,
        *,
        lr: float | None = None,
        validation: LossFunction | None = None,
        samples: LossFunction | None = None,
        representation: Tensor | None = None,
    ) -> StepRecord:
        """As :meth:`step` without the optimiser, where gradients are clipped or accumulated elsewhere before it.

        The method learns at once. ``lr`` is the optimiser's learning rate, which ``auto_lambda`` needs.

        Raises
        ------
        ValueError
            As :meth:`step`; and for a method that compares losses before and after the optimiser's step.
        """
        if "second_forward" in self.weighting.needs:
            raise ValueError(f"{self.name} compares losses before and after the optimiser's step: use step()")
        if "validation" in self.weighting.needs and lr is None:
            raise ValueError(f"{self.name} needs lr, the learning rate of the optimiser")
        calls = _Calls(self, {"validation": validation, "samples": samples})
        means, context, record = self._backward(losses, lr or 0.0, calls, representation)
        self._balanced.learn(means, context, record, calls)
        return record

    def end_epoch(self) -> dict[str, float]:
        """Tell the method that an epoch is over, which ``dwa`` and ``stch`` learn from.

        Returns
        -------
        dict
            task → mean of its losses over the steps of the epoch in which it was present; NaN if it never was.
        """
        means = self._sums[0] / self._sums[1]
        self.weighting.on_epoch_end(means)
        self.epoch, self.steps = self.epoch + 1, 0
        self._sums = torch.zeros_like(self._sums)
        return dict(zip(self.tasks, means.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs besides model and optimiser."""
        return {
            "method": self.name,
            "tasks": list(self.tasks),
            "weighting": self.weighting.state_dict(),
            "aggregator": self.aggregator.state_dict(),
            "refresh": self.refresh.state_dict(),
            "epoch": self.epoch,
            "steps": self.steps,
            "sums": self._sums.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises
        ------
        ValueError
            If the state is that of another method or of other tasks.
        """
        for key, mine in (("method", self.name), ("tasks", list(self.tasks))):
            if state[key] != mine:
                raise ValueError(f"the state is of {key} {state[key]}, not {mine}")
        self.weighting.load_state_dict(state["weighting"])
        self.aggregator.load_state_dict(state["aggregator"])
        self.refresh.load_state_dict(state["refresh"])
        self.epoch, self.steps, self._sums = state["epoch"], state["steps"], state["sums"].clone()

    def __repr__(self) -> str:
        weights = ", ".join(f"{task} {weight:.3g}" for task, weight in self.weights.items())
        needs = f", needs {' and '.join(self.needs)}" if self.needs else ""
        return (
            f"LossBalancer({self.name}, tasks {', '.join(self.tasks)}{needs}; epoch {self.epoch}, step {self.steps}"
            f"{f'; weights {weights}' if weights else ''})"
        )

    @property
    def _balanced(self) -> Balancer:
        assert self._balancer is not None
        return self._balancer

    def _backward(
        self, losses: Losses, lr: float, calls: _Calls, representation: Tensor | None
    ) -> tuple[Tensor, StepContext, StepRecord]:
        calls.check()
        given = self._named(losses)
        if self._balancer is None:
            self._balancer = Balancer(
                self._divided(given),
                self.tasks,
                self.weighting,
                self.aggregator,
                reduce=self.reduce,
                workers=self.workers,
                rescale=self.rescale,
                at=self.at,
                every=self.refresh.every,
            )
            self._balancer.refresh = self.refresh  # a state may have been loaded before the first step
        vector, present = self._vector(given)
        if not bool(present.any()):
            raise ValueError("no task has a loss in this batch")
        means = self.reduce(vector.detach().clone()).double().cpu()
        if bad := [task for task, mean in zip(self.tasks, means.tolist(), strict=True) if mean - mean != 0]:
            raise ValueError(f"the loss of {', '.join(bad)} is not finite")
        if self.nonnegative and (
            low := [t for t, m in zip(self.tasks, means.tolist(), strict=True) if m < 0]
        ):
            raise ValueError(
                f"{self.name} needs losses of at least 0, and that of {', '.join(low)} is negative"
            )
        context = StepContext(self.tasks, present, self.epoch, self.steps, self.seed, lr, self.total_steps)
        record = self._balancer.backward(vector, means, context, calls, representation=representation)
        self._sums += torch.stack([means, present.double()]) * present
        self.steps, self.record = self.steps + 1, record
        return means, context, record

    def _named(self, losses: Losses) -> dict[str, Tensor]:
        """Losses of present tasks by name."""
        if isinstance(losses, Mapping):
            if unknown := [name for name in losses if name not in self.tasks]:
                raise ValueError(f"no task {', '.join(unknown)}; tasks are {', '.join(self.tasks)}")
            named = dict(losses)
        elif len(losses) == len(self.tasks):
            named = dict(zip(self.tasks, losses, strict=True))
        else:
            raise ValueError(
                f"{len(losses)} losses for {len(self.tasks)} tasks; give None for one without labels"
            )
        present = {task: loss for task, loss in named.items() if loss is not None}
        for task, loss in present.items():
            if loss.numel() != 1:
                raise ValueError(f"the loss of {task} has {loss.numel()} values; take their mean")
        return present

    def _vector(self, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """``[T]`` losses whose mean over workers is the mean over those that have the task; ``[T]`` presence at any."""
        first = self._balanced.gradients.parameters[0]
        # Tied to a parameter: a worker without any label still takes part in the exchange of gradients.
        absent = 0 * first.flatten()[0]
        vector = torch.stack(
            [given[task].reshape(()).to(first) if task in given else absent for task in self.tasks]
        )
        share = self.reduce(vector.new_tensor([task in given for task in self.tasks]).to(vector))
        return vector / share.clamp(min=torch.finfo(share.dtype).tiny).where(share > 0, 1.0), (
            share > 0
        ).cpu()

    def _divided(self, given: Mapping[str, Tensor]) -> nn.Module:
        """The model, with an answer to which parameters are shared and which are a task's own."""
        if self._shared is None and hasattr(self.model, "shared_parameters"):
            return self.model
        depends = {task: parameters_of(loss) for task, loss in given.items()}
        trained = [p for p in self.model.parameters() if p.requires_grad]
        for task, found in depends.items():
            if not any(id(p) in found for p in trained):
                raise ValueError(f"the loss of {task} depends on no parameter of {type(self.model).__name__}")
        if self._shared is not None:
            wanted = {id(p) for p in self._shared}
            # Every task may move what is not shared, so which of them owns a parameter does not matter.
            return _Divided(self.model, wanted, {self.tasks[0]: {id(p) for p in trained} - wanted})
        if missing := [task for task in self.tasks if task not in given]:
            raise ValueError(
                f"{', '.join(missing)} has no loss in the first step, so that the parameters which tasks share are "
                "not known: start with a batch that has labels of every task, or give shared="
            )
        users = {id(p): [task for task in self.tasks if id(p) in depends[task]] for p in trained}
        own = {task: {key for key, names in users.items() if names == [task]} for task in self.tasks}
        return _Divided(self.model, users.keys() - set().union(*own.values()), own)


def parameters_of(loss: Tensor) -> set[int]:
    """``id`` of every leaf tensor that requires gradients and that a loss was computed from."""
    if loss.grad_fn is None:
        return {id(loss)} if loss.requires_grad else set()
    found: set[int] = set()
    seen: set[Any] = {loss.grad_fn}
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        following = [edge for edge, _ in node.next_functions if edge is not None and edge not in seen]
        seen.update(following)
        waiting += following
    return found


class _Divided(nn.Module):
    """A model together with the ids of its shared parameters and of every task's own."""

    def __init__(self, model: nn.Module, shared: set[int], own: Mapping[str, set[int]]) -> None:
        super().__init__()
        self.model = model
        kept = getattr(model, "representation", None)
        self.representation = kept if isinstance(kept, SharedRepresentation) else None
        self._shared_ids, self._own_ids = shared, own

    def shared_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if id(p) in self._shared_ids]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        return [p for p in self.parameters() if id(p) in self._own_ids.get(task, ())]


@dataclass(frozen=True)
class _Calls:
    """The caller's functions as the closures that a :class:`Balancer` asks for."""

    owner: LossBalancer
    functions: Mapping[str, LossFunction | None]

    def check(self) -> None:
        for argument, returns in ARGUMENTS.values():
            if argument in self.owner.needs and self.functions.get(argument) is None:
                raise ValueError(f"{self.owner.name} needs {argument}=, a function that returns {returns}")

    def second_forward_losses(self) -> Tensor:
        with torch.no_grad():
            return self.owner.reduce(self._losses("forward").detach()).double().cpu()

    def validation_losses(self) -> Tensor:
        return self._losses("validation")

    def sample_losses(self, index: int) -> Tensor:
        return self._losses("samples")

    def _losses(self, argument: str) -> Tensor:
        function = self.functions[argument]
        assert function is not None
        return self.owner._vector(self.owner._named(function()))[0]
