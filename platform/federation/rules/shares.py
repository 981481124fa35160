"""How much of a sum one site may be: a bound on shares, whatever numbers of patients sites declare."""

from __future__ import annotations

import numpy as np

from equipoise.platform.federation.rules.protocol import Array
from equipoise.platform.federation.update import GroupWeights


def capped(weights: GroupWeights, most: float | None) -> GroupWeights:
    """Weights of which none is more than ``most`` of its group's sum; unchanged where none is.

    Larger ones are cut to one level, smaller ones keep their proportions. With fewer than 1 / ``most`` clients no
    such level exists, and all count alike.
    """
    if most is None:
        return weights
    return {group: _cut(np.asarray(row, np.float64), most) for group, row in weights.items()}


def _cut(row: Array, most: float) -> Array:
    positive = np.sort(row[row > 0])
    if len(positive) == 0 or positive[-1] <= most * positive.sum():
        return row
    if len(positive) * most <= 1:
        return (row > 0).astype(np.float64)
    for cut in range(1, len(positive)):
        # The ``cut`` largest are cut to a level t with t = most (rest + cut t).
        rest = positive[:-cut].sum()
        level = most * rest / (1 - most * cut) if most * cut < 1 else np.inf
        if level >= positive[-cut - 1]:
            break
    return np.minimum(row, level)
