"""Whether the loss weights that a balancing method learned got anywhere, and arrived, before a training ended.

A method whose weights stay where they began is equal weighting under another name; one whose weights were still on
their way is judged too early. Read off the history of a training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.platform.registry import entries

#: Relative change over the last third of the epochs below which weights count as converged.
CONVERGED = 0.25
#: Relative change from the first epoch to the last below which they count as unmoved.
MOVED = 0.02
#: Weights below this share of the mean weight are compared with it instead of with each other.
NEGLIGIBLE = 0.05


@dataclass(frozen=True)
class WeightConvergence:
    """Largest relative change of any task's weight.

    Parameters
    ----------
    moved
        From the mean of the first epoch to that of the last.
    drift
        Over the last third of the epochs; NaN with fewer than three epochs.
    """

    moved: float
    drift: float

    @property
    def has_moved(self) -> bool:
        """Whether the weights did anything."""
        return self.moved > MOVED

    @property
    def converged(self) -> bool:
        """Whether they moved, and had settled at the end."""
        return self.has_moved and self.drift <= CONVERGED

    @property
    def problem(self) -> str:
        """``did not move``, ``had not converged`` or nothing; nothing, too, where too few epochs say it."""
        if math.isnan(self.drift):
            return ""
        if not self.has_moved:
            return "did not move"
        return "" if self.converged else "had not converged"


def learns_weights(weighting: str) -> bool:
    """Whether a loss weighting learns its weights step by step; False for one that is not installed here."""
    entry = entries("weightings").get(weighting)
    return entry is not None and bool(entry.attribute("learns"))


def weight_convergence(history: Sequence[Mapping[str, float]], tasks: Sequence[str]) -> WeightConvergence:
    """From the rows of a training's history (:class:`~equipoise.platform.training.loop.FitResult`)."""
    rows = [[row.get(f"loss_weight/{t}", row.get(f"weight/{t}", math.nan)) for t in tasks] for row in history]
    weights = np.array(rows, dtype=float).reshape(len(rows), len(tasks))
    weights = weights[~np.isnan(weights).any(axis=1)]
    if not len(weights):
        return WeightConvergence(math.nan, math.nan)
    before = len(weights) - 1 - math.ceil(len(weights) / 3)
    drift = _change(weights[before], weights[-1]) if len(weights) > 2 else math.nan
    return WeightConvergence(_change(weights[0], weights[-1]), drift)


def _change(first: np.ndarray, last: np.ndarray) -> float:
    sizes = np.maximum(np.abs(first), np.abs(last))
    floor = max(NEGLIGIBLE * float(sizes.mean()), np.finfo(float).tiny)
    return float((np.abs(last - first) / np.maximum(sizes, floor)).max())
