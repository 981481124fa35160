"""One learned number per task, moved by an Adam of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class LearnedVector:
    """``[T]`` float64 numbers that Adam moves by given gradients, only those of present tasks.

    Every task's number is a parameter of its own, because an optimiser leaves alone what has no gradient: with
    a gradient of zero, momentum and weight decay would go on moving the number of an absent task.

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

    def step(self, gradient: Tensor, present: Tensor) -> None:
        """One step down ``gradient`` ``[T]`` where ``present``; the rest stays, as does its part of the optimiser."""
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
