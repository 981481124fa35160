"""The two slots of task balancing: a loss weighting and a gradient aggregator.

A step is: forward → T losses → ``weighting.weights`` → ``aggregator.backward(weights * losses)`` → optimiser.
A method sees losses as means over labelled cases; a task without labels in a batch has loss 0, no gradient,
and ``present`` False, and a method must not take that 0 for success.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class StepContext:
    """Where training stands.

    Parameters
    ----------
    tasks
        Names of the T tasks, in the order of losses and weights.
    present
        ``[T]`` bool, whether the batch has a label of the task.
    epoch, step
        Both from 0; ``step`` counts within the epoch.
    """

    tasks: Sequence[str]
    present: Tensor
    epoch: int
    step: int


class BalancedModel(Protocol):
    """What balancing asks of a model: which parameters the tasks share and which are a task's own."""

    def shared_parameters(self) -> list[nn.Parameter]: ...

    def task_parameters(self, task: str) -> list[nn.Parameter]: ...


class Stateful(Protocol):
    """State that goes into the checkpoint, as tensors, numbers, strings and containers of them."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class LossWeighting(Stateful, Protocol):
    """How much each task's loss counts."""

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """``[T]`` weights for ``[T]`` losses; may carry gradients to :meth:`parameters`."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """Learned weights; the loop gives them an optimiser group of their own, without weight decay."""
        ...

    def on_epoch_end(self, mean_losses: Tensor) -> None:
        """Told the ``[T]`` mean training losses of every epoch, unweighted."""
        ...


class GradAggregator(Stateful, Protocol):
    """How the tasks' gradients on shared parameters become one.

    ``kind`` says what a method needs: ``none`` one backward pass of the sum, ``gram`` the T x T products of
    the gradients, ``jacobian`` the T x P gradients themselves.
    """

    kind: Literal["none", "gram", "jacobian"]

    def backward(self, losses: Tensor, model: BalancedModel, context: StepContext) -> None:
        """Add to ``.grad`` of every parameter of ``model`` the direction for ``[T]`` weighted losses."""
        ...
