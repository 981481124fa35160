"""Sites that stand apart, for the report: by the direction of their update, and by what it does to the others.

A flipped label or a hidden trigger passes every check of form, and is nearly invisible in a pooled metric. Two views
help: the cosine of an update with the mean of all others, and the change at every site's held-out patients when one
site is left out. Both are for people to look at; nobody is turned away by them, since an honest site can be unlike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from equipoise.platform.federation.rules.norm_clip import norms_of
from equipoise.platform.federation.rules.protocol import SiteRule, Vector
from equipoise.platform.federation.update import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema

#: Robust standard deviations below the median at which a cosine is marked.
APART = 3.0


class Direction(NamedTuple):
    """How a site's update lies to those of the others.

    ``cosine`` with the mean of the others' directions; ``score`` its distance from the median cosine in robust
    standard deviations (1.4826 median absolute deviations, at least 0.05), negative below; ``apart`` whether that
    is below -:data:`APART` or the cosine negative while most are positive.
    """

    client: str
    norm: float
    cosine: float
    score: float
    apart: bool


def directions(updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> list[Direction]:
    """A row per site, by name. Every site counts as one direction, so that a long update does not hide itself."""
    norms = norms_of(updates, schema, weights)
    order = sorted(range(len(updates)), key=lambda i: updates[i].client)
    unit = [_taken_part(updates[i], schema, weights, i) / (norms[i] or 1.0) for i in order]
    total = np.sum(unit, axis=0)
    cosines = np.array([_cosine(own, total - own) for own in unit])
    median = float(np.median(cosines))
    spread = max(1.4826 * float(np.median(np.abs(cosines - median))), 0.05)
    scores = (cosines - median) / spread
    return [
        Direction(
            updates[i].client,
            float(norms[i]),
            float(cosine),
            float(score),
            bool(score < -APART or cosine < 0 < median),
        )
        for i, cosine, score in zip(order, cosines, scores, strict=True)
    ]


def without_each(
    updates: Sequence[ClientUpdate],
    schema: Schema,
    weights: GroupWeights,
    rule: SiteRule,
    evaluate: Callable[[Vector], Mapping[str, float]],
) -> dict[str, dict[str, float]]:
    """Client → site → gain of a score when the client is left out; gains at most other sites make it suspect.

    Parameters
    ----------
    rule
        One without a memory; it is asked once per client.
    evaluate
        Combined update → score of the resulting model at every site's held-out patients, higher is better.
    """
    whole = evaluate(rule.combine(updates, schema, weights))
    found = {}
    for i, update in enumerate(updates):
        others = [other for other in updates if other is not update]
        left = {group: np.delete(np.asarray(row), i) for group, row in weights.items()}
        scores = evaluate(rule.combine(others, schema, left))
        found[update.client] = {site: scores[site] - whole[site] for site in whole}
    return found


def _taken_part(update: ClientUpdate, schema: Schema, weights: GroupWeights, i: int) -> np.ndarray:
    own = {group: float(row[i] > 0) for group, row in weights.items()}
    return update.delta * schema.expand(own)


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else 0.0
