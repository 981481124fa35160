"""The two slots of task balancing, a loss weighting and a gradient aggregator, and what they may ask for.

One step with T tasks, losses L and weights w on shared parameters θ of size P:

    means   = mean loss of every task over all labelled cases of all workers        [T]
    w       = weighting.weights(means)                                              [T]
    J       = gradient of every task's mean loss, averaged over workers             [T, P]
    d       = Jᵀ(c ∘ w) with c = aggregator.coefficients(diag(w) J Jᵀ diag(w)), or aggregator.direction(diag(w) J)
    θ       ← optimiser(θ, d);   a task's own parameters ← optimiser(., Σ w_k ∂L_k)
    weighting.learn(means, what it asked for)

An aggregator that works on logarithms of losses has w / means in place of w. Gradients may be taken at the
representation that the tasks share instead of at θ, and c may be kept for several steps.

:class:`~equipoise.models.balancing.balancer.Balancer` runs it. Everything of size T is float64 on the CPU and
the same at every worker; methods therefore take the same decisions on all workers without communication. A task
without labels in a batch has loss 0, no gradient and ``present`` False, and a method must not treat that 0 as a
low loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from equipoise.models.balancing.entries import AggregatorParams, Kind, Needs
from equipoise.models.batch import TaskHead
from equipoise.models.seeds import torch_seed

#: Mean over all workers of a tensor, in place where that is possible; the identity for a single worker.
Reduce = Callable[[Tensor], Tensor]


def identity_reduce(values: Tensor) -> Tensor:
    """The :data:`Reduce` of a single worker."""
    return values


@dataclass(frozen=True)
class StepContext:
    """Where training stands; the same at every worker.

    Parameters
    ----------
    tasks
        Names of the T tasks, in the order of losses and weights.
    present
        ``[T]`` bool on the CPU, whether any worker's batch has a label of the task.
    epoch, step
        Both from 0; ``step`` counts within the epoch.
    seed
        Of the training.
    lr
        Learning rate of this step.
    total_steps
        Steps of the whole training, from which learned weightings learn how far they have to get in one; None where
        nobody knows.
    rows
        For an aggregator: which of the T tasks its t rows belong to.
    cross_gram
        ``[t, t]`` products of gradients on two further batches, for an aggregator that needs ``samples``.
    """

    tasks: tuple[str, ...]
    present: Tensor
    epoch: int
    step: int
    seed: int = 0
    lr: float = 1e-4
    total_steps: int | None = None
    rows: tuple[int, ...] = ()
    cross_gram: Tensor | None = None

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """Randomness of this step: a function of (seed, epoch, step), so that workers draw the same numbers
        and a resumed training draws them again."""
        seed = torch_seed(self.seed, self.epoch, self.step, 0xBA1A)
        return torch.Generator(device=device).manual_seed(seed)


@dataclass(frozen=True)
class Feedback:
    """What a weighting needs after a step; fields that are not among its ``needs`` are None.

    Parameters
    ----------
    gram
        ``[T, T]`` products of the gradients of the *unweighted* losses on shared parameters; zero rows for
        absent tasks.
    hypergradient
        ``[T]`` derivative of the validation loss by each weight through one step of gradient descent.
    losses_after
        ``[T]`` mean losses of the same batch after the optimiser's step.
    """

    gram: Tensor | None = None
    hypergradient: Tensor | None = None
    losses_after: Tensor | None = None


class LossClosures(Protocol):
    """Closures of the training loop, for methods that need more than one backward pass over one batch.

    Losses have graphs and are this worker's share, so that their mean over workers is the mean over cases.
    """

    def second_forward_losses(self) -> Tensor:
        """``[T]`` means over all workers for the same batch, same dropout, current parameters; no graph."""
        ...

    def validation_losses(self) -> Tensor:
        """``[T]`` losses of another inner validation batch each step, without dropout."""
        ...

    def sample_losses(self, index: int) -> Tensor:
        """``[T]`` losses of a further training batch, another for every index and step."""
        ...


class BalancedModel(Protocol):
    """What balancing needs from a model: which parameters tasks share and which belong to a single task."""

    def shared_parameters(self) -> list[nn.Parameter]: ...

    def task_parameters(self, task: str) -> list[nn.Parameter]: ...


class Stateful(Protocol):
    """State that goes into the checkpoint, as tensors, numbers, strings and containers of them."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class LossWeighting(Stateful, Protocol):
    """How much each task's loss counts. Learned weights and their optimiser are the weighting's own."""

    needs: Needs

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """``[T]`` weights without graph for ``[T]`` mean losses; those of absent tasks are ignored."""
        ...

    def learn(self, losses: Tensor, context: StepContext, feedback: Feedback) -> None:
        """Called after the optimiser's step with the losses that :meth:`weights` saw and what the weighting needs."""
        ...

    def on_epoch_end(self, mean_losses: Tensor) -> None:
        """Called with the ``[T]`` unweighted mean training losses of every epoch; NaN for a task without labels."""
        ...


class BilevelWeighting(LossWeighting, Protocol):
    """A weighting that needs ``validation``.

    ``primary`` is ``[T]``: how much each task counts in the validation loss of the hypergradient.
    """

    primary: Tensor


class GradAggregator(Stateful, Protocol):
    """How the t present tasks' gradients on shared parameters become one.

    ``kind`` says which: ``none`` sums them in one backward pass, ``gram`` implements :meth:`coefficients`,
    ``jacobian`` implements :meth:`direction`. Called with two tasks or more.
    """

    kind: Kind
    needs: Needs


class GramAggregator(GradAggregator, Protocol):
    """Combines gradients by their inner products."""

    def coefficients(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """``[t]`` coefficients c of the direction Jᵀc, for ``gram`` = JJᵀ ``[t, t]`` of weighted losses.

        ``losses`` are the ``[t]`` unweighted means of the same tasks.
        """
        ...


class JacobianAggregator(GradAggregator, Protocol):
    """Combines gradients coordinate by coordinate."""

    def direction(self, jacobian: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """``[P]`` direction for the gradients ``[t, P]`` of weighted losses, on their device."""
        ...


class Aggregator:
    """A gradient aggregator without state; subclasses override what differs.

    Parameters
    ----------
    params
        Of the entry; its class says the ``kind`` of method and what it ``needs``.
    heads
        The T tasks.
    """

    def __init__(self, params: AggregatorParams, heads: Sequence[TaskHead]) -> None:
        # Parameters of other packages need not derive from ours.
        self.kind: Kind = getattr(params, "kind", AggregatorParams.kind)
        self.needs: Needs = getattr(params, "needs", AggregatorParams.needs)
        self.log_losses: bool = getattr(params, "log_losses", AggregatorParams.log_losses)

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse a state: it belongs to another method."""
        if state:
            raise ValueError(
                f"{type(self).__name__} has no state, the checkpoint holds {', '.join(map(str, state))}"
            )
