"""What a rule costs where nobody attacks: how far its result is from the weighted mean of the same updates.

A robust rule that throws honest sites away pays in accuracy every round, whether an attack comes or not; the
report prints it beside the rule.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from equipoise.platform.federation.rules.mean import mean_of
from equipoise.platform.federation.rules.protocol import SiteRule, Vector
from equipoise.platform.federation.update import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema, norm_of


class CleanCost(NamedTuple):
    """How a combined update differs from the mean.

    ``distance`` is that of the two in norms of the mean (0 equal, 1 as far as doing nothing), ``cosine`` that of
    their angle, ``length`` the ratio of their norms. All NaN where the mean is 0.
    """

    distance: float
    cosine: float
    length: float


def clean_cost(
    updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights, rule: SiteRule
) -> CleanCost:
    """The cost of a rule on these updates; a rule with a memory is asked in a copy and does not remember."""
    return difference(
        copy.deepcopy(rule).combine(updates, schema, weights), mean_of(updates, schema, weights)
    )


def difference(combined: Vector, mean: Vector) -> CleanCost:
    """The cost of a combined update that is there already."""
    long, own = norm_of(mean), norm_of(combined)
    if long == 0:
        return CleanCost(np.nan, np.nan, np.nan)
    product = float(combined.astype(np.float64) @ mean.astype(np.float64))
    cosine = product / (long * own) if own else 0.0
    return CleanCost(norm_of(combined.astype(np.float64) - mean) / long, cosine, own / long)
