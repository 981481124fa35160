"""Coefficients of an aggregator kept for several steps: the products of gradients are taken every k-th step only.

Between two refreshes a step costs a single backward pass: the loss weights are those of the step, the coefficients
those of the last refresh. What a weighting learns from gradients (``gradnorm``, ``auto_lambda``, ``autoscale``) it
learns at refreshes, and keeps its weights in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Refresh:
    """When gradients of every task are taken, and the coefficients in between.

    Parameters
    ----------
    every
        Steps from one refresh to the next; 1 keeps nothing.
    """

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every is a number of steps of 1 or more, not {every}")
        self.every = every
        self._age = 0
        self._kept: dict[int, float] = {}

    def due(self, rows: Sequence[int]) -> bool:
        """Whether this step has to take the gradients of the tasks ``rows``.

        It also has to where one of them was absent from the last refresh: a coefficient is never guessed.
        """
        self._age += 1
        return self._age >= self.every or any(row not in self._kept for row in rows)

    def keep(self, rows: Sequence[int], coefficients: Tensor) -> None:
        """Keep the coefficients ``[t]`` of the tasks ``rows``; those of absent tasks are forgotten."""
        if self.every > 1:
            self._age = 0
            self._kept = dict(zip(rows, coefficients.tolist(), strict=True))

    def coefficients(self, rows: Sequence[int]) -> Tensor:
        """``[t]`` coefficients of the tasks ``rows``."""
        return torch.tensor([self._kept[row] for row in rows], dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """Steps since the last refresh and what it found; empty where nothing is kept."""
        if not self._kept:
            return {}
        return {"age": self._age, "rows": list(self._kept), "coefficients": list(self._kept.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._age = state.get("age", 0)
        self._kept = dict(zip(state.get("rows", ()), state.get("coefficients", ()), strict=True))
