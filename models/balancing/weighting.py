"""Base class of loss weightings, and what several of them share: positive losses, learned vectors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.models.balancing.entries import Needs, WeightingParams
from equipoise.models.balancing.protocol import Feedback, StepContext
from equipoise.models.batch import TaskHead


class Weighting:
    """A loss weighting that neither learns nor has state; subclasses override what differs.

    Parameters
    ----------
    params
        Of the entry; its class says what the method ``needs``, nothing by default.
    heads
        The T tasks.
    """

    def __init__(self, params: WeightingParams, heads: Sequence[TaskHead]) -> None:
        self.needs: Needs = getattr(params, "needs", WeightingParams.needs)

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """``[T]`` weights; every subclass implements it."""
        raise NotImplementedError

    def learn(self, losses: Tensor, context: StepContext, feedback: Feedback) -> None:
        """Learns nothing."""

    def on_epoch_end(self, mean_losses: Tensor) -> None:
        """Ignores the end of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse a state: it belongs to another method."""
        if state:
            raise ValueError(
                f"{type(self).__name__} has no state, the checkpoint holds {', '.join(map(str, state))}"
            )


#: Where a loss counts as zero. A Cox loss without anybody else at risk is exactly 0 and must not end in inf.
SMALLEST = 1e-8


def positive(losses: Tensor, method: str) -> Tensor:
    """``losses``, at least :data:`SMALLEST`.

    Raises
    ------
    ValueError
        If a loss is negative; the method is not defined for it.
    """
    if bool((losses < 0).any()):
        raise ValueError(f"{method} needs losses of at least 0, not {losses.min().item():.4g}")
    return losses.clamp(min=SMALLEST)


def learning_rate(lr: float, reach: float, context: StepContext) -> float:
    """``lr``, and at least what lets a number that moves by one learning rate in a step come as far as ``reach``.

    Published learning rates of weights are for tens of thousands of steps. In a training of a few hundred they leave
    weights where they began, which then is equal weighting under another name.
    """
    return max(lr, reach / context.total_steps) if context.total_steps else lr


class LearnedVector:
    """``[T]`` float64 numbers that Adam moves by given gradients, only those of present tasks.

    Every task's number is a separate parameter, because an optimiser skips parameters without a gradient: with
    a gradient of zero, momentum and weight decay would keep moving the number of an absent task.

    Parameters
    ----------
    start
        Numbers to begin with.
    lr, weight_decay, eps
        Of Adam; the decay is that of Adam, part of the gradient. Fused, because its other forms take 0.2 ms for
        six numbers.
    """

    def __init__(
        self, start: Sequence[float], *, lr: float, weight_decay: float = 0.0, eps: float = 1e-8
    ) -> None:
        self._numbers = [nn.Parameter(torch.tensor(float(s), dtype=torch.float64)) for s in start]
        self._optimiser = torch.optim.Adam(
            self._numbers, lr=lr, weight_decay=weight_decay, eps=eps, fused=True
        )

    @property
    def values(self) -> Tensor:
        """``[T]`` copy, without graph."""
        return torch.stack([number.detach() for number in self._numbers])

    def assign(self, values: Tensor) -> None:
        """Replace the numbers, for methods that project after a step."""
        with torch.no_grad():
            for number, value in zip(self._numbers, values, strict=True):
                number.copy_(value)

    def step(self, gradient: Tensor, present: Tensor, lr: float | None = None) -> None:
        """One step down ``gradient`` ``[T]`` where ``present``; the rest stays, as does its part of the optimiser.

        ``lr`` replaces the learning rate.
        """
        if lr is not None:
            self._optimiser.param_groups[0]["lr"] = lr
        for number, slope, here in zip(self._numbers, gradient, present.tolist(), strict=True):
            number.grad = slope.clone() if here else None
        self._optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        """Numbers and the optimiser's averages; copies, which later steps do not reach."""
        return {"values": self.values, "optimiser": copy.deepcopy(self._optimiser.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises
        ------
        ValueError
            If the state is that of another number of tasks.
        """
        if len(state["values"]) != len(self._numbers):
            raise ValueError(
                f"the checkpoint holds weights of {len(state['values'])} tasks, not {len(self._numbers)}"
            )
        self.assign(state["values"])
        self._optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
