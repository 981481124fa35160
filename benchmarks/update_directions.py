"""Diagnostics of updates: sites whose update differs in direction from the others, or harms them.

Flipped labels and hidden triggers pass all checks of the validator, and are hardly visible in a pooled metric. Two
diagnostics help: the cosine of an update with the mean of all others, and the change at every site's held-out patients
when one site is left out. No update is rejected because of them, since an honest site can differ from the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from equipoise.platform.federation.aggregation.mean import norms_of
from equipoise.platform.federation.aggregation.protocol import ServerAggregation, Vector
from equipoise.platform.federation.messages import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema

#: An update is an outlier if its cosine is this many robust standard deviations below the median.
OUTLIER_SCORE = 3.0


class Direction(NamedTuple):
    """Direction of a site's update relative to those of the other sites.

    ``cosine`` with the mean of the others' directions; ``score`` its distance from the median cosine in robust
    standard deviations (1.4826 median absolute deviations, at least 0.05), negative below the median; ``outlier``
    whether that is below -:data:`OUTLIER_SCORE`, or the cosine is negative and the median is not.
    """

    client: str
    norm: float
    cosine: float
    score: float
    outlier: bool


def directions(updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> list[Direction]:
    """A row per site, sorted by name. Every site counts as one unit vector, so that a long update cannot dominate."""
    norms = norms_of(updates, schema, weights)
    order = sorted(range(len(updates)), key=lambda i: updates[i].client)
    unit = [_taken_part(updates[i], schema, weights, i) / (norms[i] or 1.0) for i in order]
    total = np.sum(unit, axis=0)
    cosines = np.array([_cosine(vector, total - vector) for vector in unit])
    median = float(np.median(cosines))
    spread = max(1.4826 * float(np.median(np.abs(cosines - median))), 0.05)
    scores = (cosines - median) / spread
    return [
        Direction(
            updates[i].client,
            float(norms[i]),
            float(cosine),
            float(score),
            bool(score < -OUTLIER_SCORE or cosine < 0 < median),
        )
        for i, cosine, score in zip(order, cosines, scores, strict=True)
    ]


def leave_one_out_gains(
    updates: Sequence[ClientUpdate],
    schema: Schema,
    weights: GroupWeights,
    server_aggregation: ServerAggregation,
    evaluate: Callable[[Vector], Mapping[str, float]],
) -> dict[str, dict[str, float]]:
    """Client → site → gain of a score when the client is left out; gains at most other sites can indicate harm.

    After a single round from a zero start they are noise: the mean of all points the same way with or without one site,
    and a C-index sees only the direction. There the cosine tells (:func:`directions`).

    Parameters
    ----------
    server_aggregation
        A server aggregation without state; it is called once per client.
    evaluate
        Aggregated update → score of the resulting model at every site's held-out patients, higher is better.
    """
    whole = evaluate(server_aggregation.aggregate(updates, schema, weights))
    gains = {}
    for i, update in enumerate(updates):
        others = [other for other in updates if other is not update]
        left = {group: np.delete(np.asarray(row), i) for group, row in weights.items()}
        scores = evaluate(server_aggregation.aggregate(others, schema, left))
        gains[update.client] = {site: scores[site] - whole[site] for site in whole}
    return gains


def _taken_part(update: ClientUpdate, schema: Schema, weights: GroupWeights, i: int) -> np.ndarray:
    took_part = {group: float(row[i] > 0) for group, row in weights.items()}
    return update.delta * schema.expand(took_part)


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else 0.0
