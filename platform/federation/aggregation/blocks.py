"""Blocks: stretches of the vector that the same clients trained, and arithmetic on them chunk by chunk.

An aggregation is applied to every block separately, with the clients that trained it: a site without a task neither
moves the task's head nor dilutes it. If all clients trained everything there is one block, and the aggregation is that
of its paper. Arithmetic is in float64, on at most C x :data:`CHUNK` numbers at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.aggregation.protocol import Array, Vector
from equipoise.platform.federation.messages import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema

#: Coordinates processed at once: 4 MB for 16 clients.
CHUNK = 1 << 15


@dataclass(frozen=True)
class Block:
    """The part of the vector that the same c clients trained.

    Parameters
    ----------
    groups
        Names of its groups.
    clients
        ``[c]``, sorted by name: results must not depend on the order of arrival.
    vectors
        c updates ``[P]``, in that order.
    spans
        Group and stretch of the vector.
    weights
        group → ``[c]``, positive.
    """

    groups: tuple[str, ...]
    clients: tuple[str, ...]
    vectors: tuple[Vector, ...]
    spans: tuple[tuple[str, slice], ...]
    weights: dict[str, Array]

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def size(self) -> int:
        """Coordinates of the block."""
        return sum(span.stop - span.start for _, span in self.spans)

    def shares(self) -> Array:
        """``[c]`` that sum to 1: a client's share in the weights of a group, averaged over coordinates."""
        total = np.zeros(len(self))
        for group, span in self.spans:
            row = self.weights[group]
            total += (span.stop - span.start) * row / row.sum()
        return total / total.sum()

    def chunks(self) -> Iterator[tuple[str, slice, Array]]:
        """Group, stretch and ``[c, n]`` numbers of all clients there.

        Raises
        ------
        FederationError
            If a number is not finite; the validator should have rejected the update.
        """
        for group, span in self.spans:
            for start in range(span.start, span.stop, CHUNK):
                part = slice(start, min(start + CHUNK, span.stop))
                x = np.stack([vector[part] for vector in self.vectors], dtype=np.float64)
                if not np.isfinite(x).all():
                    raise FederationError("updates that are not finite reached a server aggregation")
                yield group, part, x

    def gram(self) -> Array:
        """``[c, c]`` products of the clients' updates within the block."""
        total = np.zeros((len(self), len(self)))
        for _, _, x in self.chunks():
            total += x @ x.T
        return total

    def write_weighted_sum(self, coefficients: Array, into: Vector) -> None:
        """Write Σ coefficient · update into the coordinates of the block."""
        for _, part, x in self.chunks():
            into[part] = coefficients @ x

    def write_average(self, into: Vector, factors: Array | None = None) -> None:
        """Write Σ factor · weight · update / Σ weight, the weights those of each group."""
        scale = np.ones(len(self)) if factors is None else factors
        for group, part, x in self.chunks():
            row = self.weights[group]
            into[part] = (scale * row / row.sum()) @ x


def blocks_of(updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> list[Block]:
    """The blocks of the vector; groups that no client trained are in none.

    Raises
    ------
    FederationError
        If an update has another length, a client occurs twice, or a weight is negative or not finite.
    """
    names = [update.client for update in updates]
    if len(set(names)) != len(names):
        raise FederationError("a client's update was passed twice to a server aggregation")
    for update in updates:
        schema.require(update.delta)
    order = sorted(range(len(updates)), key=names.__getitem__)
    patterns: dict[tuple[int, ...], list[str]] = {}
    for group in schema.groups:
        row = np.asarray(weights.get(group, np.zeros(len(updates))), np.float64)
        if row.shape != (len(updates),) or not np.isfinite(row).all() or (row < 0).any():
            raise FederationError(f"{group}: weights {row.tolist()} for {len(updates)} updates")
        if rows := tuple(i for i in order if row[i] > 0):
            patterns.setdefault(rows, []).append(group)
    return [
        Block(
            tuple(groups),
            tuple(names[i] for i in rows),
            tuple(updates[i].delta for i in rows),
            tuple((group, span) for group, span in schema.spans if group in groups),
            {group: np.asarray(weights[group], np.float64)[list(rows)] for group in groups},
        )
        for rows, groups in patterns.items()
    ]
