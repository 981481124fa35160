"""Hand-tuned weights: the baseline that must stand in every comparison."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equipoise.models.balancing.entries import StaticParams
from equipoise.models.balancing.protocol import StepContext
from equipoise.models.balancing.weighting import Weighting
from equipoise.models.batch import TaskHead


class Static(Weighting):
    """Weights that a person, or a search, has chosen; they never change.

    Raises
    ------
    ValueError
        If a task has no weight, or a weight no task.
    """

    def __init__(self, params: StaticParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        names = [head.name for head in heads]
        if missing := [name for name in names if name not in params.weights]:
            raise ValueError(f"static weights: none for {', '.join(missing)}; 0 leaves a task out")
        if unknown := [name for name in params.weights if name not in names]:
            raise ValueError(f"static weights: no task {', '.join(unknown)}; tasks are {', '.join(names)}")
        self._weights = torch.tensor([params.weights[name] for name in names], dtype=torch.float64)

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """As given, not normalised."""
        return self._weights.clone()
